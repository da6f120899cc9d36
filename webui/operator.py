"""The operator's token: programs on the server's own machine read it from a file of its data.

It lets them change how the group works also where nobody logs in. Whoever may read the data folder
may do more than that anyway.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from webui.auth import USER_KEY, is_admin, kept_secret
from webui.schemas import RefusalError

TOKEN_FILE = "operator.token"
_USER = "operator's token"


def operator_token(folder: Path) -> str:
    """The token of an installation; made at the first call, readable by its owner only."""
    new = f"{secrets.token_urlsafe(32)}\n".encode("ascii")
    return kept_secret(folder / TOKEN_FILE, new).decode("ascii").strip()


class TokenGate:
    """ASGI middleware: who sends the token as `Authorization: Bearer` is the operator.

    It stands before the login, which lets the operator pass.

    Args:
        app: what is behind it.
        token: what is to be sent.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with a user in the scope for the right token."""
        if scope["type"] == "http":
            kind, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
            if kind.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), self._token):
                scope[USER_KEY] = _USER
        await self._app(scope, receive, send)


def require_operator(request: Request) -> None:
    """Raise RefusalError unless the operator asks."""
    if not is_admin(request):
        raise RefusalError(
            403,
            "only the operator may do this: log in, or send the header 'Authorization: Bearer' "
            f"with what is in {TOKEN_FILE} of the data folder",
        )
