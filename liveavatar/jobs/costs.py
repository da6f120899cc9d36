"""What jobs take: the speed measured of those that ended, and what it means for a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from liveavatar.jobs.job import JobSpec, JobState
from liveavatar.jobs.tables import JOBS

_LAST = 5

PLANNED_S = 0.1 / (688 * 368 * 4)
"""Seconds for a pixel of a frame in one step, where nothing was measured yet: 10 frames/s at
688*368 in 4 steps, as `benchmarks/projection.py` has it for four cards of 24 GB."""


_LAST_DONE = (
    sa.select(JOBS.c.fps, JOBS.c.first_frame_s, JOBS.c.spec)
    .where(JOBS.c.state == JobState.DONE.value, JOBS.c.tier == sa.bindparam("of_tier"))
    .order_by(JOBS.c.number.desc())
    .limit(_LAST)
)


@dataclass(frozen=True)
class TierSpeed:
    """What jobs of a tier reached lately; None where there is no measurement."""

    fps: float | None
    first_frame_s: float | None


def tier_speed(connection: sa.Connection, tier: str) -> TierSpeed:
    """Mean speed of the last finished jobs of a tier."""
    rows = connection.execute(_LAST_DONE, {"of_tier": tier}).all()
    return TierSpeed(
        _mean([row.fps for row in rows if row.fps is not None]),
        _mean([row.first_frame_s for row in rows if row.first_frame_s is not None]),
    )


def expected_seconds(connection: sa.Connection, spec: JobSpec) -> float:
    """GPU seconds that a job will take: its pixels, by what the last ones of its tier took each.

    Per pixel, because one tier is made in several shapes, and "custom" in any.
    """
    took = [
        1 / (row.fps * _pixels_per_frame(row.spec))
        for row in connection.execute(_LAST_DONE, {"of_tier": spec.tier})
        if row.fps
    ]
    each = _mean(took) or PLANNED_S
    return each * spec.total_frames * spec.width * spec.height * spec.sampling.num_steps


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _pixels_per_frame(document: Mapping[str, Any]) -> float:
    steps: int = document["sampling"]["num_steps"]
    return float(document["width"] * document["height"] * steps)
