"""The jobs that a supervisor holds, and how each of them leaves it.

Why a group died decides what becomes of its jobs. A rank that was killed or hangs: they go on in
their files, in a new group. A rank whose own work failed: the job it worked on is made once more,
smaller if there is a smaller tier, and fails the second time; the others go on.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from liveavatar.engine.group import Group
from liveavatar.engine.job_files import JobFiles
from liveavatar.engine.ladder import Ladder
from liveavatar.engine.ledger import Ledger
from liveavatar.engine.restarts import one_line
from liveavatar.engine.running_job import RunningJob
from liveavatar.errors import LeaseLostError, StoreUnavailableError, WorkerDiedError
from liveavatar.jobs.job import JobState
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore

logger = logging.getLogger(__name__)

_FILES_S = 10.0


class HeldJobs:
    """Jobs at hand: in the group, before it or after it.

    Args:
        store, ledger: what is told of them.
        spool, files: their files.
        ladder: smaller videos to make where a job fails.
    """

    def __init__(
        self, store: JobStore, ledger: Ledger, spool: Spool, files: JobFiles, ladder: Ladder
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._spool = spool
        self._files = files
        self._ladder = ladder
        self._running: dict[int, RunningJob] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[RunningJob]:
        return iter(list(self._running.values()))  # each may leave while it is looked at

    def get(self, number: int) -> RunningJob | None:
        """The job with a number of the group's; None when it has left."""
        return self._running.get(number)

    def add(self, running: RunningJob) -> None:
        """Hold one more."""
        self._running[running.number] = running

    def end(self, running: RunningJob, state: JobState, error: str | None = None) -> None:
        """Nothing will happen to a job any more."""
        self._drop(running)
        self._ledger.do(partial(running.record_progress, self._store))
        self._ledger.do(partial(self._store.finish, running.claim, state, error))
        logger.info("job %s: %s %s", running.job.id, state.value, error or "")

    def end_rendered(self, running: RunningJob) -> None:
        """Its files are finished."""
        self.end(running, JobState.CANCELLED if running.cut_short else JobState.DONE)

    def fail(self, running: RunningJob, error: str) -> None:
        """End a job that cannot be made; while nothing at all can be written it waits instead."""
        if (cause := self._spool.complaint()) is None:
            self.end(running, JobState.FAILED, error)
            return
        self.put_back(running, f"files could not be written: {cause}")
        logger.warning("job %s: %s", running.job.id, error)

    def put_back(self, running: RunningJob, reason: str) -> None:
        """Requeue a job for something that is no fault of it."""
        self._drop(running, goes_on=True)
        self._ledger.do(partial(self._store.requeue, running.claim, reason, counts=False))
        logger.warning("job %s: waits: %s", running.job.id, reason)

    def take_back_after(self, error: BaseException) -> None:
        """Decide what becomes of the jobs of a group that died."""
        at_fault = self._at_fault(error)
        if at_fault is not None and isinstance(error, WorkerDiedError):
            self._retry_or_fail(at_fault, error)
        self.give_back(one_line(error))

    def give_back(self, reason: str, *, counts: bool = True) -> None:
        """Requeue what the group held; jobs whose files are being finished end as they would."""
        for running in self:
            if running.phase == "ended" and running.work is not None:
                with suppress(Exception):
                    running.work.result(_FILES_S)
                    self.end_rendered(running)
                    continue
            if running.work is not None:
                running.work.cancel()
            self._drop(running, goes_on=True)
            self._ledger.do(partial(running.record_progress, self._store))
            self._ledger.do(partial(self._store.requeue, running.claim, reason, counts=counts))

    @contextmanager
    def unless_lost(self, running: RunningJob, group: Group) -> Iterator[None]:
        """Drop a job that another worker has taken meanwhile; wait for a database that is away."""
        try:
            yield
        except StoreUnavailableError as error:
            logger.warning("%s", error)
        except LeaseLostError as error:
            logger.warning("%s", error)
            self._drop(running)
            if running.phase == "in group":
                group.cancel(running.number)

    def _drop(self, running: RunningJob, *, goes_on: bool = False) -> None:
        del self._running[running.number]
        self._files.leave(running.job, goes_on=goes_on)

    def _at_fault(self, error: BaseException) -> RunningJob | None:
        """The job whose work ended the group: the one that was named, or the one that rendered."""
        if not isinstance(error, WorkerDiedError) or not error.by_its_work:
            return None
        if self._spool.complaint() is not None:  # that is no fault of a job
            return None
        if error.job is not None:
            return self.get(error.job)
        return next((running for running in self if running.phase == "in group"), None)

    def _retry_or_fail(self, running: RunningJob, error: WorkerDiedError) -> None:
        reason, job = one_line(error), running.job
        folder = self._spool.job(job.id)
        with suppress(OSError):
            folder.failure_log.write_text(f"{reason}\n{error.log}", encoding="utf-8")
            shutil.rmtree(folder.resume, ignore_errors=True)  # it may be what is wrong
        if job.faults:
            self.end(running, JobState.FAILED, f"{reason}; it failed twice")
            return
        self._drop(running)
        spec = self._ladder.below(job.spec, reason) or job.spec
        self._ledger.do(partial(self._store.retry, running.claim, reason, spec))
        logger.warning("job %s: once more, at tier %s: %s", job.id, spec.tier, reason)
