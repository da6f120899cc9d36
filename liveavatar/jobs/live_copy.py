"""A job's growing file as it lies in a storage, copied to this machine while it grows."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

from liveavatar.errors import UnknownJobError
from liveavatar.jobs.job import Job
from liveavatar.jobs.mirror import Begun, Mirror
from liveavatar.jobs.store import JobStore


class LiveCopy:
    """The growing file of one take of a job, as far as it is known to stay as it is.

    Several attempts may be writing parts at a time, and only those that the next attempt counts
    belong to the video. So a part is fetched first, and is taken when the job is still at the
    attempt it was at before: who claims the job from now on will find that part there.

    Args:
        store: at which attempt the job is.
        mirror: where the parts are.
        job_id: of a job that exists.
        take: which of its growing files.
        path: of the copy; what lies there is replaced.
    """

    def __init__(self, store: JobStore, mirror: Mirror, job_id: str, take: int, path: Path) -> None:
        self.path = path
        self.is_whole = False
        """Whether nothing more will come."""
        self.used_at = time.monotonic()
        """When it was brought up to date last."""
        self._store = store
        self._mirror = mirror
        self._job_id = job_id
        self._take = take
        self._begun: Begun | None = None
        self._taken: dict[int, int] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)

    def advance(self, within_s: float = math.inf) -> None:
        """Fetch what there is by now.

        Args:
            within_s: leave the rest for the next time when it takes longer.

        Raises:
            SpoolUnavailableError, StoreUnavailableError: storage or database are away.
            OSError: the disk cannot be written.
        """
        with self._lock:
            self.used_at = time.monotonic()
            if self.is_whole:
                return
            try:
                job = self._store.get(self._job_id)
                begun = self._look_up(job) if job.take <= self._take else None
                has_all = begun is None or self._fetch(job, begun, time.monotonic() + within_s)
                self.is_whole = job.take > self._take or (job.state.has_ended and has_all)
            except UnknownJobError:
                self.is_whole = True

    def _look_up(self, job: Job) -> Begun | None:
        """How the attempt began whose parts may be taken; None where that is not known yet."""
        if self._begun is not None and self._begun.attempt == job.attempt:
            return self._begun
        begun = self._mirror.begun(self._job_id, job.attempt)
        # The newest attempt may not have said yet what it goes on with.
        if begun is None or (begun.attempt != job.attempt and not job.state.has_ended):
            return None
        self._begun = begun if begun.take == self._take else None
        return self._begun

    def _fetch(self, job: Job, begun: Begun, deadline: float) -> bool:
        """Take what there is; returns whether that was all."""
        for attempt, end in (*begun.goes_on, (begun.attempt, None)):
            first = self._taken.get(attempt, 0)
            for data in self._mirror.parts(self._job_id, attempt, first, end):
                # What an attempt goes on with stays; what it adds may be cut off by the next one.
                if end is None and self._store.get(self._job_id).attempt != job.attempt:
                    return False
                with self.path.open("ab") as file:
                    file.write(data)
                self._taken[attempt] = self._taken.get(attempt, 0) + 1
                if time.monotonic() > deadline:
                    return False
        return True
