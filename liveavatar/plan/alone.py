"""What one process needs that makes a video alone, and how it fits: on the card, or from a shelf.

With the encoders freed before the video is rendered (`offload`), the peak is the larger of the two
phases. Where that does not fit either, layers, rings, or both wait in pinned host memory, and two
layers' worth of them is on the device at a time: `liveavatar.model.layer_shelf`, `ring_shelf`. What
is copied then in front of every forward binds the speed; `Copied` says how much, and how long that
takes at least over a bus of assumed speed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig, TransformerConfig
from liveavatar.plan import media_memory as media
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import (
    GIB,
    Machine,
    RankMemory,
    encoding_peaks,
    estimate_layout,
)
from liveavatar.plan.precision import CPU_CANDIDATES, GPU_CANDIDATES, Precision
from liveavatar.plan.shapes import Network

BUS_BYTES_PER_S = 25e9
"""Of copies from pinned memory to a card in 16 lanes of PCIe 4.0, which carry 31.5 GB/s on paper.

Assumed, not measured: every time that is computed with it is an estimate.
"""

HOST_RESERVE_BYTES = 4 * GIB
"""Host memory left to the process itself, its files and all others; assumed."""


SPARE_BYTES = GIB
"""Of the device, that torch keeps beside its tensors where their sizes change; assumed.

