"""From a measured render to settings that would be faster on the same cards, or to why none would.

The model. A render of `seconds` is bound by its busiest device; what that device did not spend
computing, `seconds * (1 - busy)`, goes into filling the pipe, waiting and sending, and is taken to
stay as it is. What a device computes changes with the settings:

- Stages. Every block passes every layer once per denoise step. The work of one pass is counted in
  multiply-adds (`layer_costs`): projections do not depend on the clip length, attention grows with
  the window of `infer_frames // 12` blocks. The measured seconds of all stages together are scaled
  by the ratio of the counts, which takes attention to run as fast as projections, and handed to the
  stages in proportion to the layers that the split gives them.
- Media rank. It encodes the inputs once and decodes every frame once: its seconds do not depend on
  clip length or split. Where it shares the last stage's card, both add up there.

So shorter clips, and more of them, pay off where the stages are full; a card more for layers pays
off where the media rank idles on a card of its own. Neither helps where the media rank is the
busiest, nor where no device is: then time goes into waiting, which this model does not change.

What it leaves out: the time that one precision takes against another, and that tokens a clip
cannot see any more make it remember less. A clip therefore keeps at least `LEAST_FRAMES`.
Memory of every proposal is planned as always; one that does not fit is not proposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.errors import ConfigError
from liveavatar.parallel.split import layer_costs
from liveavatar.plan.layout import LayoutPlan, Machine, plan_layout
from liveavatar.plan.shapes import Network
from liveavatar.plan.transformer_memory import count_tokens

LEAST_FRAMES = 24
"""Shortest clip that is proposed: a block sees at least one block before it."""

WORTH_IT = 0.05
"""Share of the time that a change has to save to be proposed."""

FULL, IDLE = 0.85, 0.5
"""Busy shares above which a rank is called full, below which idle."""


@dataclass(frozen=True)
class Measured:
    """A render as it was.

    Attributes:
        size_hw: height and width of the video, pixels.
        frames: of the video.
        sampling: as it was rendered.
        seconds: it took.
        machine: cards it ran on.
        stage_busy: busy share of each stage rank, 0..1.
        media_busy: of the media rank.

    Raises:
        ConfigError: a value cannot be.
    """

    size_hw: tuple[int, int]
    frames: int
    sampling: SamplingConfig
    seconds: float
    machine: Machine
    stage_busy: tuple[float, ...]
    media_busy: float

    def __post_init__(self) -> None:
        """Check it."""
        if not (math.isfinite(self.seconds) and self.seconds > 0 and self.frames > 0):
            raise ConfigError(
                f"report: expected frames and seconds above 0, got {self.frames} in {self.seconds}"
            )
        shares = (*self.stage_busy, self.media_busy)
        if not self.stage_busy or not all(0 <= share <= 1 for share in shares):
            raise ConfigError(f"report: expected busy shares of 0 to 1, got {shares}")
        ranks = self.machine.num_stages * self.machine.sharing.size
        if len(self.stage_busy) != ranks:
            raise ConfigError(f"report: expected {ranks} stages, got {len(self.stage_busy)}")

    @property
    def device_busy(self) -> float:
        """Busy share of the busiest device."""
        return min(1.0, max(_per_device(self.machine, self.stage_busy, self.media_busy)))


@dataclass(frozen=True)
class Proposal:
    """Settings and what is expected of them.

    Attributes:
        sampling: with the clips that cover the same frames.
        plan: memory, split and precision.
        seconds: predicted.
    """

    sampling: SamplingConfig
    plan: LayoutPlan
    seconds: float


@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes:
        best: None where nothing is worth a change.
        others: what else fits, the fastest first.
        reason: one sentence.
    """

    best: Proposal | None
    others: tuple[Proposal, ...]
    reason: str


