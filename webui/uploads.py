"""Multipart forms streamed to the spool: limits hold before a byte too many is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError

from liveavatar.jobs.spool import Spool
from liveavatar.media.upload import HEAD_BYTES, sniff
from webui.schemas import RefusalError
from webui.settings import Limits
from webui.submission import Submission

_MAX_TEXT_BYTES = 16_384
_MAX_PARTS = 32
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
        RefusalError: it is no such form, or a part of it is too large or of the wrong kind. The
            rest of the body is read and dropped first, so that browsers show the answer.
    """
    folder = await to_thread.run_sync(spool.new_upload)
    reader = None
    try:
        reader = _FormReader(request.headers.get("content-type", ""), folder, limits)
        async for chunk in request.stream():
            if reader.refusal is None:
                await to_thread.run_sync(reader.write, chunk)
        yield reader.finish()
    finally:
        if reader is not None:
            reader.close()
        await to_thread.run_sync(spool.discard, folder)


class _FormReader:
    """Parts of a form, as they come, to texts and files."""

    def __init__(self, content_type: str, folder: Path, limits: Limits) -> None:
        self.refusal: RefusalError | None = None
        self._folder = folder
        self._most_bytes = {"portrait": limits.portrait_bytes, "speech": limits.speech_bytes}
        self._form = Form()
        self._num_parts = 0
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
        self._name = ""
        self._value = bytearray()
        self._file: BinaryIO | None = None
        self._file_bytes = 0
        self._whole = False
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._take_header_name,
                "on_header_value": self._take_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        """Take bytes of the body; a refusal is kept for `finish`."""
        try:
            self._parser.write(chunk)
        except RefusalError as refusal:
            self.refusal = refusal
        except MultipartParseError:
            self.refusal = RefusalError(400, "the form is damaged; send it again")

    def finish(self) -> Form:
        """The whole form; RefusalError when it was refused or is cut off."""
        self.close()
        if self.refusal is None and not self._whole:
            self.refusal = RefusalError(400, "the form is cut off; send it again")
        if self.refusal is not None:
            raise self.refusal
        return self._form

    def close(self) -> None:
        """Close the file at hand."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise RefusalError(400, f"the form has more than {_MAX_PARTS} fields")
        self._disposition, self._name = b"", ""
        self._value.clear()

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _end_header(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _end_headers(self) -> None:
        message = Message()
        message["content-disposition"] = self._disposition.decode("utf-8", "replace")
        name = message.get_param("name", header="content-disposition")
        if not isinstance(name, str) or not name.isidentifier() or len(name) > 40:
            raise RefusalError(400, "a field of the form has no proper name")
        self._name = name
        if name in _FILES:
            if name in self._form.files:
                raise RefusalError(400, f"{name}: was given twice", name)
            self._file = (self._folder / name).open("xb")
            self._file_bytes = 0

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._value += data[start:end]
            if len(self._value) > _MAX_TEXT_BYTES:
                raise RefusalError(413, f"{self._name}: is too long", self._name)
            return
        self._file_bytes += end - start
        most = self._most_bytes[self._name]
        if self._file_bytes > most:
            raise RefusalError(
                413,
                f"{self._name}: is larger than {most / 1e6:g} MB, the most that is accepted; "
                "shorten or compress it",
                self._name,
            )
        if self._file_bytes == end - start:
            _require_kind(self._name, data[start : min(end, start + HEAD_BYTES)])
        self._file.write(data[start:end])

    def _end_part(self) -> None:
        if self._file is not None:
            self.close()
            if self._file_bytes:  # a browser sends an empty file where none was chosen
                self._form.files[self._name] = self._folder / self._name
            return
        try:
            self._form.texts[self._name] = self._value.decode("utf-8")
        except UnicodeDecodeError:
            raise RefusalError(400, f"{self._name}: expected UTF-8 text", self._name) from None

    def _end(self) -> None:
        self._whole = True


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary()
    if message.get_content_type() != "multipart/form-data" or not boundary or len(boundary) > 200:
        raise RefusalError(
            415, f"expected a body of multipart/form-data, got {content_type[:60] or 'none'!r}"
        )
    return boundary.encode("latin-1", "replace")


def _require_kind(name: str, head: bytes) -> None:
    """Refuse what its first bytes show to be of another kind, before the rest is written.

    Unknown beginnings pass; whoever decodes the file says more.
    """
    kind = sniff(head)
    fitting = ("picture",) if _FILES[name] == "picture" else ("sound", "video")
    if kind is not None and kind.family not in fitting:
        what = "a picture" if name == "portrait" else "a sound or video file"
        raise RefusalError(415, f"{name}: is {kind.label}; expected {what}", name)
