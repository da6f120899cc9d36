"""What supervisors say about their worker groups, and how much each has still to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from liveavatar.jobs.ability import Ability
from liveavatar.jobs.job import JobState
from liveavatar.jobs.tables import JOBS, WORKERS

SILENT_AFTER_S = 15.0
"""A supervisor that has said nothing for so long is taken to be gone."""

_FORGOTTEN_AFTER_S = 86_400.0


@dataclass(frozen=True)
class WorkerState:
    """What a supervisor last said about its worker group.

    Attributes:
        worker: its name.
        updated_at: when, UTC epoch seconds.
        document: plain values, as `engine/group_state.py` describes them.
    """

    worker: str
    updated_at: float
    document: Mapping[str, Any]

    def is_heard(self, now: float) -> bool:
        """Whether it spoke lately; `now` in UTC epoch seconds."""
        return now - self.updated_at <= SILENT_AFTER_S

    @property
    def claims(self) -> bool:
        """Whether its group takes jobs."""
        return bool(self.document.get("state") == "ready")

    @property
    def ability(self) -> Ability:
        """What its group can make."""
        return Ability.read(self.document.get("ability", {}))


def write_worker(
    connection: sa.Connection, worker: str, document: Mapping[str, Any], now: float
) -> None:
    """Say how a worker is, in place of what it said before; forget who was silent for a day."""
    values = {"updated_at": now, "document": dict(document)}
    known = WORKERS.update().where(WORKERS.c.worker == worker)
    if not connection.execute(known.values(values)).rowcount:
        connection.execute(WORKERS.insert().values(worker=worker, **values))
        silent = WORKERS.c.updated_at < now - _FORGOTTEN_AFTER_S
        connection.execute(WORKERS.delete().where(silent))


def read_workers(connection: sa.Connection) -> list[WorkerState]:
    """What all workers said last, the most recent first."""
    query = sa.select(WORKERS).order_by(WORKERS.c.updated_at.desc())
    return [
        WorkerState(row.worker, row.updated_at, row.document) for row in connection.execute(query)
    ]


def seconds_left(connection: sa.Connection) -> dict[str, float]:
    """GPU seconds that each worker still needs for what it holds, as fast as it is if known."""
    total = JOBS.c.spec["total_frames"].as_integer().label("total")
    query = sa.select(JOBS.c.worker, JOBS.c.frames, JOBS.c.fps, JOBS.c.cost_s, total).where(
        JOBS.c.state == JobState.RUNNING.value
    )
    left: dict[str, float] = {}
    for row in connection.execute(query):
        frames = max(0, row.total - row.frames)
        seconds = frames / row.fps if row.fps else row.cost_s * frames / max(1, row.total)
        left[row.worker] = left.get(row.worker, 0.0) + seconds
    return left
