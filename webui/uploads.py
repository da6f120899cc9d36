"""Multipart forms streamed to the spool: limits hold before a byte too many is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from fastapi import Request

from liveavatar.jobs.spool import Spool, writable
from liveavatar.media.upload import HEAD_BYTES, sniff
from webui.multipart import read_parts
from webui.schemas import RefusalError
from webui.settings import Limits
from webui.submission import Submission

_MAX_TEXT_BYTES = 16_384
_FILES = {"portrait": "picture", "speech": "sound"}


@dataclass
class Form:
    """A received form.

    Attributes:
        texts: fields by name.
        files: uploaded files by field, in a folder that goes when the request ends.
    """

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def submission(self) -> Submission:
        """The form as `Service` takes it; unknown fields are passed over."""
        text = self.texts.get
        return Submission(
            portrait=self.files.get("portrait"),
            speech=self.files.get("speech"),
            prompt=text("prompt", ""),
            tier=text("tier", ""),
            num_clip=text("num_clip"),
            infer_frames=text("infer_frames"),
            sample_steps=text("sample_steps"),
            seed=text("seed"),
            online_decode=text("online_decode"),
            size=text("size", ""),
            title=text("title", ""),
            idempotency_key=text("idempotency_key", ""),
        )


@asynccontextmanager
async def received_form(request: Request, spool: Spool, limits: Limits) -> AsyncIterator[Form]:
    """Receive a form; its files are gone when the block is left.

    Raises:
        RefusalError: it is no such form, or a part of it is too large or of the wrong kind.
        SpoolUnavailableError: it cannot be written.
    """
    folder = await to_thread.run_sync(spool.new_upload)
    parts = _FormParts(folder, limits)
    try:
        with writable():
            await read_parts(request, parts)
        yield parts.form
    finally:
        parts.close()
        await to_thread.run_sync(spool.discard, folder)


class _FormParts:
    """Parts of a form, as they come, to texts and files."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.form = Form()
        self._folder = folder
        self._most_bytes = {"portrait": limits.portrait_bytes, "speech": limits.speech_bytes}
        self._name = ""
        self._value = bytearray()
        self._file: BinaryIO | None = None
        self._file_bytes = 0

    def begin(self, name: str, file_name: str | None) -> None:  # noqa: ARG002
        """Open the file of a field that holds one, however the sender calls it."""
        self._name = name
        self._value.clear()
        if name in _FILES:
            if name in self.form.files:
                raise RefusalError(400, f"{name}: was given twice", name)
            self._file = (self._folder / name).open("wb")
            self._file_bytes = 0

    def take(self, data: bytes) -> None:
        """Keep bytes, up to the limit of their field."""
        if self._file is None:
            self._value += data
            if len(self._value) > _MAX_TEXT_BYTES:
                raise RefusalError(413, f"{self._name}: is too long", self._name)
            return
        self._file_bytes += len(data)
        most = self._most_bytes[self._name]
        if self._file_bytes > most:
            raise RefusalError(
                413,
                f"{self._name}: is larger than {most / 1e6:g} MB, the most that is accepted; "
                "shorten or compress it",
                self._name,
            )
        if self._file_bytes == len(data):
            _require_kind(self._name, data[:HEAD_BYTES])
        self._file.write(data)

    def end(self) -> None:
        """Count the field as given."""
        if self._file is not None:
            self.close()
            if self._file_bytes:  # a browser sends an empty file where none was chosen
                self.form.files[self._name] = self._folder / self._name
            return
        try:
            self.form.texts[self._name] = self._value.decode("utf-8")
        except UnicodeDecodeError:
            raise RefusalError(400, f"{self._name}: expected UTF-8 text", self._name) from None

    def close(self) -> None:
        """Close the file at hand."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _require_kind(name: str, head: bytes) -> None:
    """Refuse what its first bytes show to be of another kind, before the rest is written.

    Unknown beginnings pass; whoever decodes the file says more.
    """
    kind = sniff(head)
    fitting = ("picture",) if _FILES[name] == "picture" else ("sound", "video")
    if kind is not None and kind.family not in fitting:
        what = "a picture" if name == "portrait" else "a sound or video file"
        raise RefusalError(415, f"{name}: is {kind.label}; expected {what}", name)