def advise(network: Network, measured: Measured) -> Advice:
    """The fastest settings that fit, if they save at least `WORTH_IT` of the time."""
    found = sorted(_proposals(network, measured), key=lambda proposal: proposal.seconds)
    saving = 1 - found[0].seconds / measured.seconds if found else 0.0
    if saving < WORTH_IT:
        return Advice(None, tuple(found), _why_not(measured))
    # Of what is about as fast, what remembers most.
    near = [p for p in found if p.seconds <= found[0].seconds + WORTH_IT / 2 * measured.seconds]
    best = max(near, key=lambda proposal: (proposal.sampling.infer_frames, -proposal.seconds))
    others = tuple(proposal for proposal in found if proposal is not best)
    return Advice(best, others, _why(measured, best))


def predict(
    network: Network,
    measured: Measured,
    sampling: SamplingConfig,
    machine: Machine,
    plan: LayoutPlan,
) -> float:
    """Seconds of the same video with other settings, by the model of this module."""
    before = _work(network, measured.size_hw, measured.sampling)
    after = _work(network, measured.size_hw, sampling)
    computed = sum(measured.stage_busy) * measured.seconds
    total = computed * sum(after) / sum(before)
    shares = [sum(after[part.start : part.stop]) / sum(after) for part in plan.stages]
    size = machine.sharing.size
    stages = [total * share / size for share in shares for _ in range(size)]
    busiest = max(_per_device(machine, stages, measured.media_busy * measured.seconds))
    return busiest + measured.seconds * (1 - measured.device_busy)


def _work(network: Network, size_hw: tuple[int, int], sampling: SamplingConfig) -> list[float]:
    """Multiply-adds of each layer for one block, all steps."""
    tokens = count_tokens(network.transformer, size_hw, sampling)
    seen = tokens.condition + tokens.ring
    costs = layer_costs(network.transformer, tokens.block, seen)
    return [cost * sampling.num_steps for cost in costs]


def _per_device(machine: Machine, stages: Sequence[float], media: float) -> list[float]:
    totals: dict[int, float] = {}
    if not machine.num_gpus:  # ranks on a CPU take turns
        return [*stages, media]
    for device, value in zip(machine.devices, (*stages, media), strict=True):
        totals[device] = totals.get(device, 0.0) + value
    return list(totals.values())


def _proposals(network: Network, measured: Measured) -> Iterator[Proposal]:
    for machine in _machines(measured.machine):
        for infer_frames in range(
            LEAST_FRAMES, measured.sampling.infer_frames + 1, FRAMES_PER_BLOCK
        ):
            clips = math.ceil(measured.frames / infer_frames)
            sampling = replace(measured.sampling, infer_frames=infer_frames, num_clip=clips)
            if machine.num_stages > network.transformer.num_layers:
                continue
            plan = plan_layout(network, measured.size_hw, sampling, machine)
            if plan.fits:
                seconds = predict(network, measured, sampling, machine, plan)
                yield Proposal(sampling, plan, seconds)


def _machines(machine: Machine) -> Iterator[Machine]:
    """The same cards, with the media rank on one of its own and sharing the last stage's."""
    yield machine
    if machine.num_gpus > 1 and machine.sharing.size == 1:
        yield replace(machine, share_media=not machine.share_media)


def _why(measured: Measured, best: Proposal) -> str:
    parts = []
    if best.sampling.infer_frames < measured.sampling.infer_frames:
        parts.append("the stages are the bound, and shorter clips give them less to attend to")
    if best.plan.machine.share_media and not measured.machine.share_media:
        parts.append(
            f"the media rank idles ({measured.media_busy:.0%} busy): its card can hold layers too"
        )
    if measured.machine.share_media and not best.plan.machine.share_media:
        parts.append("encoding and decoding hold up the last stage: give them a card of their own")
    return "; ".join(parts) or "another split is faster"


def _why_not(measured: Measured) -> str:
    busiest = max(measured.stage_busy)
    if measured.media_busy > max(busiest, IDLE):
        return (
            f"the media rank is the busiest ({measured.media_busy:.0%}), and decodes as many "
            "frames whatever the clips are: a smaller --size helps, clips do not"
        )
    if measured.device_busy < FULL:
        return (
            f"no card is full (the busiest computes {measured.device_busy:.0%} of the time): the "
            "time goes into waiting and sending; look at the links between cards first"
        )
    return "the stages are full and evenly loaded, and nothing that fits saves 5 %: add cards"
