"""What a web server has of files in a storage: copies, fetched when they are wanted."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from liveavatar.errors import LiveAvatarError, MediaError, SpoolUnavailableError, UnknownJobError
from liveavatar.jobs.job import Job, JobState
from liveavatar.jobs.live_copy import LiveCopy
from liveavatar.jobs.mirror import Mirror
from liveavatar.jobs.spool import JobFolder, Made, Spool
from liveavatar.jobs.store import JobStore

logger = logging.getLogger(__name__)

_UNUSED_S = 3600.0
_LOOK_EVERY_S = 3.0
_REMEMBERED = 10_000


class Copies:
    """Growing and finished files of a storage, in a folder that no other web server uses.

    Args:
        store: the jobs.
        spool: the folder.
        mirror: the jobs' files in the storage.
    """

    def __init__(self, store: JobStore, spool: Spool, mirror: Mirror) -> None:
        self._store = store
        self._spool = spool
        self._mirror = mirror
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._fetching: dict[Path, threading.Lock] = {}
        self._live: dict[tuple[str, int], LiveCopy] = {}
        self._used: dict[str, float] = {}
        self._made: dict[tuple[str, int, JobState], tuple[float, Made]] = {}
        self._strangers: set[str] = set()
        self._swept_at = 0.0

    def live(self, job_id: str, take: int) -> LiveCopy:
        """The copy of a job's growing file."""
        with self._lock:
            self._used[job_id] = time.monotonic()
            copy = self._live.get((job_id, take))
            if copy is None:
                path = self._spool.job(job_id).path / f"take.{take}.mp4"
                copy = LiveCopy(self._store, self._mirror, job_id, take, path)
                self._live[job_id, take] = copy
            return copy

    def fetch(self, job: Job, path: Path) -> Path:
        """Let a finished file of a job's folder be there, if there is one; returns its path.

        Raises:
            SpoolUnavailableError: the storage is away.
        """
        return self._fetch(job, path, lambda: self._mirror.fetch_result(job.id, job.attempt, path))

    def fetch_poster(self, job: Job, path: Path) -> Path:
        """Let the small picture of a job's portrait be there, if there is one; as `fetch`."""
        with suppress(MediaError):
            name, folder = path.name, path.parent
            self._fetch(job, path, lambda: self._mirror.fetch_inputs(job.id, [name], folder))
        return path

    def made(self, job: Job, folder: JobFolder) -> Made:
        """Which finished files a job has; what cannot be asked for now counts as not there."""
        if job.state is JobState.DONE:
            return Made(video=True, thumbnail=True)
        if not job.frames or self._mirror.storage.complaint() is not None:
            return Made(video=False, thumbnail=False)
        key = job.id, job.attempt, job.state
        asked_at, made = self._made.get(key, (0.0, Made(video=False, thumbnail=False)))
        is_known = job.state.has_ended or made.thumbnail
        if asked_at and (is_known or time.monotonic() - asked_at < _LOOK_EVERY_S):
            return made
        if job.state.has_ended:
            return self._ask(job, folder, made)
        # It will be asked for again; nobody queues up behind one whose question hangs.
        if not self._asking.acquire(blocking=False):
            return made
        try:
            return self._ask(job, folder, made)
        finally:
            self._asking.release()

    def sweep(self) -> None:
        """Remove copies that nobody used for an hour, and what the storage holds of no job.

        Files may be stored for a job that is just being submitted, or of one that was deleted while
        the storage was away or somebody still wrote. So who is no job twice, an hour apart, is
        removed.
        """
        now = time.monotonic()
        for path in list(self._spool.job_folders()):
            self._remove_if_unused(path, now)
        if self._swept_at and now - self._swept_at < _UNUSED_S:
            return
        self._swept_at = now
        strangers = {job_id for job_id in self._mirror.jobs() if self._is_unknown(job_id)}
        for job_id in strangers & self._strangers:
            logger.info("job %s: removing what is left of it in the storage", job_id)
            self._mirror.remove(job_id)
        self._strangers = strangers
        for job_id in self._mirror.with_points():
            with suppress(LiveAvatarError):
                if self._store.get(job_id).state.has_ended:
                    self._mirror.remove_all_points(job_id)

    def _fetch(self, job: Job, path: Path, load: Callable[[], object]) -> Path:
        with self._lock:
            self._used[job.id] = time.monotonic()
            fetching = self._fetching.setdefault(path, threading.Lock())
        with fetching:
            if not path.exists():
                if (cause := self._mirror.storage.complaint()) is not None:
                    raise SpoolUnavailableError(f"{cause} now")  # at once, and not one by one
                load()
        return path

    def _ask(self, job: Job, folder: JobFolder, otherwise: Made) -> Made:
        names = folder.video.name, folder.thumbnail.name
        try:
            video, thumbnail = self._mirror.has_result(job.id, job.attempt, names)
        except SpoolUnavailableError:
            return otherwise
        if len(self._made) >= _REMEMBERED:
            self._made.clear()
        made = Made(video=video and job.state.has_ended, thumbnail=thumbnail)
        self._made[job.id, job.attempt, job.state] = time.monotonic(), made
        return made

    def _is_unknown(self, job_id: str) -> bool:
        try:
            self._store.get(job_id)
        except UnknownJobError:
            return True
        return False

    def _remove_if_unused(self, path: Path, now: float) -> None:
        with self._lock:
            copies = {key: copy for key, copy in self._live.items() if key[0] == path.name}
            uses = [self._used.setdefault(path.name, now)]
            used_at = max(uses + [copy.used_at for copy in copies.values()])
            if now - used_at <= _UNUSED_S:
                return
            del self._used[path.name]
            for key in copies:
                del self._live[key]
            for known in [known for known in self._fetching if known.parent == path]:
                del self._fetching[known]
            shutil.rmtree(path, ignore_errors=True)
