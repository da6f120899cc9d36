"""What each rank of a worker group will hold, before anything is allocated, and whether it fits.

Arithmetic over shapes. Weights, caches and decoder state are exact; activations are estimates, what
NCCL takes is a bound, and the CUDA context is an assumption. `docs/benchmarks.md` compares all but
NCCL with a GPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.errors import ConfigError
from liveavatar.parallel.mesh import check_heads
from liveavatar.parallel.split import layer_costs, split_layers
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.plan import media_memory as media
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.precision import CPU_CANDIDATES, GPU_CANDIDATES, Precision
from liveavatar.plan.shapes import Network
from liveavatar.plan.sharing import ALONE, Sharing
from liveavatar.plan.transport_memory import transport_bytes

GIB = 2**30

CUDA_CONTEXT_BYTES = 768 * 2**20
"""Assumed per process on a GPU: context, kernels, library workspaces, allocator rounding."""

CPU_PROCESS_BYTES = 640 * 2**20
"""Assumed per process on the CPU: the interpreter and its libraries."""

MOST_JOBS = 2
"""Jobs a worker group may have open: one renders while the next one's first blocks begin."""

_MOST_GPUS = 16


@dataclass(frozen=True)
class Machine:
    """What a worker group runs on.

    Attributes:
        num_gpus: GPUs; 0 for the CPU.
        memory_bytes: what one GPU offers to programs (a 24 GB card: 22.15 GiB and more), the CUDA
            context included; on the CPU the host's memory.
        share_media: put encoders and decoder on the last stage's GPU instead of one of their own.
            With fewer than two GPUs they are always shared.
        stages_on_cpu: pipeline stages where there is no GPU.
        sharing: ranks of each stage, on GPUs of their own.
    """

    num_gpus: int
    memory_bytes: int
    share_media: bool = False
    stages_on_cpu: int = 1
    sharing: Sharing = ALONE

    def __post_init__(self) -> None:
        """Raise ConfigError for a machine that cannot be."""
        if not 0 <= self.num_gpus <= 64:
            raise ConfigError(f"gpus: expected 0 (the CPU) to 64, got {self.num_gpus}")
        if not 0 < self.memory_bytes <= 2**50:
            raise ConfigError(
                f"gpu_memory_gib: expected above 0 up to {2**20}, got {self.memory_bytes / GIB:g}"
            )

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        if not self.num_gpus:
            return self.stages_on_cpu
        shared = self.share_media or self.num_gpus < 2
        return max(1, (self.num_gpus - (not shared)) // self.sharing.size)

    @property
    def devices(self) -> tuple[int, ...]:
        """Device of each rank: the stages', then the media rank's."""
        num_ranks = self.num_stages * self.sharing.size
        if not self.num_gpus:
            return (0,) * (num_ranks + 1)
        return (*range(num_ranks), self.num_gpus - 1)


@dataclass(frozen=True)
class RankMemory:
    """Peak bytes of one process, by what they are for.

    Attributes:
        weights: layers of the transformer; on the media rank condition embedder and decoder.
        rings: keys and values of the window, for every denoise step.
        condition: keys and values of the condition's stored versions, and where the cache is exact
            those in front of every ring.
        workspace: the window of the layer at work, brought back from 8 bits.
        text: keys and values of the prompt.
        in_flight: modulation, speech and positions of begun blocks, samples, waiting messages.
        activations: inside a layer, an encoder or the decoder.
        recordings: of a stage's forwards as CUDA graphs, and what they work in.
        vae_state: what the streaming decoder remembers.
        encoders: weights of text, speech and portrait encoder.
        encoded: what they made lately, where the host's memory is the device's.
        transport: of NCCL, see `transport_memory.py`: a bound that was not measured.
        context: CUDA context and libraries.
    """

    weights: int = 0
    rings: int = 0
    condition: int = 0
    workspace: int = 0
    text: int = 0
    in_flight: int = 0
    activations: int = 0
    recordings: int = 0
    vae_state: int = 0
    encoders: int = 0
    encoded: int = 0
    transport: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))

    @property
    def beside_torch(self) -> int:
        """What torch does not allocate."""
        return self.transport + self.context


