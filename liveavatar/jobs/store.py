"""Jobs in a database: submitted, claimed with a lease, followed, ended.

SQLite in WAL mode by default, any other database by its URL. Every change of state is one
conditional update, so that of two workers, or of a worker and a cancelling user, exactly one
succeeds.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from liveavatar.errors import JobError, UnknownJobError
from liveavatar.jobs import queue, workers
from liveavatar.jobs.ability import EVERYTHING, Ability
from liveavatar.jobs.ceiling import Ceiling, read_ceiling, write_ceiling
from liveavatar.jobs.changes import change, give_back, holds, lost
from liveavatar.jobs.costs import TierSpeed, expected_seconds, tier_speed
from liveavatar.jobs.job import Claim, Job, JobSpec, JobState, check_change
from liveavatar.jobs.queue_limits import QueueLimits, require_room
from liveavatar.jobs.rows import columns_of, job_of
from liveavatar.jobs.tables import JOBS, available, one_line, open_database
from liveavatar.jobs.upgrade import make_tables
from liveavatar.jobs.workers import WorkerState

_SHARE_KEY_LENGTH = 8


class JobStore:
    """The jobs of one installation; safe from any thread and from several processes.

    Args:
        url: database URL, such as "sqlite:////data/jobs.db"; see `sqlite_url`.
        now: the clock, UTC epoch seconds; simulations have one of their own.

    Raises:
        JobError: the database cannot be opened.
    """

    def __init__(self, url: str, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._engine = open_database(url)
        try:
            make_tables(self._engine)
        except sa.exc.SQLAlchemyError as error:
            self._engine.dispose()
            raise JobError(f"the job database cannot be opened: {one_line(error)}") from None
        self._reading = self._engine.execution_options(reading=True)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        """A transaction; StoreUnavailableError when it cannot be begun or kept."""
        with available(), ExitStack() as stack:
            try:
                connection = stack.enter_context(self._engine.begin())
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # It was opened when nothing could be written; a new one tells whether that is over.
                connection = stack.enter_context(self._engine.begin())
            yield connection

    @contextmanager
    def _looking(self) -> Iterator[sa.Connection]:
        """A connection that only reads; StoreUnavailableError as above."""
        with available(), self._reading.connect() as connection:
            yield connection

    def submit(self, spec: JobSpec, limits: QueueLimits | None, job_id: str | None = None) -> Job:
        """Queue a job; when this returns, it is on the disk.

        Args:
            spec: what is asked for.
            limits: of the queue; None for none.
            job_id: from `new_job_id`, when files were laid down under it before; else a new one.

        Returns:
            The new job, or the one that this owner submitted under the same idempotency key.

        Raises:
            QueueFullError: a limit is reached.
        """
        values = columns_of(spec) | {
            "id": job_id or new_job_id(),
            "share_token": secrets.token_urlsafe(24),
            "state": JobState.QUEUED.value,
            "created_at": self._now(),
        }
        values["share_key"] = values["share_token"][:_SHARE_KEY_LENGTH]
        try:
            with self._changing() as connection:
                if (known := _submitted_before(connection, spec)) is not None:
                    return known
                if limits is not None:
                    require_room(connection, spec.owner, limits)
                cost_s = expected_seconds(connection, spec)
                place = queue.join(connection, spec.owner, cost_s, self._now())
                charged = {"queue_order": place.order, "cost_s": cost_s}
                connection.execute(JOBS.insert().values(values | charged))
        except sa.exc.IntegrityError:
            # Another process submitted under the same key between the look and the insert.
            with self._looking() as connection:
                if (known := _submitted_before(connection, spec)) is not None:
                    return known
            raise
        return self.get(values["id"])

    def check_room(self, owner: str, limits: QueueLimits) -> None:
        """Raise QueueFullError when a submission of this owner would be refused now."""
        with self._looking() as connection:
            require_room(connection, owner, limits)

    def get(self, job_id: str) -> Job:
        """Return a job; UnknownJobError when there is none."""
        with self._looking() as connection:
            row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).first()
        if row is None:
            raise UnknownJobError(f"there is no job {job_id[:40]!r}; it may have been deleted")
        return job_of(row)

    def find_submitted(self, owner: str, idempotency_key: str) -> Job | None:
        """Return what this owner submitted under a key, if anything."""
        with self._looking() as connection:
            return _submitted_under(connection, owner, idempotency_key)

    def find_shared(self, share_token: str) -> Job:
        """Return the job with this share token, compared in constant time; UnknownJobError."""
        with self._looking() as connection:
            key = share_token[:_SHARE_KEY_LENGTH]
            rows = connection.execute(sa.select(JOBS).where(JOBS.c.share_key == key)).all()
        for row in rows:
            if hmac.compare_digest(row.share_token.encode(), share_token.encode()):
                return job_of(row)
        raise UnknownJobError("this link leads to no video; it may have been deleted")

    def list_jobs(self, owner: str | None = None, limit: int = 100) -> list[Job]:
        """Return jobs, newest first; of one owner or of all."""
        query = sa.select(JOBS).order_by(JOBS.c.number.desc()).limit(limit)
        if owner is not None:
            query = query.where(JOBS.c.owner == owner)
        with self._looking() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def ahead_of(self, job: Job, tiers: Collection[str] | None = None) -> queue.Ahead:
        """What is claimed before a queued job by those who make these tiers; None for all tiers."""
        with self._looking() as connection:
            return queue.ahead_of(connection, job, tiers)

    def counts(self) -> dict[JobState, int]:
        """Jobs in each state."""
        query = sa.select(JOBS.c.state, sa.func.count()).group_by(JOBS.c.state)
        with self._looking() as connection:
            found = {JobState(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def tier_speed(self, tier: str) -> TierSpeed:
        """Mean speed of the last finished jobs of a tier."""
        with self._looking() as connection:
            return tier_speed(connection, tier)

    def claim(
        self, worker: str, lease_s: float, ability: Ability = EVERYTHING
    ) -> tuple[Claim, Job] | None:
        """Take the first job in line that can be made; None when there is none.

        What is known of its growing file stays, until `begin_take`.

        Args:
            worker: name of the one who takes it.
            lease_s: how long it holds without `renew`, seconds.
            ability: what the worker can make.
        """
        with self._looking() as connection:
            if not queue.has_work(connection, ability):
                return None
        with self._changing() as connection:
            row = queue.take_first(connection, ability, worker, self._now(), lease_s)
        return None if row is None else (Claim(row.id, row.attempt), job_of(row))

    def begin_take(self, claim: Claim) -> None:
        """Say that the growing file begins anew; LeaseLostError when the claim is gone."""
        self._update_claimed(claim, take=JOBS.c.take + 1, frames=0, fps=None, first_frame_s=None)

    def renew(self, claim: Claim, lease_s: float) -> None:
        """Hold a claim for longer; LeaseLostError when it is gone."""
        self._update_claimed(claim, lease_until=self._now() + lease_s)

    def record_progress(
        self,
        claim: Claim,
        *,
        frames: int,
        stage: str,
        fps: float | None,
        first_frame_s: float | None,
    ) -> None:
        """Note how far a running job is; LeaseLostError when the claim is gone."""
        self._update_claimed(
            claim,
            frames=frames,
            stage=stage,
            fps=fps,
            first_frame_s=first_frame_s,
            tries=sa.case((JOBS.c.frames < frames, 0), else_=JOBS.c.tries),
        )

    def finish(self, claim: Claim, state: JobState, error: str | None = None) -> None:
        """End a running job.

        Args:
            claim: the hold on it.
            state: done, failed or cancelled.
            error: why it failed, one line.

        Raises:
            JobError: the state is no end.
            LeaseLostError: the claim is gone.
        """
        if not state.has_ended:
            raise JobError(f"a job cannot end as {state.value}")
        check_change(JobState.RUNNING, state)
        with self._changing() as connection:
            changed = change(
                connection,
                holds(claim),
                state,
                error=error,
                finished_at=self._now(),
                stage="",
                lease_until=None,
            )
        if not changed:
            raise lost(claim)

    def requeue(self, claim: Claim, note: str, *, counts: bool = True) -> Job:
        """Give a running job back to the queue, or end it when it was tried too often.

        Args:
            claim: the hold on it.
            note: why, one line.
            counts: whether this was a try that failed.

        Returns:
            The job: queued; cancelled, if that was asked for; or failed after `MAX_TRIES` in a row.

        Raises:
            LeaseLostError: the claim is gone.
        """
        with self._changing() as connection:
            if not counts:
                connection.execute(JOBS.update().where(holds(claim)).values(tries=0))
            if not give_back(connection, holds(claim), note, self._now()):
                raise lost(claim)
        return self.get(claim.job_id)

    def retry(self, claim: Claim, note: str, spec: JobSpec) -> Job:
        """Give back a running job that ended its worker group, to be made once more as `spec`.

        Args:
            claim: the hold on it.
            note: what went wrong, one line.
            spec: what is made now; owner and key stay.

        Raises:
            LeaseLostError: the claim is gone.
        """
        values = columns_of(spec) | {"faults": JOBS.c.faults + 1, "tries": 0}
        with self._changing() as connection:
            connection.execute(JOBS.update().where(holds(claim)).values(tries=0))
            if not give_back(connection, holds(claim), note, self._now(), values):
                raise lost(claim)
        return self.get(claim.job_id)

    def change_spec(self, claim: Claim, spec: JobSpec) -> None:
        """Make another video of a running job; LeaseLostError when the claim is gone."""
        self._update_claimed(claim, **columns_of(spec))

    def requeue_of(self, worker: str, note: str) -> int:
        """Give back what a worker held that is known to be gone; returns how many jobs."""
        mine = (JOBS.c.worker == worker) & (JOBS.c.state == JobState.RUNNING.value)
        with self._changing() as connection:
            return give_back(connection, mine, note, self._now())

    def requeue_expired(self, note: str) -> int:
        """Give back the jobs whose leases ran out; returns how many."""
        expired = (JOBS.c.lease_until < self._now()) & (JOBS.c.state == JobState.RUNNING.value)
        with self._changing() as connection:
            return give_back(connection, expired, note, self._now())

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued, else its worker is asked to; ended ones stay.

        Raises:
            UnknownJobError: there is no such job.
        """
        with self._changing() as connection:
            queued = (JOBS.c.id == job_id) & (JOBS.c.state == JobState.QUEUED.value)
            if change(connection, queued, JobState.CANCELLED, finished_at=self._now()):
                queue.leave(connection, job_id)
            else:
                running = (JOBS.c.id == job_id) & (JOBS.c.state == JobState.RUNNING.value)
                connection.execute(JOBS.update().where(running).values(cancel_requested=True))
        return self.get(job_id)

    def cancels_wanted(self, claims: Iterable[Claim]) -> set[str]:
        """Which of the claimed jobs somebody asked to cancel: their ids."""
        ids = [claim.job_id for claim in claims]
        query = sa.select(JOBS.c.id).where(JOBS.c.id.in_(ids), JOBS.c.cancel_requested)
        with self._looking() as connection:
            return set(connection.execute(query).scalars())

    def delete(self, job_id: str) -> None:
        """Forget an ended job.

        Raises:
            UnknownJobError: there is no such job.
            JobError: it has not ended; cancel it first.
        """
        ended = [state.value for state in JobState if state.has_ended]
        with self._changing() as connection:
            removed = connection.execute(
                JOBS.delete().where(JOBS.c.id == job_id, JOBS.c.state.in_(ended))
            )
        if not removed.rowcount:
            state = self.get(job_id).state
            raise JobError(f"a job that is {state.value} cannot be deleted; cancel it first")

    def ended_before(self, when: float) -> list[str]:
        """Ids of the jobs that ended before a time, UTC epoch seconds; the oldest first."""
        before = JOBS.c.finished_at < when
        query = sa.select(JOBS.c.id).where(before).order_by(JOBS.c.finished_at)
        with self._looking() as connection:
            return list(connection.execute(query).scalars())

    def write_worker(self, worker: str, document: Mapping[str, Any]) -> None:
        """Say how a worker is; it replaces what was said before."""
        with self._changing() as connection:
            workers.write_worker(connection, worker, document, self._now())

    def read_workers(self) -> list[WorkerState]:
        """What all workers said last, the most recent first."""
        with self._looking() as connection:
            return workers.read_workers(connection)

    def seconds_left(self) -> dict[str, float]:
        """GPU seconds that each worker still needs for what it holds."""
        with self._looking() as connection:
            return workers.seconds_left(connection)

    def set_ceiling(self, tier: str | None, reason: str) -> None:
        """Make no tier larger than `tier` from the next job on; None lifts that."""
        with self._changing() as connection:
            write_ceiling(connection, tier, reason)

    def ceiling(self) -> Ceiling | None:
        """The largest tier that is made; None when every one is."""
        with self._looking() as connection:
            return read_ceiling(connection)

    def _update_claimed(self, claim: Claim, **values: Any) -> None:
        with self._changing() as connection:
            changed = connection.execute(JOBS.update().where(holds(claim)).values(values))
        if not changed.rowcount:
            raise lost(claim)


def _submitted_before(connection: sa.Connection, spec: JobSpec) -> Job | None:
    key = spec.idempotency_key
    return None if key is None else _submitted_under(connection, spec.owner, key)


def _submitted_under(connection: sa.Connection, owner: str, key: str) -> Job | None:
    same = (JOBS.c.owner == owner) & (JOBS.c.idempotency_key == key)
    row = connection.execute(sa.select(JOBS).where(same)).first()
    return None if row is None else job_of(row)


def new_job_id() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


def sqlite_url(path: Path) -> str:
    """URL of a SQLite database file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string()
