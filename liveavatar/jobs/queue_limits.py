"""How many jobs may wait or run."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from liveavatar.errors import QueueFullError
from liveavatar.jobs.job import JobState
from liveavatar.jobs.tables import JOBS


@dataclass(frozen=True)
class QueueLimits:
    """How many jobs may wait or run.

    Attributes:
        per_owner: of one owner.
        in_all: of everybody.
    """

    per_owner: int = 3
    in_all: int = 50


def require_room(connection: sa.Connection, owner: str, limits: QueueLimits) -> None:
    """Raise QueueFullError when an owner may submit no more now."""
    is_open = JOBS.c.state.in_([state.value for state in JobState if not state.has_ended])
    own = _count(connection, is_open & (JOBS.c.owner == owner))
    in_all = _count(connection, is_open)
    if own >= limits.per_owner:
        raise QueueFullError(
            f"you have {own} videos waiting or running, at most {limits.per_owner} are "
            "taken; wait for one to end or cancel it"
        )
    if in_all >= limits.in_all:
        raise QueueFullError(
            f"the queue is full, {in_all} videos wait or run; try again in a few minutes"
        )


def _count(connection: sa.Connection, which: sa.ColumnElement[bool]) -> int:
    query = sa.select(sa.func.count()).select_from(JOBS).where(which)
    return int(connection.execute(query).scalar_one())