@dataclass(frozen=True)
class Estimate:
    """Memory of a worker group in one precision.

    Attributes:
        precision: of weights, keys and values.
        ranks: those of each stage, then the media rank.
        device_bytes: of each device, its ranks together.
    """

    precision: Precision
    ranks: tuple[RankMemory, ...]
    device_bytes: tuple[int, ...]

    @property
    def largest(self) -> int:
        """Bytes of the fullest device."""
        return max(self.device_bytes)


@dataclass(frozen=True)
class LayoutPlan:
    """A layout, what it needs, and whether it fits.

    Attributes:
        size_hw: height and width planned for, pixels.
        sampling: steps, window and clips planned for.
        machine: what it runs on.
        stages: layers of each pipeline stage.
        chosen: in the precision that will be run: the first candidate that fits, else the smallest.
        fits: whether `chosen` fits.
        jobs_at_once: jobs whose caches fit beside each other, 0 to 2. With 1, the next job must
            not be opened at the stages before the one that renders has ended.
        reasons: lines for people: what is short, what would help.
    """

    size_hw: tuple[int, int]
    sampling: SamplingConfig
    machine: Machine
    stages: tuple[range, ...]
    chosen: Estimate
    fits: bool
    jobs_at_once: int
    reasons: tuple[str, ...]

    @property
    def precision(self) -> Precision:
        """What will be run."""
        return self.chosen.precision

    @property
    def ranks(self) -> tuple[RankMemory, ...]:
        """Memory of the stages, then of the media rank."""
        return self.chosen.ranks

    @property
    def verdict(self) -> str:
        """One line for people."""
        need, have = self.chosen.largest / GIB, self.machine.memory_bytes / GIB
        if self.fits:
            return f"fits, {need:.1f} of {have:.2f} GiB with {self.precision}"
        return f"does not fit: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class _Question:
    """What is asked: everything that memory depends on but precision and number of jobs."""

    network: Network
    size_hw: tuple[int, int]
    sampling: SamplingConfig
    machine: Machine
    stages: tuple[range, ...]


def split_stages(
    config: TransformerConfig, size_hw: tuple[int, int], sampling: SamplingConfig, num_stages: int
) -> tuple[range, ...]:
    """Layers of each pipeline stage, by what they cost at this size.

    Raises:
        ConfigError: there are fewer layers than stages.
    """
    tokens = stage.count_tokens(config, size_hw, sampling)
    costs = layer_costs(config, tokens.block, tokens.ring + tokens.block)
    return tuple(split_layers(costs, num_stages))


def precisions(machine: Machine) -> Sequence[Precision]:
    """What a group on this machine may run in, best first."""
    candidates = GPU_CANDIDATES if machine.num_gpus else CPU_CANDIDATES
    if machine.sharing.sharded:  # torch shards parameters, which weights in 8 bits are not
        return [each for each in candidates if not each.quantises_weights]
    return candidates


