"""The gate in front of every route: host names, origins, sizes, and the headers of every answer.

What is behind it may rely on: the request was meant for this server, a browser sent it from our own
page or a program did, its body has a stated length within the limits, and its sender does not keep
us waiting for the rest of it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from webui.content_policy import content_policy

CLIENT_KEY = "liveavatar.client"
"""Where the scope tells whose request it is: an address; see `client_of`."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

_UPLOADS = ("/api/jobs", "/api/inspect", "/upload")
_SMALL_BYTES = 1_000_000

_HEADERS = {
    "Content-Security-Policy": content_policy(),
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
        body_bytes: largest upload; other requests may have 1 MB.
        body_pause_s: longest time without a byte of a body that is still to come, seconds.
        trusts_proxy: believe X-Forwarded-* headers, which a proxy of the operator's own sets.
    """

    hosts: frozenset[str] = frozenset()
    public_hosts: set[str] = field(default_factory=set)
    body_bytes: int = 250_000_000
    body_pause_s: float = 30.0
    trusts_proxy: bool = False


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
        self._settle_headers(scope)
        answer = _hardened(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await refuse(*refusal)(scope, receive, answer)
            return
        if scope["method"] not in SAFE_METHODS:
            receive = _impatient(receive, self._settings.body_pause_s)
        await self._app(scope, receive, answer)

    def _settle_headers(self, scope: Scope) -> None:
        """Decide who asks and over what, and drop what only a proxy of ours may say."""
        headers = Headers(scope=scope)
        is_public = _host_name(headers.get("host", "")) in self._settings.public_hosts
        told = self._settings.trusts_proxy or is_public
        scope[CLIENT_KEY] = _sender(scope, headers.getlist("x-forwarded-for") if told else [])
        proto = headers.get("x-forwarded-proto", "") if self._settings.trusts_proxy else ""
        if is_public or proto.strip().lower() == "https":
            scope["scheme"] = "https"
        if not self._settings.trusts_proxy:
            scope["headers"] = [
                (name, value)
                for name, value in scope["headers"]
                if not name.startswith(b"x-forwarded-") and name != b"forwarded"
            ]

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message, if the request goes no further."""
        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        if not self._is_known(host):
            return 421, (
                f"host: this server is not asked for under the name {host[:60]!r}; name it with "
                "--allow-host"
            )
        if scope["method"] not in SAFE_METHODS and not _is_same_origin(headers):
            return 403, "origin: the request comes from another site"
        path = unquote(scope["path"])
        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            return 404, "there is nothing here"
        return self._size_refusal(scope, headers)

    def _size_refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        if scope["method"] in SAFE_METHODS:
            return None
        stated = headers.get("content-length")
        if stated is None:
            chunked = "transfer-encoding" in headers
            return (411, "content-length: is missing; state it") if chunked else None
        # What is no upload is read into memory by whoever gets it.
        is_upload = scope["path"].rstrip("/") in _UPLOADS
        most = self._settings.body_bytes if is_upload else _SMALL_BYTES
        if not stated.isdecimal() or len(stated) > 15 or int(stated) > most:
            return 413, f"the request is larger than {most / 1e6:g} MB, the most that is accepted"
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a name cannot be an attacker's that leads here; addresses never are."""
        try:
            ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return host in self._hosts or host in self._settings.public_hosts
        return True


def client_of(scope: Scope) -> str:
    """Whose request this is, as far as the connection tells: an address, of IPv6 the network."""
    client: str = scope.get(CLIENT_KEY, "unknown")
    return client


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer of the gates, in the form that every refusal has."""
    content = {"error": {"field": None, "message": message}}
    return JSONResponse(content, status_code=status, headers=headers)


def _sender(scope: Scope, forwarded: list[str]) -> str:
    """The address that asks; behind a proxy, the one that the nearest proxy saw.

    Earlier entries of X-Forwarded-For are whatever the sender likes to claim.
    """
    peer = scope.get("client")
    text = forwarded[-1].rpartition(",")[2].strip() if forwarded else (peer[0] if peer else "")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        # Whoever has one address of IPv6 has 2**64 of them.
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _host_name(host: str) -> str:
    """Host without its port, lower case; brackets of an IPv6 address stay."""
    name = host.strip().lower()
    return name if name.endswith("]") else re.sub(r":\d*$", "", name)


def _is_same_origin(headers: Headers) -> bool:
    """Whether a browser says that our own page asks; programs say nothing and pass."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def _impatient(receive: Receive, pause_s: float) -> Receive:
    """Receive a body; a sender that pauses too long counts as gone."""
    whole = False

    async def received() -> Message:
        nonlocal whole
        if whole:  # from here on, a route waits for the end of the connection
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), pause_s)
        except asyncio.TimeoutError:
            return {"type": "http.disconnect"}
        whole = not message.get("more_body", False)
        return message

    return received


def _hardened(send: Send) -> Send:
    """Send with our headers on every answer, and without leave for other sites."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return hardened
