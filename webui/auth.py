"""Logging in: one gate in front of every route, for browsers by a page, for programs by Basic.

A session is a cookie signed with a key of this installation; nothing is kept on the server, so a
restart logs nobody out. Whoever is logged in is an operator.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from liveavatar.errors import ConfigError
from webui.guard import client_of, refuse
from webui.login_page import login_page
from webui.schemas import RefusalError

SESSION_COOKIE = "la_session"
OPEN_PATHS = ("/login", "/login/", "/healthz")
"""What answers to strangers, too: the page to log in, and whether the server lives, in one word."""

_SESSION_S = 14 * 24 * 3600
_MAX_FORM_BYTES = 4096
_SECRET_BYTES = 32
_FAILURES_S = 60.0
_MOST_FAILURES = 10  # of one sender in that time
_MOST_FAILURES_IN_ALL = 200
USER_KEY = "liveavatar.user"
"""Where the scope tells who is logged in."""

router = APIRouter(include_in_schema=False)


class Accounts:
    """Who may log in, and their sessions.

    Args:
        passwords: by user name.
        key: secret bytes that sign the sessions.
    """

    def __init__(self, passwords: Mapping[str, str], key: bytes) -> None:
        self._key = key
        self._digests = {user: self._digest(password) for user, password in passwords.items()}
        self._failures: deque[tuple[float, str]] = deque()

    def check(self, user: str, password: str, sender: str = "") -> bool:
        """Whether a password is right; takes the same time for any wrong one.

        Args:
            user: who wants to log in.
            password: what is claimed.
            sender: where it comes from; wrong ones are counted for each, so that nobody locks out
                others.

        Raises:
            RefusalError: too many were wrong lately.
        """
        now = time.monotonic()
        while self._failures and now - self._failures[0][0] > _FAILURES_S:
            self._failures.popleft()
        of_sender = sum(1 for _, failed in self._failures if failed == sender)
        if of_sender >= _MOST_FAILURES or len(self._failures) >= _MOST_FAILURES_IN_ALL:
            raise RefusalError(429, "too many wrong passwords; wait a minute")
        # A user that is not there costs the same comparison.
        known = self._digests.get(user, self._digest(secrets.token_hex(16)))
        if hmac.compare_digest(known, self._digest(password)):
            return True
        self._failures.append((now, sender))
        return False

    def new_session(self, user: str) -> str:
        """A signed cookie for a user that is logged in."""
        name = base64.urlsafe_b64encode(user.encode()).decode()
        text = f"{name}.{int(time.time()) + _SESSION_S}"
        return f"{text}.{self._signature(text)}"

    def user_of(self, headers: Headers, cookies: Mapping[str, str], sender: str = "") -> str | None:
        """Who sends a request: by session or by Basic authentication; None if nobody known.

        Raises:
            RefusalError: too many passwords from there were wrong lately.
        """
        session = cookies.get(SESSION_COOKIE)
        if session is not None and (user := self._user_of_session(session)) is not None:
            return user
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return user if self.check(user, password, sender) else None

    def _user_of_session(self, session: str) -> str | None:
        text, _, signature = session.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
            return None
        name, _, until = text.partition(".")  # signed here, so it is what `new_session` made
        user = base64.urlsafe_b64decode(name).decode()
        return user if user in self._digests and int(until) > time.time() else None

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, f"session {text}".encode(), hashlib.sha256).hexdigest()

    def _digest(self, password: str) -> bytes:
        return hmac.new(self._key, f"password {password}".encode(), hashlib.sha256).digest()


class LoginGate:
    """ASGI middleware: nothing behind it answers to somebody who is not logged in.

    Args:
        app: what is behind it.
        accounts: who may pass.
        open_prefixes: paths that need no login beside the login page itself.
    """

    def __init__(
        self, app: ASGIApp, accounts: Accounts, open_prefixes: tuple[str, ...] = ()
    ) -> None:
        self._app = app
        self._accounts = accounts
        self._open = open_prefixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on with the user's name in the scope, or ask to log in."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a browser's WebSocket would carry no password that we ask for
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope)
        try:
            user = self._accounts.user_of(request.headers, request.cookies, client_of(scope))
        except RefusalError as refusal:
            answer = refuse(refusal.status, str(refusal), {"Retry-After": str(int(_FAILURES_S))})
            await answer(scope, receive, send)
            return
        path: str = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(self._open)
        user = scope.get(USER_KEY) or user
        if user is None and not is_open:
            await _ask_to_log_in(request)(scope, receive, send)
            return
        scope[USER_KEY] = user
        await self._app(scope, receive, send)


def is_admin(request: Request) -> bool:
    """Whether the reader is the operator: logged in, where logging in is asked for."""
    return request.scope.get(USER_KEY) is not None


def read_accounts(text: str, source: str, key: bytes) -> Accounts:
    """Read "USER:PASSWORD", one a line.

    Args:
        text: the lines.
        source: where they come from, for messages; the text itself is never repeated.
        key: secret bytes that sign the sessions.

    Raises:
        ConfigError: a line is no such pair.
    """
    passwords = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        user, colon, password = line.strip().partition(":")
        if not user or not colon or not password:
            raise ConfigError(f"{source}: expected USER:PASSWORD, neither of them empty")
        passwords[user] = password
    if not passwords:
        raise ConfigError(f"{source}: expected USER:PASSWORD, got nothing")
    return Accounts(passwords, key)


def installation_key(folder: Path) -> bytes:
    """The secret of an installation; made at the first call, readable by its owner only."""
    return kept_secret(folder / "secret.key", secrets.token_bytes(_SECRET_BYTES))


def kept_secret(path: Path, new: bytes) -> bytes:
    """What a file of secret bytes holds; where there is none, it is made whole with `new`.

    Raises:
        ConfigError: it holds too little to be a secret, as after a full disk.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent) as file:  # readable by its owner only
        file.write(new)
        file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
    kept = path.read_bytes()
    if len(kept) < _SECRET_BYTES:
        raise ConfigError(f"'{path}' is damaged; remove it, and a new one is made")
    return kept


