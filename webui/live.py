"""Growing videos to any number of viewers.

One watcher per growing file looks how far it reaches, however many viewers there are; each viewer
reads the file at its own pace, so that a slow one slows only itself. Where the files are in a
storage, the watcher also keeps a copy up to date, and everybody reads that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from anyio import CapacityLimiter, to_thread

from liveavatar.errors import LiveAvatarError, MediaError
from liveavatar.jobs.copies import Copies
from liveavatar.jobs.live_copy import LiveCopy
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore
from liveavatar.media.live_file import complete_length

_LOOK_EVERY_S = 0.02
_ASK_EVERY_S = 0.25
_READ_BYTES = 1 << 16
_COMPARED_BYTES = 1 << 16
_READ_AT_ONCE_BYTES = 1 << 22
_COPY_EVERY_S = 0.3
_COPY_AGAIN_S = 1.0
_COPIES_AT_ONCE = 32
_READ_WITHIN_S = 2.0

logger = logging.getLogger(__name__)


class _Watch:
    """The growing file of one take of a job, as far as it is whole.

    Attributes:
        length: bytes of whole segments.
        ended: whether no more will come.
        viewers: how many follow.
    """

    def __init__(
        self, store: JobStore, path: Path, job_id: str, take: int, copy: LiveCopy | None
    ) -> None:
        self.length = 0
        self.ended = False
        self.viewers = 0
        self._store = store
        self._job_id = job_id
        self._take = take
        self._path = path
        self._copy = copy
        self._tasks: list[asyncio.Task[None]] = []
        self._file: BinaryIO | None = None
        self._outlived: list[BinaryIO] = []
        self._changed = asyncio.Condition()
        self._asked_at = 0.0

    async def end(self) -> None:
        """Nothing more is looked for."""
        async with self._changed:
            self.ended = True
            self._changed.notify_all()

    async def wait_beyond(self, position: int) -> int:
        """Wait until the file reaches beyond `position` or nothing more comes; its length then."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.ended or self.length > position)
        return self.length

    def read(self, position: int, num_bytes: int) -> bytes:
        """Bytes of the file that `length` covers; blocks as reading a file does."""
        if self._file is None:
            return b""
        return os.pread(self._file.fileno(), num_bytes, position)

    async def keep_looking(self) -> None:
        """Follow the file until its job ends."""
        try:
            while not self.ended:
                length, ended = await to_thread.run_sync(self._look)
                if length != self.length or ended:
                    async with self._changed:
                        self.length, self.ended = length, ended or self.ended
                        self._changed.notify_all()
                if not ended:
                    await asyncio.sleep(_LOOK_EVERY_S)
        except (LiveAvatarError, OSError) as error:
            logger.warning(
                "job %s: its live video is not followed any more: %s", self._job_id, error
            )
        finally:
            await self.end()

    async def keep_copying(self, limiter: CapacityLimiter) -> None:
        """Keep the copy up to date; what cannot be fetched now is waited for."""
        assert self._copy is not None
        while not (self.ended or self._copy.is_whole):
            wait_s = _COPY_EVERY_S
            try:
                # Threads of its own: a storage that hangs must not hold up the others' requests.
                await to_thread.run_sync(self._copy.advance, limiter=limiter)
            except (LiveAvatarError, OSError) as error:
                logger.warning("job %s: its live video waits: %s", self._job_id, error)
                wait_s = _COPY_AGAIN_S
            await asyncio.sleep(wait_s)

    def start(self, limiter: CapacityLimiter) -> None:
        """Begin to look."""
        self._tasks = [asyncio.create_task(self.keep_looking())]
        if self._copy is not None:
            self._tasks.append(asyncio.create_task(self.keep_copying(limiter)))

    def close(self) -> None:
        """Stop looking and close the file."""
        for task in self._tasks:
            task.cancel()
        for file in (*self._outlived, *([self._file] if self._file else [])):
            file.close()
        self._file = None
        self._outlived.clear()

    def _look(self) -> tuple[int, bool]:
        # Asked first: what was written before the job ended is then seen below.
        ended = self._has_ended() if self._copy is None else self._copy.is_whole
        if self._file is None:
            with suppress(FileNotFoundError):
                self._file = self._path.open("rb")
        if self._file is None or not self._is_ours():
            return self.length, ended
        return complete_length(self._path, self.length), ended

    def _is_ours(self) -> bool:
        """Whether the name leads to the file that was opened, or to one that goes on with it.

        On several machines a job that changes the machine goes on in a copy. A later take's file
        begins with other bytes.
        """
        assert self._file is not None
        try:
            if os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                return True
            copy = self._path.open("rb")
        except FileNotFoundError:
            return False
        start = max(0, self.length - _COMPARED_BYTES)
        known = os.pread(self._file.fileno(), self.length - start, start)
        if not known or os.pread(copy.fileno(), len(known), start) != known:
            copy.close()
            return False
        self._outlived.append(self._file)  # viewers may be reading it at this moment
        self._file = copy
        return True

    def _has_ended(self) -> bool:
        now = time.monotonic()
        if now - self._asked_at < _ASK_EVERY_S:
            return False
        self._asked_at = now
        job = self._store.get(self._job_id)
        return job.state.has_ended or job.take > self._take