def plan_layout(
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    machine: Machine,
    precision: Precision | None = None,
) -> LayoutPlan:
    """Plan the memory of a worker group.

    Args:
        network: shapes of all networks.
        size_hw: height and width of the video, pixels, multiples of 16.
        sampling: steps, window, clips. The speech is taken to fill all clips, so a number of clips
            far beyond the speech is to be cut to it.
        machine: what it runs on.
        precision: the only candidate; None for those of the machine, best first.

    Returns:
        The plan; one that does not fit says why.

    Raises:
        ConfigError: the sides are not multiples of 16, or there are fewer layers than stages.
    """
    if min(size_hw) < 1 or any(side % stage.PIXELS_PER_TOKEN for side in size_hw):
        raise ConfigError(
            f"size: expected sides that are multiples of {stage.PIXELS_PER_TOKEN}, "
            f"got {size_hw[1]}*{size_hw[0]}"
        )
    stages = split_stages(network.transformer, size_hw, sampling, machine.num_stages)
    question = _Question(network, size_hw, sampling, machine, stages)
    sharing = machine.sharing
    check_heads(
        network.transformer.num_heads, tp_degree=sharing.tp_degree, sp_degree=sharing.sp_degree
    )
    candidates = precisions(machine) if precision is None else [precision]
    estimates = [_estimate(question, precision) for precision in candidates]
    fitting = (e for e in estimates if e.largest <= machine.memory_bytes)
    chosen = next(fitting, min(estimates, key=lambda estimate: estimate.largest))
    fits = chosen.largest <= machine.memory_bytes
    two_jobs = _estimate(question, chosen.precision, num_jobs=MOST_JOBS)
    jobs_at_once = int(fits) + (fits and two_jobs.largest <= machine.memory_bytes)
    reasons = () if fits else tuple(_reasons(question, chosen))
    return LayoutPlan(size_hw, sampling, machine, stages, chosen, fits, jobs_at_once, reasons)


def estimate_layout(
    network: Network,
    size_hw: tuple[int, int],
    sampling: SamplingConfig,
    machine: Machine,
    precision: Precision,
) -> Estimate:
    """Memory of a worker group in a given precision, whether it fits or not; see `plan_layout`."""
    stages = split_stages(network.transformer, size_hw, sampling, machine.num_stages)
    return _estimate(_Question(network, size_hw, sampling, machine, stages), precision)


def _estimate(question: _Question, precision: Precision, num_jobs: int = 1) -> Estimate:
    ranks = [
        _stage_memory(question, layers, precision, num_jobs)
        for layers in question.stages
        for _ in range(question.machine.sharing.size)
    ]
    ranks.append(_media_memory(question, precision, num_jobs))
    devices = question.machine.devices
    totals = [0] * (max(devices) + 1)
    for rank, device in zip(ranks, devices, strict=True):
        totals[device] += rank.total
    return Estimate(precision, tuple(ranks), tuple(totals))


def _process_bytes(machine: Machine) -> int:
    return CUDA_CONTEXT_BYTES if machine.num_gpus else CPU_PROCESS_BYTES


def _stage_memory(
    question: _Question, layers: range, precision: Precision, num_jobs: int
) -> RankMemory:
    config, sampling = question.network.transformer, question.sampling
    tokens = stage.count_tokens(config, question.size_hw, sampling)
    pipeline = Pipeline(len(question.stages), sampling.num_steps)
    sharing, jobs_layers = question.machine.sharing, num_jobs * len(layers)
    width = sharing.heads(config.num_heads) * config.head_dim  # of its keys and values
    rings = stage.ring_values(config, tokens, sampling) * width // config.dim
    condition = stage.condition_bytes(config, tokens, sampling, precision) * width // config.dim
    window = stage.workspace_bytes(config, tokens, precision) * width // config.dim
    constants = stage.modulation_bytes(config, sampling)
    flying = stage.in_flight_bytes(config, layers, tokens, pipeline, precision)
    return RankMemory(
        weights=stage.stage_weights(config, layers, precision, sharing),
        rings=jobs_layers * precision.cache_bytes(rings, config.head_dim),
        condition=jobs_layers * condition,
        workspace=num_jobs * window,
        text=jobs_layers * stage.text_bytes(config, precision) // sharing.tp_degree,
        in_flight=jobs_layers * constants + num_jobs * flying,
        activations=stage.activation_bytes(config, layers, tokens, precision, sharing),
        recordings=_recordings(question, layers, precision, num_jobs),
        transport=_transport(question.machine),
        context=_process_bytes(question.machine),
    )


