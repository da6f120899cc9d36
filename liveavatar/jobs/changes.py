"""Changes of state as conditional updates: of two that want one, exactly one succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from liveavatar.errors import LeaseLostError
from liveavatar.jobs.fair_share import FIRST
from liveavatar.jobs.job import MAX_TRIES, Claim, JobState, states_before
from liveavatar.jobs.tables import JOBS


def holds(claim: Claim) -> sa.ColumnElement[bool]:
    """The one row that a claim still holds."""
    return sa.and_(
        JOBS.c.id == claim.job_id,
        JOBS.c.attempt == claim.attempt,
        JOBS.c.state == JobState.RUNNING.value,
    )


def lost(claim: Claim) -> LeaseLostError:
    """What to raise when it holds none."""
    return LeaseLostError(
        f"job {claim.job_id}: attempt {claim.attempt} does not hold it any more; its lease ran out"
    )


def change(
    connection: sa.Connection, which: sa.ColumnElement[bool], new: JobState, **values: Any
) -> int:
    """Move the jobs that may make this change; returns how many."""
    sources = [state.value for state in states_before(new)]
    query = JOBS.update().where(which, JOBS.c.state.in_(sources))
    return int(connection.execute(query.values(state=new.value, **values)).rowcount)


def give_back(
    connection: sa.Connection,
    which: sa.ColumnElement[bool],
    note: str,
    now: float,
    values: Mapping[str, Any] | None = None,
) -> int:
    """Queue running jobs again, before others; those to be cancelled, or tried too often, end.

    Args:
        connection: in a transaction.
        which: the jobs.
        note: why, one line.
        now: UTC epoch seconds.
        values: other columns of those that are queued.

    Returns:
        How many jobs it was.
    """
    gone = {"lease_until": None, "worker": None, "stage": ""}
    cancelled = change(
        connection, which & JOBS.c.cancel_requested, JobState.CANCELLED, finished_at=now, **gone
    )
    spent = which & (JOBS.c.tries >= MAX_TRIES)
    error = f"{note}; it was tried {MAX_TRIES} times"
    failed = change(connection, spent, JobState.FAILED, finished_at=now, error=error, **gone)
    queued = change(
        connection,
        which,
        JobState.QUEUED,
        restart_note=note,
        started_at=None,
        queue_order=FIRST,
        **gone,
        **(values or {}),
    )
    return cancelled + failed + queued
