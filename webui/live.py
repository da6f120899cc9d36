"""Growing videos to any number of viewers.

One watcher per growing file looks how far it reaches, however many viewers there are; each viewer
reads the file at its own pace, so that a slow one slows only itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import BinaryIO

from anyio import to_thread

from liveavatar.errors import LiveAvatarError, MediaError
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore
from liveavatar.media.live_file import complete_length

_LOOK_EVERY_S = 0.02
_ASK_EVERY_S = 0.25
_READ_BYTES = 1 << 16
_COMPARED_BYTES = 1 << 16
_READ_AT_ONCE_BYTES = 1 << 22

logger = logging.getLogger(__name__)


class _Watch:
    """The growing file of one take of a job, as far as it is whole.

    Attributes:
        length: bytes of whole segments.
        ended: whether no more will come.
        viewers: how many follow.
        task: what keeps looking.
    """

    def __init__(self, store: JobStore, spool: Spool, job_id: str, take: int) -> None:
        self.length = 0
        self.ended = False
        self.viewers = 0
        self.task: asyncio.Task[None] | None = None
        self._store = store
        self._job_id = job_id
        self._take = take
        self._path = spool.job(job_id).live
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

    def close(self) -> None:
        """Stop looking and close the file."""
        if self.task is not None:
            self.task.cancel()
        for file in (*self._outlived, *([self._file] if self._file else [])):
            file.close()
        self._file = None
        self._outlived.clear()

    def _look(self) -> tuple[int, bool]:
        # Asked first: what was written before the job ended is then seen below.
        ended = self._has_ended()
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
    """

    def __init__(self, store: JobStore, spool: Spool) -> None:
        self._store = store
        self._spool = spool
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

    def read(self, job_id: str, start: int) -> bytes:
        """What there is of a job's growing file from a byte on: whole segments, but a limit."""
        path = self._spool.job(job_id).live
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
            watch = self._watches[key] = _Watch(self._store, self._spool, *key)
            watch.task = asyncio.create_task(watch.keep_looking())
        watch.viewers += 1
        return watch

    def _leave(self, key: tuple[str, int], watch: _Watch) -> None:
        watch.viewers -= 1
        if not watch.viewers:
            watch.close()
            del self._watches[key]
