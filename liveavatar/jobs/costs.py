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


@dataclass(frozen=True)
class TierSpeed:
    """What jobs of a tier reached lately; None where there is no measurement."""

    fps: float | None
    first_frame_s: float | None


def tier_speed(connection: sa.Connection, tier: str) -> TierSpeed:
    """Mean speed of the last finished jobs of a tier."""
    recent = _last_done(tier, JOBS.c.fps, JOBS.c.first_frame_s).subquery()
    query = sa.select(sa.func.avg(recent.c.fps), sa.func.avg(recent.c.first_frame_s))
    fps, first_frame_s = connection.execute(query).one()
    return TierSpeed(
        None if fps is None else float(fps),
        None if first_frame_s is None else float(first_frame_s),
    )


def expected_seconds(connection: sa.Connection, spec: JobSpec) -> float:
    """GPU seconds that a job will take: its pixels, by what the last ones of its tier took each.

    Per pixel, because one tier is made in several shapes, and "custom" in any.
    """
    took = [
        1 / (row.fps * _pixels_per_frame(row.spec))
        for row in connection.execute(_last_done(spec.tier, JOBS.c.fps, JOBS.c.spec))
        if row.fps
    ]
    each = sum(took) / len(took) if took else PLANNED_S
    return each * spec.total_frames * spec.width * spec.height * spec.sampling.num_steps


def _last_done(tier: str, *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return (
        sa.select(*columns)
        .where(JOBS.c.state == JobState.DONE.value, JOBS.c.tier == tier)
        .order_by(JOBS.c.number.desc())
        .limit(_LAST)
    )


def _pixels_per_frame(document: Mapping[str, Any]) -> float:
    steps: int = document["sampling"]["num_steps"]
    return float(document["width"] * document["height"] * steps)
