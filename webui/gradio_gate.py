"""The gate in front of Gradio 4.25: only what our page and `gradio_client` use comes through.

Gradio 4.25.0 is pinned and has known holes. What is not listed here is shut; what is, passes only
with values that name no file and no address of the sender's choosing. `gradio_locks.py` closes what
lies deeper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.client_pace import CallPace
from webui.content_policy import INERT
from webui.guard import refuse

if TYPE_CHECKING:
    import gradio as gr

_FILE = "/file="
_READ = re.compile(
    r"/|/(config|info|theme\.css|robots\.txt|favicon\.ico)/?|/(assets|static)/.+"
    r"|/queue/data|/upload_progress|/file=.+"
)
_FOLLOWED = re.compile(r"/call/(submit|status|cancel|result)/[0-9a-f]{32}")
_JOIN, _MESSAGES = "/queue/join", "/queue/data"
_BY_NUMBER = (_JOIN, "/run/predict")  # how programs and how our page call a function
_CALL = re.compile("|".join((*_BY_NUMBER, "/call/(submit|status|cancel|result)/?")))
_CALL_BYTES = 1_000_000

# Only these are shown by a browser; another file that users give is for saving.
_SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif", "audio/", "video/")


class GradioGate:
    """ASGI: stands in for Gradio's application where that is mounted.

    Args:
        app: Gradio's application.
        files: the only folder out of which it may serve and take files.
        page: the page it serves.
    """

    def __init__(self, app: ASGIApp, files: Path, page: gr.Blocks) -> None:
        self._app = app
        self._files = files.resolve()
        self._page = page
        self._pace = CallPace()

    @property
    def routes(self) -> list[Any]:
        """Gradio's routes, for whoever walks all routes of the application."""
        return list(getattr(self._app, "routes", ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if scope["type"] != "http" or not _is_open(scope["method"], path):
            await refuse(404, "there is nothing here")(scope, receive, send)
            return
        if (session := _followed(scope)) is not None and not self._is_known(session):
            await refuse(404, "there is no such call")(scope, receive, send)
            return
        if path.startswith(_FILE):
            if not self._may_read(path.removeprefix(_FILE)):
                await refuse(403, "this file is not served")(scope, receive, send)
                return
            send = _inert(send)
        if scope["method"] == "POST":
            body, refusal = await self._checked_body(receive, path)
            if refusal is not None:
                await refuse(*refusal)(scope, receive, send)
                return
            receive = _replayed(body, receive)
        if path == _JOIN:
            send = self._pace.noting(send)
        elif path == _MESSAGES:
            send = self._pace.holding(send)
        await self._app(scope, receive, send)

    def _is_known(self, session: str) -> bool:
        """Whether calls of a session wait; Gradio breaks off an answer and logs pages otherwise."""
        return session in self._page._queue.pending_messages_per_session

    def _may_read(self, name: str) -> bool:
        """Whether a name is that of a file in our folder, wherever links lead."""
        if "://" in name or name.startswith("//"):
            return False
        try:
            path = Path(name).resolve()
        except (ValueError, OSError, RuntimeError):  # no name at all, or links in a circle
            return False
        return path.is_relative_to(self._files) and path != self._files

    def _misfit(self, call: dict[str, Any], *, is_queued: bool) -> str | None:
        """What does not fit about a call by number; Gradio would log pages about it."""
        functions = self._page.dependencies
        number: Any = call.get("fn_index")
        if number not in range(len(functions)):
            return "fn_index: there is no such function"
        function = functions[int(number)]
        if is_queued != (function["queue"] is not False):
            return "fn_index: this function is called over the other route"
        expected = len(function["inputs"])
        if len(call["data"]) != expected:
            return f"data: expected {expected} values, got {len(call['data'])}"
        return None

    async def _checked_body(
        self, receive: Receive, route: str
    ) -> tuple[bytes, tuple[int, str] | None]:
        """Read a small JSON body; no value in it may name a file or an address of its own."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _CALL_BYTES:
                return b"", (413, f"the call is larger than {_CALL_BYTES / 1e6:g} MB")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        try:
            content = json.loads(body, parse_constant=_no_number)
            json.dumps(content, ensure_ascii=False).encode()  # halves of characters fail here
            paths = list(_paths_in(content))
        except (ValueError, RecursionError):
            return b"", (400, "expected a body of JSON")
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            return b"", (422, "expected an object with a list of data")
        session = content.get("session_hash")
        by_number = route in _BY_NUMBER
        if (by_number or session is not None) and not _is_session(session):
            return b"", (422, "session_hash: expected 1 to 64 letters, digits and dashes")
        for path in paths:
            if not isinstance(path, str) or not self._may_read(path):
                return b"", (403, "path: names a file that was not uploaded here")
        if by_number and (misfit := self._misfit(content, is_queued=route == _JOIN)):
            return b"", (422, misfit)
        return bytes(body), None


def _is_open(method: str, path: str) -> bool:
    if method in ("GET", "HEAD"):
        return (_READ.fullmatch(path) or _FOLLOWED.fullmatch(path)) is not None
    return method == "POST" and _CALL.fullmatch(path) is not None


def _followed(scope: Scope) -> str | None:
    """The session whose calls a request follows; None where it follows none."""
    path: str = scope["path"]
    if path == _MESSAGES:
        return QueryParams(scope["query_string"]).get("session_hash", "")
    return path.rpartition("/")[2] if _FOLLOWED.fullmatch(path) else None


def _paths_in(content: Any) -> Iterable[Any]:
    """Values under the key "path", however deep, also in strings that hold JSON."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
            try:
                waiting.append(json.loads(value))
            except (ValueError, RecursionError):
                continue


def _is_session(name: Any) -> bool:
    """Whether calls can be filed under a name; Gradio fails with an empty one."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is not None


def _no_number(word: str) -> None:
    """Refuse NaN and Infinity: Python reads them, JSON has none, and Gradio cannot answer them."""
    raise ValueError(word)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _inert(send: Send) -> Send:
    """Send a file of a user's: nothing in it runs, and only pictures and sounds are shown."""

    async def inert(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = INERT
            if not headers.get("content-type", "").startswith(_SHOWN):
                headers["Content-Type"] = "application/octet-stream"
                headers["Content-Disposition"] = "attachment"
        await send(message)

    return inert
