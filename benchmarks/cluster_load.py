"""What a cluster is asked for: kinds of jobs, whose they are, and when they come.

Everything is drawn from one seed, so that two runs see the same jobs.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from liveavatar.config import FPS, SamplingConfig
from liveavatar.jobs.job import JobSpec
from liveavatar.plan.tiers import TIERS

_SIZES = {tier.name: tier.size for tier in TIERS}


@dataclass(frozen=True)
class Kind:
    """A kind of job.

    Attributes:
        name: of it.
        tier: at which it is made.
        seconds: shortest and longest speech, drawn evenly on a logarithmic scale.
        share: of all jobs.
    """

    name: str
    tier: str
    seconds: tuple[float, float]
    share: float


KINDS = (
    Kind("short, fast", "fast", (5, 30), 0.55),
    Kind("minutes, balanced", "balanced", (30, 180), 0.30),
    Kind("minutes, high", "high", (30, 180), 0.13),
    Kind("long, balanced", "balanced", (1200, 3600), 0.02),
)


@dataclass(frozen=True)
class Load:
    """How much is asked for.

    Attributes:
        jobs: in all.
        waiting: of them, there from the beginning.
        owners: who submit them; the n-th submits in proportion to 1 / n.
        share: GPU seconds asked for, of what the groups could do while jobs still come.
        bursts: how many times more come during a burst; 1 for none.
        burst_s: how long one lasts; they are one tenth of the time.
        seed: of everything.
    """

    jobs: int
    waiting: int
    owners: int
    share: float
    bursts: float
    burst_s: float
    seed: int


@dataclass(frozen=True)
class Arrival:
    """A job and when it is submitted, seconds from the beginning."""

    at: float
    kind: str
    spec: JobSpec


def draw_jobs(load: Load, fps: Mapping[str, float], groups: int) -> list[Arrival]:
    """Draw what is submitted, in the order of time.

    Args:
        load: how much.
        fps: frames per second of a group at each tier.
        groups: how many there are.
    """
    draw = random.Random(load.seed)
    weights = list(itertools.accumulate(1 / place for place in range(1, load.owners + 1)))
    drawn = [_draw_job(draw, weights) for _ in range(load.jobs)]
    mean_s = sum(spec.total_frames / fps[spec.tier] for _, spec in drawn) / load.jobs
    times = _times(draw, load, rate=load.share * groups / mean_s)
    return [Arrival(at, kind, spec) for at, (kind, spec) in zip(times, drawn, strict=False)]


def _draw_job(draw: random.Random, weights: list[float]) -> tuple[str, JobSpec]:
    kind = draw.choices(KINDS, [each.share for each in KINDS])[0]
    shortest, longest = kind.seconds
    seconds = shortest * (longest / shortest) ** draw.random()
    owner = bisect.bisect(weights, draw.random() * weights[-1])
    size = _SIZES[kind.tier]
    spec = JobSpec(
        owner=f"owner {min(owner, len(weights) - 1)}",
        title=kind.name,
        prompt="",
        tier=kind.tier,
        width=size.width,
        height=size.height,
        sampling=SamplingConfig(),
        total_frames=max(1, round(seconds * FPS)),
        portrait_name="portrait.png",
        speech_name="speech.wav",
    )
    return kind.name, spec


def _times(draw: random.Random, load: Load, rate: float) -> Iterator[float]:
    """Those that wait at first, then a Poisson process whose rate is higher in bursts."""
    yield from itertools.repeat(0.0, load.waiting)
    now, period = 0.0, 10 * load.burst_s
    calm = rate / (0.9 + 0.1 * load.bursts)
    while True:
        # A draw of exactly 1 would have no logarithm; expovariate takes care of that.
        in_burst = now % period > period - load.burst_s
        now += draw.expovariate(calm * (load.bursts if in_burst else 1.0))
        yield now
