"""The gate in front of every route: hosts, origins, sizes, and what Gradio 4.25 leaves open.

Gradio 4.25.0 is pinned and has known holes. What our page does not need is refused here, before
Gradio sees it; `gradio_locks.py` closes what lies deeper. Every answer leaves with the headers that
keep content inert.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_JSON_BYTES = 1_000_000
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

# Parts of Gradio that no page of ours uses; each can be turned against the server.
_CLOSED = re.compile(
    r"/(proxy=|custom_component/|component_server|file/|stream/|reset|dev/|run/|login_check|token)"
)
_FILE = "/file="

_CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",  # Gradio's page carries its configuration inline
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "frame-ancestors 'self'",
        "base-uri 'self'",
        "form-action 'self'",
        "object-src 'none'",
    )
)
_INERT_POLICY = "sandbox; default-src 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class GuardSettings:
    """What the guard lets through.

    Attributes:
        hosts: names under which the server may be asked for, beside addresses and localhost.
        public_hosts: names of tunnels that lead here over https; may change while it runs.
        body_bytes: largest request body.
        trusts_proxy: keep X-Forwarded-* headers, which a proxy of the operator's own sets.
        files: the only folder out of which Gradio may serve and take files; None for none.
    """

    hosts: frozenset[str] = frozenset()
    public_hosts: set[str] = field(default_factory=set)
    body_bytes: int = 250_000_000
    trusts_proxy: bool = False
    files: Path | None = None


class Guard:
    """ASGI middleware; wraps everything.

    Args:
        app: what is guarded.
        settings: what is let through.
    """

    def __init__(self, app: ASGIApp, settings: GuardSettings) -> None:
        self._app = app
        self._settings = settings
        self._hosts = settings.hosts | {"localhost", socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers changed on the way in and out."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        if not self._settings.trusts_proxy:
            scope["headers"] = [
                (name, value)
                for name, value in scope["headers"]
                if not name.startswith(b"x-forwarded-") and name != b"forwarded"
            ]
        if _host_name(Headers(scope=scope).get("host", "")) in self._settings.public_hosts:
            scope["scheme"] = "https"
        refusal = self._refusal(scope)
        if refusal is None and _is_json_call(scope):
            body, refusal = await self._checked_body(receive)
            receive = _replayed(body, receive)
        answer = _hardened(scope, send)
        if refusal is not None:
            status, message = refusal
            content = {"error": {"field": None, "message": message}}
            await JSONResponse(content, status_code=status)(scope, receive, answer)
            return
        await self._app(scope, receive, answer)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message, if the request goes no further."""
        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        if not self._is_known(host):
            return 421, (
                f"host: this server is not asked for under the name {host[:60]!r}; name it with "
                "--allow-host"
            )
        if scope["method"] not in _SAFE_METHODS and not _is_same_origin(headers):
            return 403, "origin: the request comes from another site"
        path = unquote(scope["path"])
        if _CLOSED.match(path) or ".." in path.split("/"):
            return 404, "there is nothing here"
        if path.startswith(_FILE) and not self._may_read(path.removeprefix(_FILE)):
            return 403, "this file is not served"
        return self._size_refusal(scope, headers)

    def _size_refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        if scope["method"] in _SAFE_METHODS:
            return None
        stated = headers.get("content-length")
        if stated is None:
            chunked = "transfer-encoding" in headers
            return (411, "content-length: is missing; state it") if chunked else None
        if not stated.isdecimal() or int(stated) > self._settings.body_bytes:
            most = self._settings.body_bytes
            return 413, f"the request is larger than {most / 1e6:g} MB, the most that is accepted"
        if _is_json_call(scope) and int(stated) > _JSON_BYTES:
            return 413, f"the request is larger than {_JSON_BYTES / 1e6:g} MB"
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a name cannot be an attacker's that leads here; addresses never are."""
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return host in self._hosts or host in self._settings.public_hosts
        return True

    def _may_read(self, name: str) -> bool:
        folder = self._settings.files
        if folder is None or "://" in name or name.startswith("//"):
            return False
        path, root = Path(name).resolve(), folder.resolve()
        return path.is_relative_to(root) and path != root

    async def _checked_body(self, receive: Receive) -> tuple[bytes, tuple[int, str] | None]:
        """Read a small JSON body; no value in it may name a file or an address of its own."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > _JSON_BYTES:
                return b"", (413, f"the request is larger than {_JSON_BYTES / 1e6:g} MB")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        try:
            content = json.loads(body) if body else None
        except (ValueError, RecursionError):
            return b"", (400, "expected a body of JSON")
        for path in _paths_in(content):
            if not isinstance(path, str) or not self._may_read(path):
                return b"", (403, "path: names a file that was not uploaded here")
        return body, None


def _is_json_call(scope: Scope) -> bool:
    """Whether this is a call of a Gradio function, whose arguments may name files."""
    path = unquote(scope["path"])
    return scope["method"] == "POST" and path.startswith(("/queue/", "/call/", "/api/predict"))


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
        elif isinstance(value, str) and '"path"' in value:
            try:
                waiting.append(json.loads(value))
            except (ValueError, RecursionError):
                continue


def _host_name(host: str) -> str:
    """Host without its port, lower case; brackets of an IPv6 address stay."""
    name = host.strip().lower()
    return name if name.endswith("]") else re.sub(r":\d*$", "", name)


def _is_same_origin(headers: Headers) -> bool:
    """Whether a browser says that our own page asks; programs say nothing and pass."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read once more, then what follows it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


def _hardened(scope: Scope, send: Send) -> Send:
    """Send with our headers on every answer, and without leave for other sites."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if unquote(scope["path"]).startswith(_FILE):
                headers["Content-Security-Policy"] = _INERT_POLICY
            else:
                headers.setdefault("Content-Security-Policy", _CONTENT_POLICY)
        await send(message)

    return hardened
