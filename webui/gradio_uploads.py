"""`POST /upload` in place of Gradio's: only media, within limits, under names of our own.

Gradio 4.25 takes any number of files of any kind and size, and keeps each under the hash of its
content, where whoever has the same file finds it, and leaves those that are broken off. Its page
and its client get the same answer here: a list of paths.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from fastapi import APIRouter, Request

from liveavatar.media.upload import HEAD_BYTES, sniff
from webui.multipart import read_parts
from webui.schemas import RefusalError
from webui.settings import Limits

KEPT_S = 6 * 3600.0
"""How long a form that is filled in may wait to be sent, seconds."""

_MAX_FILES = 8
_MAX_NAME = 60
_MOST_TRACKED = 256
_TRACKED_S = 10.0


def upload_route(folder: Path, limits: Limits) -> APIRouter:
    """The route.

    Args:
        folder: where Gradio looks for uploads.
        limits: how large files may be, and all of them together.
    """
    router = APIRouter(include_in_schema=False)

    @router.post("/upload")
    @router.post("/upload/")
    async def upload(request: Request, upload_id: str = "") -> list[str]:
        """Keep files for the form; answers with their paths."""
        stated = int(request.headers.get("content-length", 0))
        await to_thread.run_sync(_require_room, folder, stated, limits)
        parts = _Files(folder, limits, _Progress(upload_id))
        try:
            await read_parts(request, parts)
        except BaseException:
            parts.discard()
            raise
        finally:
            parts.progress.end()
        return [str(path) for path in parts.paths]

    return router


def sweep(folder: Path, older_than_s: float) -> int:
    """Remove files that nobody changed for so long; returns how many folders went."""
    removed = 0
    limit = time.time() - older_than_s
    with suppress(FileNotFoundError):
        for entry in list(folder.iterdir()):
            with suppress(FileNotFoundError):
                if entry.stat().st_mtime < limit:
                    shutil.rmtree(entry, ignore_errors=True)
                    removed += 1
    return removed


def _require_room(folder: Path, coming: int, limits: Limits) -> None:
    """Refuse an upload that would make all of them together too large; old ones go first."""
    sweep(folder, KEPT_S)
    held = sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file())
    if held + coming > limits.uploads_bytes:
        raise RefusalError(507, "too many uploads wait to be used; try again later")
    if shutil.disk_usage(folder).free < limits.free_disk_bytes:
        raise RefusalError(507, "the server's disk is nearly full; no files are taken now")


class _Progress:
    """What Gradio's page asks about a running upload; nothing is kept of it afterwards."""

    def __init__(self, upload_id: str) -> None:
        from gradio.routes import file_upload_statuses

        self._statuses = file_upload_statuses
        is_name = re.fullmatch(r"\w{1,40}", upload_id) is not None
        has_room = len(file_upload_statuses._statuses) < _MOST_TRACKED
        self._id = upload_id if is_name and has_room else None
        if self._id is not None:
            self._statuses.track(self._id)

    def add(self, file_name: str, data: bytes) -> None:
        """Count bytes of a file."""
        if self._id is not None and self._statuses._statuses.get(self._id) is not None:
            self._statuses.append(self._id, file_name, data)

    def end(self) -> None:
        """Tell that all is received, to whoever asks within a while."""
        if self._id is not None:
            self._statuses.set_done(self._id)
            loop = asyncio.get_running_loop()
            loop.call_later(_TRACKED_S, self._statuses.stop_tracking, self._id)


class _Files:
    """Parts of an upload, each to a file in a folder of its own."""

    def __init__(self, folder: Path, limits: Limits, progress: _Progress) -> None:
        self.paths: list[Path] = []
        self.progress = progress
        self._folder = folder
        self._limits = limits
        self._name: str | None = None
        self._head = b""
        self._file: BinaryIO | None = None
        self._num_bytes = self._most = 0

    def begin(self, name: str, file_name: str | None) -> None:
        """Expect a file; what is none is refused."""
        if name != "files" or file_name is None:
            raise RefusalError(400, "expected nothing but files, in fields of the name files")
        if len(self.paths) == _MAX_FILES:
            raise RefusalError(413, f"expected at most {_MAX_FILES} files at once")
        self._name, self._head, self._num_bytes = file_name, b"", 0

    def take(self, data: bytes) -> None:
        """Keep bytes, once the first of them show a kind that is read here."""
        assert self._name is not None
        self.progress.add(self._name, data)
        if self._file is None:
            self._head += data
            if len(self._head) < HEAD_BYTES:
                return
            data = self._open()
        self._write(data)

    def end(self) -> None:
        """Close the file; one shorter than its head is looked at only now."""
        if self._file is None:
            self._write(self._open())
        self._close()

    def discard(self) -> None:
        """Remove what came so far."""
        self._close()
        for path in self.paths:
            shutil.rmtree(path.parent, ignore_errors=True)

    def _open(self) -> bytes:
        """Make the file, under a name that tells its kind; gives what is to be written."""
        if not self._head:
            raise RefusalError(415, "the file is empty (0 bytes); choose another")
        kind = sniff(self._head)
        if kind is None or kind.family == "other":
            what = "of an unknown kind" if kind is None else kind.label
            raise RefusalError(415, f"the file is {what}; expected a picture, a sound or a video")
        is_picture = kind.family == "picture"
        limits = self._limits
        self._most = limits.portrait_bytes if is_picture else limits.speech_bytes
        own = self._folder / secrets.token_hex(16)
        own.mkdir(mode=0o700)
        self.paths.append(own / f"{_stem(self._name or '')}.{kind.suffix}")
        self._file = self.paths[-1].open("xb")
        return self._head

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._num_bytes += len(data)
        if self._num_bytes > self._most:
            raise RefusalError(
                413, f"the file is larger than {self._most / 1e6:g} MB, the most that is accepted"
            )
        self._file.write(data)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _stem(name: str) -> str:
    """The sender's name for a file without its ending: letters, digits, dashes."""
    words = re.findall(r"\w+", Path(name.replace("\\", "/")).stem)
    return "-".join(words)[:_MAX_NAME].encode("ascii", "ignore").decode() or "file"