class LiveStreams:
    """The growing files that somebody watches.

    Args:
        store: tells when a job has ended.
        spool: where the files lie.
        copies: of files that lie elsewhere; None where all are in the spool.
    """

    def __init__(self, store: JobStore, spool: Spool, copies: Copies | None = None) -> None:
        self._store = store
        self._spool = spool
        self._copies = copies
        self._limiter = CapacityLimiter(_COPIES_AT_ONCE)
        self._watches: dict[tuple[str, int], _Watch] = {}
        self._closing = False

    async def follow(self, job_id: str, take: int, start: int) -> AsyncIterator[bytes]:
        """Yield the bytes of a job's growing file from `start` on, until the job ends.

        Only whole segments are given out. It goes on when the job is interrupted and resumed, and
        ends when the job begins anew in another file or the server is stopped.

        Args:
            job_id: a job that exists.
            take: its current take; 0 while it waits, and then its first one is followed.
            start: byte offset, 0 or more.
        """
        key = (job_id, max(1, take))
        watch = self._join(key)
        try:
            position = start
            while not self._closing:
                length = await watch.wait_beyond(position)
                while position < length and not self._closing:
                    size = min(_READ_BYTES, length - position)
                    chunk = await to_thread.run_sync(watch.read, position, size)
                    if not chunk:
                        return
                    yield chunk
                    position += len(chunk)
                if watch.ended and position >= watch.length:
                    return
        finally:
            self._leave(key, watch)

    def read(self, job_id: str, take: int, start: int) -> bytes:
        """What there is of a job's growing file from a byte on: whole segments, but a limit.

        Raises:
            SpoolUnavailableError: it is in a storage that is away.
        """
        path, copy = self._place(job_id, take)
        if copy is not None:
            copy.advance(_READ_WITHIN_S)
        try:
            length = complete_length(path)
            with path.open("rb") as file:
                file.seek(start)
                return file.read(max(0, min(length - start, _READ_AT_ONCE_BYTES)))
        except (MediaError, FileNotFoundError):  # not begun yet
            return b""

    async def close(self) -> None:
        """Let all viewers go after what they are being sent; they ask again elsewhere."""
        self._closing = True
        for watch in list(self._watches.values()):
            await watch.end()

    @property
    def num_viewers(self) -> int:
        """How many follow growing files now."""
        return sum(watch.viewers for watch in self._watches.values())

    def _join(self, key: tuple[str, int]) -> _Watch:
        watch = self._watches.get(key)
        if watch is None:
            path, copy = self._place(*key)
            watch = self._watches[key] = _Watch(self._store, path, *key, copy)
            watch.start(self._limiter)
        watch.viewers += 1
        return watch

    def _place(self, job_id: str, take: int) -> tuple[Path, LiveCopy | None]:
        """Where a growing file is read, and what keeps it up to date if it is a copy."""
        if self._copies is None:
            return self._spool.job(job_id).live, None
        copy = self._copies.live(job_id, take)
        return copy.path, copy

    def _leave(self, key: tuple[str, int], watch: _Watch) -> None:
        watch.viewers -= 1
        if not watch.viewers:
            watch.close()
            del self._watches[key]
