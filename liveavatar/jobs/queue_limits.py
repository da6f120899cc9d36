"""How many jobs may wait or run."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from liveavatar.errors import QueueFullError
from liveavatar.jobs.job import JobState
from liveavatar.jobs.tables import JOBS

_IS_OPEN = JOBS.c.state.in_([state.value for state in JobState if not state.has_ended])
_IN_ALL = sa.select(sa.func.count()).select_from(JOBS).where(_IS_OPEN)
_OWN = _IN_ALL.where(JOBS.c.owner == sa.bindparam("whose"))


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
    own = int(connection.execute(_OWN, {"whose": owner}).scalar_one())
    in_all = int(connection.execute(_IN_ALL).scalar_one())
    if own >= limits.per_owner:
        raise QueueFullError(
            f"you have {own} videos waiting or running, at most {limits.per_owner} are "
            "taken; wait for one to end or cancel it"
        )
    if in_all >= limits.in_all:
        raise QueueFullError(
            f"the queue is full, {in_all} videos wait or run; try again in a few minutes"
        )
