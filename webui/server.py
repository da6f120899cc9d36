"""The web application: routes, static files and whatever page is mounted, behind one guard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from liveavatar.errors import ConfigError, LiveAvatarError, SpoolUnavailableError
from webui import api_page, auth, media_routes, metrics, routes, share_page
from webui.auth import Accounts, LoginGate
from webui.gradio_uploads import KEPT_S, sweep
from webui.guard import Guard, GuardSettings
from webui.live import LiveStreams
from webui.mounting import gradio_folder
from webui.operator import TokenGate
from webui.schemas import ErrorAnswer, ErrorBody, describe, status_of
from webui.service import VERSION, Service
from webui.static_files import HashedFiles
from webui.throttle import Rates, Throttle

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "static"
STATIC_FOLDERS = ("css", "js", "images")

_CHORES_S = 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        accounts: who may log in; None lets everybody in.
        hosts: names under which the server may be asked for, beside addresses and localhost.
        public_hosts: names of tunnels that lead here over https; may change while it runs.
        trusts_proxy: believe the X-Forwarded-* headers of a proxy.
        token: makes who sends it the operator; None where there is none.
    """

    accounts: Accounts | None = None
    hosts: frozenset[str] = frozenset()
    public_hosts: set[str] = field(default_factory=set)
    trusts_proxy: bool = False
    token: str | None = None


def create_app(
    service: Service,
    mount_page: Callable[[FastAPI, Service], FastAPI] | None = None,
    access: Access = Access(),
    static: Path = STATIC,
) -> FastAPI:
    """Build the application.

    Args:
        service: what it does.
        mount_page: mounts the visible page at "/", behind all routes; None for the routes alone.
        access: who is let in.
        static: folder with `css`, `js` and `images`.

    Raises:
        ConfigError: one of these folders is missing.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(service.spool.sweep_uploads)
        chores = asyncio.create_task(_do_chores(service))
        yield
        chores.cancel()

    app = FastAPI(
        title="LiveAvatar",
        version=VERSION,
        description="Talking avatars, streamed while they are generated.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.streams = LiveStreams(service.store, service.spool, service.copies)
    app.state.accounts = access.accounts
    app.state.static = static
    _add_error_answers(app)
    for module in (media_routes, routes, share_page, metrics, api_page, auth):
        app.include_router(module.router)
    for name in STATIC_FOLDERS:
        if not (static / name).is_dir():
            raise ConfigError(
                f"static/{name}: the folder is missing at '{static}'; the checkout is not whole"
            )
        app.mount(f"/static/{name}", HashedFiles(static / name), name=f"static {name}")
    if mount_page is not None:
        mount_page(app, service)
    _close(app, service, access)
    return app


async def _do_chores(service: Service) -> None:
    """Remove what is old, from time to time."""
    while True:
        try:
            await to_thread.run_sync(service.remove_old_jobs)
            await to_thread.run_sync(sweep, gradio_folder(service), KEPT_S)
        except SpoolUnavailableError as error:
            logger.warning("%s; old jobs are removed later", error)
        except Exception:  # a border: the next time may go better
            logger.exception("old jobs or uploads could not be removed")
        await asyncio.sleep(_CHORES_S)


def _close(app: FastAPI, service: Service, access: Access) -> None:
    """Put the gates in front; the one that is added last is met first."""
    if access.accounts is not None:
        is_open = service.settings.features.open_share_links
        prefixes = ("/s/", "/static/") if is_open else ()
        app.add_middleware(LoginGate, accounts=access.accounts, open_prefixes=prefixes)
    if access.token is not None:
        app.add_middleware(TokenGate, token=access.token)
    limits = service.settings.limits
    app.add_middleware(
        Throttle,
        each=Rates(limits.requests_per_second, limits.open_requests),
        all_together=Rates(limits.requests_in_all, limits.open_requests_in_all),
    )
    guarded = GuardSettings(
        hosts=access.hosts,
        public_hosts=access.public_hosts,
        body_bytes=limits.body_bytes,
        trusts_proxy=access.trusts_proxy,
    )
    app.add_middleware(Guard, settings=guarded)


def _add_error_answers(app: FastAPI) -> None:
    app.add_exception_handler(LiveAvatarError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_parameter)
    app.add_exception_handler(HTTPException, _refuse_plainly)
    app.add_exception_handler(ClientDisconnect, _give_up)
    app.add_exception_handler(Exception, _apologise)


async def _refuse(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LiveAvatarError)
    status = status_of(error)
    headers = {"Retry-After": "30"} if status in (429, 503) else None
    body = ErrorAnswer(error=describe(error)).model_dump()
    return JSONResponse(body, status_code=status, headers=headers)


async def _refuse_parameter(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][-1]) if first["loc"] else None
    return _answer(422, f"{name}: {first['msg']}", name)


async def _refuse_plainly(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, str(error.detail))


async def _give_up(_request: Request, _error: Exception) -> JSONResponse:
    """Say what a sender that paused for too long may still hear; one that is gone does not."""
    return _answer(408, "the rest of the request did not come in time; send it again")


async def _apologise(request: Request, error: Exception) -> JSONResponse:
    # The route, not the address: that may hold the token of a share link.
    route = getattr(request.scope.get("route"), "path", "no route")
    logger.error("%s %s failed", request.method, route, exc_info=error)
    return _answer(500, "something went wrong on the server; its log says what")


def _answer(status: int, message: str, field: str | None = None) -> JSONResponse:
    body = ErrorAnswer(error=ErrorBody(field=field, message=message)).model_dump()
    return JSONResponse(body, status_code=status)
