"""The largest tier that is made for now: set where memory gets short, obeyed from the next job on.

It lies in the database, so that whoever sees the shortage (an operator's script, a supervisor's own
guard) and whoever begins a job need not know each other, and a restart forgets nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from liveavatar.errors import JobError
from liveavatar.jobs.tables import CEILINGS, ONLY_ROW
from liveavatar.plan.tiers import Tier


@dataclass(frozen=True)
class Ceiling:
    """The largest tier that is made.

    Attributes:
        tier: its name.
        reason: why, one line without a full stop.
        since: when it was set, UTC epoch seconds.
    """

    tier: str
    reason: str
    since: float


def read_ceiling(connection: sa.Connection) -> Ceiling | None:
    """What is in force; None when every tier is made."""
    row = connection.execute(sa.select(CEILINGS)).first()
    return None if row is None else Ceiling(row.tier, row.reason, row.since)


def write_ceiling(connection: sa.Connection, tier: str | None, reason: str) -> None:
    """Make no tier larger than `tier` from the next job on; None lifts the ceiling."""
    connection.execute(CEILINGS.delete())
    if tier is not None:
        values = {"id": ONLY_ROW, "tier": tier, "reason": reason, "since": time.time()}
        connection.execute(CEILINGS.insert().values(values))


def one_lower(tiers: Sequence[Tier], ceiling: Ceiling | None) -> str:
    """Name of the tier one step below the largest that is made now; the smallest stays.

    Raises:
        JobError: there are no tiers.
    """
    if not tiers:
        raise JobError("there are no tiers, so none can be lowered")
    by_area = sorted(tiers, key=lambda tier: tier.size.area)
    names = [tier.name for tier in by_area]
    largest = names.index(ceiling.tier) if ceiling and ceiling.tier in names else len(names) - 1
    return names[max(0, largest - 1)]