`docs/benchmarks.md` has 0.2 to 0.5 GiB for stages; here the decoder works in the same memory.
"""


@dataclass(frozen=True)
class Shelf:
    """What waits in host memory: the weights of the layers, and the rings with their conditions."""

    layers: bool = False
    rings: bool = False

    def __str__(self) -> str:
        """Name it for people; empty when all is on the device."""
        return " and ".join(["layers"] * self.layers + ["rings"] * self.rings)


SHELVES = (Shelf(), Shelf(layers=True), Shelf(rings=True), Shelf(layers=True, rings=True))
"""What is tried, in this order; rings move less than layers, yet rounded weights go with them."""


@dataclass(frozen=True)
class Copied:
    """Bytes between host and device in the steady state, when rings are full.

    Attributes:
        to_device: in front of and during one forward of all layers.
        to_host: of it.
        per_block: to the device, for one more time, for the speech of a block.
        num_steps: forwards of a block.
    """

    to_device: int
    to_host: int
    per_block: int
    num_steps: int

    @property
    def block_s(self) -> float:
        """Seconds of a block of 12 frames at least, at `BUS_BYTES_PER_S`: an estimate."""
        return (self.num_steps * self.to_device + self.per_block) / BUS_BYTES_PER_S

    def __str__(self) -> str:
        """Say it to people."""
        back = f" and {self.to_host / 1e9:.1f} GB back" if self.to_host else ""
        return (
            f"every forward copies {self.to_device / 1e9:.1f} GB to the card{back}; at "
            f"{BUS_BYTES_PER_S / 1e9:.0f} GB/s (PCIe 4.0 x16, assumed) a block of "
            f"{FRAMES_PER_BLOCK} frames takes {self.block_s:.1f} s or more: an estimate, not "
            "measured"
        )


@dataclass(frozen=True)
class LonePlan:
    """How one process makes a video.

    Attributes:
        precision: of weights, keys and values.
        shelf: what waits in host memory.
        total: peak bytes of the device.
        memory_bytes: what the device offers.
        pinned: bytes of host memory that are pinned.
        host_bytes: what the host offers to this process.
        copied: between the two.
    """

    precision: Precision
    shelf: Shelf
    total: int
    memory_bytes: int
    pinned: int
    host_bytes: int
    copied: Copied

    @property
    def fits_device(self) -> bool:
        """Whether the device has room for it."""
        return self.total <= self.memory_bytes

    @property
    def fits(self) -> bool:
        """Whether device and host have room for it."""
        enough = not self.pinned or self.pinned + HOST_RESERVE_BYTES <= self.host_bytes
        return self.fits_device and enough

    @property
    def verdict(self) -> str:
        """One line for people."""
        where = f", {self.shelf} in host memory ({self.pinned / GIB:.1f} GiB pinned)"
        word = "fits" if self.fits else "does not fit"
        line = f"{word}, {self.total / GIB:.1f} of {self.memory_bytes / GIB:.2f} GiB"
        line += f" with {self.precision}{where if self.pinned else ''}"
        if self.fits_device and not self.fits:
            line += f", of which {self.host_bytes / GIB:.1f} GiB are free and "
            line += f"{HOST_RESERVE_BYTES / GIB:.0f} have to stay so"
        return line


def plan_alone(
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    machine: Machine,
    *,
    offload: bool,
    host_bytes: int,
) -> LonePlan:
    """Plan one process on one device: the first way that fits.

    Where none does, the one that only the host is too small for and that pins least, else the
    smallest.

    Args:
        network: shapes of all networks.
        size_hw: height and width of the video, pixels.
        sampling: steps, window, clips.
        machine: where; of several GPUs one is used.
        offload: whether encoders are freed, and layers and rings may wait in host memory.
        host_bytes: free memory of the host.
    """
    ways = list(ways_alone(network, size_hw, sampling, machine, host_bytes))
    if not offload:
        ways = [_with_encoders(way, network, size_hw, sampling, machine) for way in ways]
        ways = [way for way in ways if way.shelf == Shelf()]
    first = next((way for way in ways if way.fits), None)
    least = min(
        ways, key=lambda way: (not way.fits_device, way.pinned * way.fits_device, way.total)
    )
    return first or least


def ways_alone(
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    machine: Machine,
    host_bytes: int,
) -> Iterator[LonePlan]:
    """Every way with encoders that are freed: what is on the shelf, then precisions, best first.

    See `plan_alone`. On a CPU nothing is on a shelf.
    """
    config = network.transformer
    layers, tokens = range(config.num_layers), stage.count_tokens(config, size_hw, sampling)
    for shelf in SHELVES if machine.num_gpus else SHELVES[:1]:
        for precision in GPU_CANDIDATES if machine.num_gpus else CPU_CANDIDATES:
            ranks = estimate_layout(network, size_hw, sampling, _one(machine), precision).ranks
            rendering, encoding = _phases(network, size_hw, sampling, ranks, precision)
            spare = SPARE_BYTES if machine.num_gpus else 0
            weights = stage.stage_weights(config, layers, precision)
            pinned = 0
            if shelf.layers:
                rendering += stage.shelf_weights(config, precision) - weights
                pinned += stage.layer_weights_of(config, layers, precision)
            if shelf.rings:
                rendering += stage.ring_rooms(config, tokens, precision)
                rendering -= ranks[0].rings + ranks[0].condition
                pinned += stage.shelved_ring_bytes(config, tokens, sampling, precision)
            yield LonePlan(
                precision,
                shelf,
                max(rendering, encoding) + spare,
                machine.memory_bytes,
                pinned,
                host_bytes,
                copied(config, tokens, sampling, shelf, precision),
            )


def _one(machine: Machine) -> Machine:
    return replace(machine, num_gpus=min(1, machine.num_gpus), share_media=True)


def _with_encoders(
    way: LonePlan,
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    machine: Machine,
) -> LonePlan:
    """The same with encoders that stay."""
    ranks = estimate_layout(network, size_hw, sampling, _one(machine), way.precision).ranks
    phases = sum(_phases(network, size_hw, sampling, ranks, way.precision))
    return replace(way, total=phases + (SPARE_BYTES if machine.num_gpus else 0))


def copied(
    config: TransformerConfig,
    tokens: stage.Tokens,
    sampling: SamplingConfig,
    shelf: Shelf,
    precision: Precision,
) -> Copied:
    """What all layers copy."""
    to_device, to_host, per_block = 0, 0, 0
    if shelf.layers:
        to_device += stage.layer_weights_of(config, range(config.num_layers), precision)
        injecting = stage.layer_weights(config, precision, injects=True)
        per_block = len(config.audio_inject_layers) * injecting
    if shelf.rings:
        token = config.num_layers * precision.cache_bytes(2 * config.dim, config.head_dim)
        to_device += (tokens.condition + tokens.ring - tokens.block) * token
        to_host += tokens.block * token
    return Copied(to_device, to_host, per_block, sampling.num_steps)


def _phases(
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    ranks: tuple[RankMemory, ...],
    precision: Precision,
) -> tuple[int, int]:
    """Peak bytes while the video is rendered, and while its inputs are encoded."""
    layers, others = ranks
    latent_frames = media.decoded_latent_frames(sampling)
    decoding = media.decode_peak(network.vae, size_hw, latent_frames, precision.value_bytes)
    # One process starts its kernels by hand.
    rendering = layers.total - layers.recordings
    rendering += others.weights + others.vae_state + decoding
    encoding = others.encoders + layers.context
    encoding += max(encoding_peaks(network, size_hw, sampling, precision))
    return rendering, encoding
