"""The queue in the database: where a new job goes, who is next, what is ahead of one.

`fair_share.py` has the arithmetic. Statements are built once: that takes longer than the database
takes for one. The one row of the virtual clock is read for update first, so
that decisions follow each other; each is a few look-ups in indexes, however long the queue is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from liveavatar.jobs.ability import Ability
from liveavatar.jobs.fair_share import Place, VirtualClock, place_of
from liveavatar.jobs.job import Job, JobState
from liveavatar.jobs.tables import CLOCKS, JOBS, SHARES

_QUEUED: sa.ColumnElement[str] = sa.literal_column(f"'{JobState.QUEUED.value}'")
_IS_QUEUED = JOBS.c.state == _QUEUED
_CLOCK = sa.select(CLOCKS.c.value, CLOCKS.c.at).with_for_update()
_FINISH = sa.select(SHARES.c.finish).where(SHARES.c.owner == sa.bindparam("whose"))
_CHARGE = (
    SHARES.update()
    .where(SHARES.c.owner == sa.bindparam("whose"))
    .values(finish=sa.bindparam("until"))
)
_SET_CLOCK = CLOCKS.update().values(value=sa.bindparam("virtual"), at=sa.bindparam("when"))
_TAKE = (
    JOBS.update()
    .where(JOBS.c.number == sa.bindparam("which"), _IS_QUEUED)
    .values(
        state=JobState.RUNNING.value,
        attempt=JOBS.c.attempt + 1,
        tries=JOBS.c.tries + 1,
        worker=sa.bindparam("by"),
        lease_until=sa.bindparam("until"),
        started_at=sa.bindparam("when"),
        finished_at=None,
        stage="preparing",
    )
    .returning(JOBS)
)


@dataclass(frozen=True)
class Ahead:
    """What is claimed before a job: how many jobs, and how many GPU seconds they take."""

    jobs: int
    seconds: float


def join(connection: sa.Connection, owner: str, cost_s: float, now: float) -> Place:
    """Find a new job's place and charge its owner for it.

    Args:
        connection: in a transaction.
        owner: whose job it is.
        cost_s: GPU seconds it is expected to take.
        now: UTC epoch seconds.
    """
    virtual_time = _read_clock(connection).read(now)
    # Who has nothing ahead of the clock is as good as new.
    connection.execute(SHARES.delete().where(SHARES.c.finish <= virtual_time))
    finish = connection.execute(_FINISH, {"whose": owner}).scalar_one_or_none()
    place = place_of(virtual_time, finish or 0.0, cost_s)
    if finish is None:
        connection.execute(SHARES.insert().values(owner=owner, finish=place.finish))
    else:
        connection.execute(_CHARGE, {"whose": owner, "until": place.finish})
    return place


def leave(connection: sa.Connection, job_id: str) -> None:
    """Do not charge for a job that was cancelled before it was claimed."""
    cost_s, owner = (
        sa.select(column).where(JOBS.c.id == job_id).scalar_subquery()
        for column in (JOBS.c.cost_s, JOBS.c.owner)
    )
    refund = SHARES.update().where(SHARES.c.owner == owner)
    connection.execute(refund.values(finish=SHARES.c.finish - cost_s))


def has_work(connection: sa.Connection, ability: Ability) -> bool:
    """Whether there is anything to claim; takes no lock."""
    return connection.execute(_first(ability)).first() is not None


def take_first(
    connection: sa.Connection, ability: Ability, worker: str, now: float, lease_s: float
) -> sa.Row[Any] | None:
    """Claim the next job that can be made.

    Args:
        connection: in a transaction.
        ability: what can be made.
        worker: name of the one who takes it.
        now: UTC epoch seconds.
        lease_s: how long it holds, seconds.

    Returns:
        Its row; None when there is none, or when it was cancelled in this moment.
    """
    clock = _read_clock(connection)
    first = connection.execute(_first(ability)).first()
    if first is None:
        return None
    taken = {"which": first.number, "by": worker, "when": now, "until": now + lease_s}
    row = connection.execute(_TAKE, taken).first()
    if row is not None:
        after = clock.claimed(first.queue_order, now)
        connection.execute(_SET_CLOCK, {"virtual": after.value, "when": after.at})
    return row


def ahead_of(connection: sa.Connection, job: Job, tiers: Collection[str] | None) -> Ahead:
    """What is claimed before a queued job, by those who may claim it.

    Args:
        connection: any.
        job: which.
        tiers: what they make; None for all tiers.
    """
    place = sa.tuple_(JOBS.c.queue_order, JOBS.c.number)
    before = place < sa.tuple_(sa.literal(job.queue_order), sa.literal(job.number))
    query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(JOBS.c.cost_s), 0.0)).where(
        _IS_QUEUED, before
    )
    if tiers is not None:
        query = query.where(JOBS.c.tier.in_(tiers))
    jobs, seconds = connection.execute(query).one()
    return Ahead(int(jobs), float(seconds))


def _read_clock(connection: sa.Connection) -> VirtualClock:
    row = connection.execute(_CLOCK).one()
    return VirtualClock(row.value, row.at)


@lru_cache(maxsize=256)
def _first(ability: Ability) -> sa.Select[Any]:
    """Number and order of the first job in line that can be made: one look-up for each tier."""
    if ability.tiers is None:
        return _head(ability)
    heads = [_head(ability, tier).subquery() for tier in sorted(ability.tiers)]
    heads = heads or [_head(ability).where(sa.false()).subquery()]
    each = sa.union_all(*(sa.select(head) for head in heads)).subquery()
    return sa.select(each).order_by(each.c.queue_order, each.c.number).limit(1)


def _head(ability: Ability, tier: str | None = None) -> sa.Select[Any]:
    query = sa.select(JOBS.c.number, JOBS.c.queue_order).where(_IS_QUEUED)
    if tier is not None:
        query = query.where(JOBS.c.tier == tier)
    if ability.most_pixels is not None:
        query = query.where(JOBS.c.pixels <= ability.most_pixels)
    return query.order_by(JOBS.c.queue_order, JOBS.c.number).limit(1)
