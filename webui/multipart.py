"""Multipart bodies read as they come: each part is handed on in pieces, nothing is held back."""

from __future__ import annotations

from email.message import Message
from typing import Protocol

from anyio import to_thread
from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError

from webui.schemas import RefusalError

_MAX_PARTS = 32
_MAX_HEADER_BYTES = 4096


class Parts(Protocol):
    """Who takes the parts of a body; RefusalError from any of these refuses the body."""

    def begin(self, name: str, file_name: str | None) -> None:
        """A part begins: the field's name, and the file's where it is one."""

    def take(self, data: bytes) -> None:
        """Bytes of the part, at least one."""

    def end(self) -> None:
        """The part is whole."""


async def read_parts(request: Request, parts: Parts) -> None:
    """Hand the parts of a request's body to `parts`, in a thread.

    Raises:
        RefusalError: it is no whole multipart body, or `parts` refuses it. The rest of the body is
            read and dropped first, so that browsers show the answer.
    """
    reader = _PartReader(request.headers.get("content-type", ""), parts)
    async for chunk in request.stream():
        if reader.refusal is None:
            await to_thread.run_sync(reader.write, chunk)
    reader.finish()


class _PartReader:
    """Bytes of a body to the calls of `Parts`."""

    def __init__(self, content_type: str, parts: Parts) -> None:
        self.refusal: RefusalError | None = None
        self._parts = parts
        self._num_parts = 0
        self._header: list[bytes] = [b"", b""]
        self._disposition = b""
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
                "on_part_end": parts.end,
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

    def finish(self) -> None:
        """Raise RefusalError when the body was refused or is cut off."""
        if self.refusal is None and not self._whole:
            self.refusal = RefusalError(400, "the form is cut off; send it again")
        if self.refusal is not None:
            raise self.refusal

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise RefusalError(400, f"the form has more than {_MAX_PARTS} fields")
        self._disposition = b""

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]
        self._limit_header()

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]
        self._limit_header()

    def _limit_header(self) -> None:
        if sum(map(len, self._header)) > _MAX_HEADER_BYTES:
            raise RefusalError(400, "a field of the form has a header that is too long")

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
        self._parts.begin(name, message.get_filename())

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._parts.take(data[start:end])

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
