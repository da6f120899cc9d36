"""The files of held jobs where machines share no folder: fetched, then stored as they grow.

Each supervisor has a folder of its own. What an attempt at a job goes on with is fetched into it;
two threads for each job store what is new: one the parts of the growing file, one resume points,
which are larger. A storage that is away makes them wait, not the group.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress

from liveavatar.engine.job_files import JobFiles
from liveavatar.engine.messages import RenderJob
from liveavatar.errors import MediaError, SpoolUnavailableError
from liveavatar.jobs.job import Job
from liveavatar.jobs.mirror import Begun, Mirror
from liveavatar.jobs.spool import JobFolder, Spool
from liveavatar.jobs.storage import patiently
from liveavatar.media.live_file import complete_length

_PATIENCE_S, _STILL_S = 20.0, 60.0
_LEAVE_S = 3.0  # the supervisor waits that long, and has other leases to renew
_PARTS_EVERY_S, _POINTS_EVERY_S, _AGAIN_S = 0.1, 0.5, 1.0

logger = logging.getLogger(__name__)


class MirroredFiles(JobFiles):
    """Files of which others only see what a storage holds.

    Args:
        spool: a folder that no other supervisor uses.
        mirror: the jobs' files in the storage.
    """

    def __init__(self, spool: Spool, mirror: Mirror) -> None:
        super().__init__(spool, shares=True)
        self._mirror = mirror
        self._lock = threading.Lock()
        self._growing: dict[tuple[str, int], _Growing] = {}
        self._left: set[tuple[str, int]] = set()

    def prepare(self, number: int, job: Job) -> RenderJob:
        """Fetch what there is of a job, decode its inputs, begin to store what is made.

        Raises:
            MediaError: an input cannot be read, or the disk cannot be written.
            SpoolUnavailableError: the storage is away.
        """
        folder = self._spool.job(job.id)
        last = patiently(lambda: self._fetch(job, folder), _PATIENCE_S)
        render = super().prepare(number, job)
        take = max(1, job.take) if render.resumes else job.take + 1
        goes_on = last.goes_on if render.resumes and last is not None else ()
        begun = Begun(job.attempt, take, goes_on)
        patiently(lambda: self._mirror.begin(job.id, begun), _PATIENCE_S)
        growing = _Growing(self._mirror, job, folder, render)
        with self._lock:
            is_held = (job.id, job.attempt) not in self._left
            if is_held:
                self._growing[job.id, job.attempt] = growing
        if not is_held:
            growing.stop()
            shutil.rmtree(folder.path, ignore_errors=True)
        return render

    def show_first_frames(self, job: Job) -> None:
        """Make the thumbnail while the video grows, and store it."""
        super().show_first_frames(job)
        with suppress(SpoolUnavailableError):
            self._mirror.put_result(job.id, job.attempt, self._spool.job(job.id).thumbnail)

    def finish(self, job: Job, frames: int) -> None:
        """Make the finished files and store all that is not stored yet; then points are removed.

        Raises:
            MediaError: the growing file cannot be read or the disk cannot be written.
            SpoolUnavailableError: the storage is away.
        """
        growing = self._growing[job.id, job.attempt]
        growing.require_still()
        super().finish(job, frames)
        growing.store_rest()
        folder = self._spool.job(job.id)
        for path in (folder.video, folder.thumbnail):
            self._mirror.put_result(job.id, job.attempt, path)
        self._mirror.remove_points(job.id, job.attempt)

    def leave(self, job: Job, *, goes_on: bool) -> None:
        """Forget a job here; where somebody goes on with it, he finds all that is whole."""
        folder = self._spool.job(job.id)
        with self._lock:
            growing = self._growing.pop((job.id, job.attempt), None)
            if growing is None:
                self._left.add((job.id, job.attempt))
        is_still = growing is not None and growing.stop(_LEAVE_S)
        if self._mirror.storage.complaint() is None:
            with suppress(SpoolUnavailableError, MediaError):
                if growing is not None and is_still and goes_on:
                    growing.store_rest()
                self._mirror.put_result(job.id, job.attempt, folder.failure_log)
        shutil.rmtree(folder.path, ignore_errors=True)

    def _fetch(self, job: Job, folder: JobFolder) -> Begun | None:
        """Make a job's folder anew from what is stored; returns what may be gone on with."""
        shutil.rmtree(folder.path, ignore_errors=True)
        names = job.spec.portrait_name, job.spec.speech_name
        self._mirror.fetch_inputs(job.id, names, folder.path)
        last = self._mirror.begun(job.id, job.attempt - 1, max(1, job.take))
        if last is None:
            return None
        goes_on = self._mirror.fetch_live(job.id, last, folder.live)
        if not job.faults:  # else a point may be what is wrong
            attempts = [attempt for attempt, _ in goes_on.goes_on]
            self._mirror.fetch_points(job.id, attempts, folder.resume)
        return goes_on