@router.get("/login")
async def ask_to_log_in(request: Request) -> Response:
    """The page to log in with."""
    return _page(request, request.query_params.get("next", "/"))


@router.post("/login")
@router.post("/login/")
async def log_in(request: Request) -> Response:
    """Take a user name and a password; gives a browser a page, a program an answer in JSON."""
    accounts: Accounts | None = request.app.state.accounts
    if int(request.headers.get("content-length", 0)) > _MAX_FORM_BYTES:  # the guard has it stated
        raise RefusalError(413, "the form is too long")
    body = await request.body()
    form = parse_qs(body.decode("utf-8", "replace"))
    user, password, target = (form.get(name, [""])[0] for name in ("username", "password", "next"))
    wants_page = "text/html" in request.headers.get("accept", "")
    if accounts is not None and not accounts.check(user, password, client_of(request.scope)):
        if wants_page:
            return _page(request, target, is_wrong=True)
        raise RefusalError(401, "the name or the password is wrong")
    response: Response = JSONResponse({"success": True})
    if wants_page:
        response = RedirectResponse(_own_path(target), status_code=303)
    if accounts is not None:
        response.set_cookie(
            SESSION_COOKIE,
            accounts.new_session(user),
            max_age=_SESSION_S,
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
    return response


@router.post("/logout")
async def log_out() -> Response:
    """Forget the session in this browser."""
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(SESSION_COOKIE)
    return response


def _ask_to_log_in(request: Request) -> Response:
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/login?next={quote(request.url.path)}", status_code=303)
    body = {"error": {"field": None, "message": "log in first"}}
    # A script of our page gets no dialog of the browser's own.
    is_script = "sec-fetch-mode" in request.headers
    headers = {} if is_script else {"WWW-Authenticate": 'Basic realm="LiveAvatar"'}
    return JSONResponse(body, status_code=401, headers=headers)


def _own_path(target: str) -> str:
    """A path on this server; "/" in place of anything that leads elsewhere."""
    elsewhere = not target.startswith("/") or target.startswith(("//", "/\\"))
    return "/" if elsewhere or any(ord(char) < 32 for char in target) else target


def _page(request: Request, target: str, *, is_wrong: bool = False) -> Response:
    languages = request.headers.get("accept-language", "")
    page = login_page(_own_path(target), languages, is_wrong=is_wrong)
    return HTMLResponse(page, status_code=401 if is_wrong else 200)
