"""What one process needs that makes a video alone, and how it fits: weights resident or on a shelf.

With the encoders freed before the video is rendered (`offload`), the peak is the larger of the two
phases. Where the layers do not fit either, they wait in host memory and two of them are on the
device at a time, see `liveavatar.model.layer_shelf`; rings and everything else stay there.
"""

from dataclasses import dataclass, replace

from liveavatar.config import SamplingConfig
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


@dataclass(frozen=True)
class LonePlan:
    """How one process makes a video.

    Attributes:
        precision: of weights, keys and values.
        on_shelf: whether the layers wait in host memory.
        total: peak bytes of the device.
        memory_bytes: what the device offers.
    """

    precision: Precision
    on_shelf: bool
    total: int
    memory_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the device has room for it."""
        return self.total <= self.memory_bytes

    @property
    def verdict(self) -> str:
        """One line for people."""
        where = ", layers in host memory" if self.on_shelf else ""
        word = "fits" if self.fits else "does not fit"
        have = self.memory_bytes / GIB
        return f"{word}, {self.total / GIB:.1f} of {have:.2f} GiB with {self.precision}{where}"


def plan_alone(
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    machine: Machine,
    *,
    offload: bool,
) -> LonePlan:
    """Plan one process on one device: the first way that fits, else the smallest.

    Args:
        network: shapes of all networks.
        size_hw: height and width of the video, pixels.
        sampling: steps, window, clips.
        machine: where; of several GPUs one is used.
        offload: whether encoders are freed, and layers may wait in host memory.
    """
    candidates = GPU_CANDIDATES if machine.num_gpus else CPU_CANDIDATES
    one = replace(machine, num_gpus=min(1, machine.num_gpus), share_media=True)
    plans = []
    for on_shelf in (False, True) if offload and machine.num_gpus else (False,):
        for precision in candidates:
            estimate = estimate_layout(network, size_hw, sampling, one, precision)
            rendering, encoding = _phases(network, size_hw, sampling, estimate.ranks, precision)
            if on_shelf:
                layers = range(network.transformer.num_layers)
                rendering -= stage.stage_weights(network.transformer, layers, precision)
                rendering += stage.shelf_weights(network.transformer, precision)
            total = max(rendering, encoding) if offload else rendering + encoding
            plans.append(LonePlan(precision, on_shelf, total, machine.memory_bytes))
    return next((plan for plan in plans if plan.fits), min(plans, key=lambda plan: plan.total))


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
    rendering = layers.total + others.weights + others.vae_state + decoding
    encoding = others.encoders + layers.context
    encoding += max(encoding_peaks(network, size_hw, sampling, precision))
    return rendering, encoding