class _Growing:
    """What one attempt at a job makes, stored while it is made."""

    def __init__(self, mirror: Mirror, job: Job, folder: JobFolder, render: RenderJob) -> None:
        self._mirror = mirror
        self._job_id, self._attempt = job.id, job.attempt
        self._live, self._resume = render.live_path, folder.resume
        self._stored_bytes = render.live_path.stat().st_size if render.resumes else 0
        self._num_parts = 0
        self._fetched = self._points()
        self._stored: set[str] = set()
        self._threads = (
            _Repeated(self.store_rest, _PARTS_EVERY_S, f"parts of {job.id[:8]}"),
            _Repeated(self._store_points, _POINTS_EVERY_S, f"points of {job.id[:8]}"),
        )

    def stop(self, timeout_s: float = 0.0) -> bool:
        """Store nothing more by itself; returns whether no part is being stored any more."""
        for thread in self._threads:
            thread.stop()
        return self._threads[0].wait(timeout_s)

    def require_still(self) -> None:
        """Store nothing more by itself, points neither; SpoolUnavailableError when that hangs."""
        self.stop(0)
        if not all(thread.wait(_STILL_S) for thread in self._threads):
            raise SpoolUnavailableError("the storage of the videos does not answer")

    def store_rest(self) -> None:
        """Store what the growing file holds beyond the parts that are stored.

        Raises:
            MediaError: it cannot be read.
            SpoolUnavailableError: the storage is away.
        """
        if not self._live.exists():  # not begun yet
            return
        length = complete_length(self._live, self._stored_bytes)
        if length <= self._stored_bytes:
            return
        with self._live.open("rb") as file:
            file.seek(self._stored_bytes)
            data = file.read(length - self._stored_bytes)
        self._mirror.put_part(self._job_id, self._attempt, self._num_parts, data)
        self._num_parts += 1
        self._stored_bytes = length

    def _store_points(self) -> None:
        present = self._points()
        for name in sorted(present - self._fetched - self._stored):
            with suppress(FileNotFoundError):  # a newer one has replaced it
                self._mirror.put_point(self._job_id, self._attempt, name, self._resume / name)
                self._stored.add(name)
        for name in sorted(self._stored - present):
            self._mirror.remove_point(self._job_id, self._attempt, name)
            self._stored.discard(name)

    def _points(self) -> set[str]:
        paths = self._resume.glob("*/[!.]*")
        return {str(path.relative_to(self._resume)) for path in paths}


class _Repeated:
    """Does something again and again in a thread; what cannot be done now is done later."""

    def __init__(self, action: Callable[[], None], every_s: float, name: str) -> None:
        self._action = action
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being done now; does not wait for that."""
        self._stopped.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; returns whether it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        wait_s = self._every_s
        while not self._stopped.wait(wait_s):
            try:
                self._action()
                wait_s = self._every_s
            except (SpoolUnavailableError, MediaError, OSError):
                wait_s = _AGAIN_S