def _transport(machine: Machine) -> int:
    """Of the stage rank that has most links to others: one in, one out, and to those beside it."""
    if not machine.num_gpus or machine.num_stages * machine.sharing.size == 1:
        return 0
    onward = int(machine.num_stages > 1)
    return transport_bytes(onward + machine.sharing.size - 1, 1)


def _recordings(question: _Question, layers: range, precision: Precision, num_jobs: int) -> int:
    if not question.machine.num_gpus or question.machine.sharing.size > 1:
        return 0
    config, sampling = question.network.transformer, question.sampling
    tokens = stage.count_tokens(config, question.size_hw, sampling)
    return num_jobs * stage.recording_bytes(config, layers, tokens, sampling, precision)


def encoding_peaks(
    network: Network, size_hw: tuple[int, int], sampling: SamplingConfig, precision: Precision
) -> tuple[int, int]:
    """Peak bytes while a portrait is encoded, and while a prompt or its speech is."""
    value = precision.value_bytes
    words = max(
        media.text_peak(network.text, network.transformer.text_len, value),
        media.speech_peak(network.speech, media.speech_seconds(sampling), value),
    )
    return media.encode_peak(network.vae, size_hw, value), words


def _media_memory(question: _Question, precision: Precision, num_jobs: int) -> RankMemory:
    network, size_hw, value = question.network, question.size_hw, precision.value_bytes
    latent_frames = media.decoded_latent_frames(question.sampling)
    portrait, words = encoding_peaks(network, size_hw, question.sampling, precision)
    decoding = media.decode_peak(network.vae, size_hw, latent_frames, value)
    encoders = (
        media.text_encoder_weights(network.text, value)
        + media.speech_encoder_weights(network.speech, value)
        + media.encoder_weights(network.vae, value)
    )
    embedder = stage.condition_embedder_weights(network.transformer, precision)
    return RankMemory(
        weights=embedder + media.decoder_weights(network.vae, value),
        # The next job is encoded while this one is decoded, its portrait in turns with that.
        activations=max(portrait, decoding + words),
        vae_state=num_jobs * media.decoder_state(network.vae, size_hw, value),
        encoders=encoders,
        encoded=0 if question.machine.num_gpus else media.ENCODED_INPUTS_BYTES,
        context=_process_bytes(question.machine),
    )


def _reasons(question: _Question, least: Estimate) -> Iterator[str]:
    """What is short in the smallest precision, and what would help."""
    have = question.machine.memory_bytes
    yield f"even {_shortage(question.machine, least)} of {have / GIB:.2f} GiB usable"
    enough = _enough_gpus(question, least.precision)
    if enough is not None:
        yield f"{enough} such GPUs would be enough"


def _shortage(machine: Machine, estimate: Estimate) -> str:
    """Name the ranks that need too much, and how much."""
    short = []
    for device, need in enumerate(estimate.device_bytes):
        if need > machine.memory_bytes:
            ranks = [str(rank) for rank, on in enumerate(machine.devices) if on == device]
            named = f"rank {ranks[0]} needs" if len(ranks) == 1 else f"ranks {'+'.join(ranks)} need"
            short.append(f"{named} {need / GIB:.2f}")
    return f"with {estimate.precision} {', '.join(short)}"


def _enough_gpus(question: _Question, precision: Precision) -> int | None:
    """The smallest number of such GPUs that fits, if there is one; None on the CPU."""
    machine, config = question.machine, question.network.transformer
    if not machine.num_gpus or machine.sharing.size > 1:
        return None
    for num_gpus in range(machine.num_gpus + 1, _MOST_GPUS + 1):
        larger = replace(machine, num_gpus=num_gpus)
        if larger.num_stages > config.num_layers:
            return None
        stages = split_stages(config, question.size_hw, question.sampling, larger.num_stages)
        asked = replace(question, machine=larger, stages=stages)
        if _estimate(asked, precision).largest <= machine.memory_bytes:
            return num_gpus
    return None
