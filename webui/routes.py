"""The JSON routes: each calls one function of the service in a thread and returns at once."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Annotated, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from webui.auth import is_admin
from webui.operator import require_operator
from webui.schemas import (
    CeilingWish,
    ConfigView,
    ErrorAnswer,
    GroupView,
    HealthView,
    InspectView,
    JobView,
    SharedJobView,
)
from webui.service import Service
from webui.uploads import received_form

BROWSER_COOKIE = "la_browser"
_COOKIE_S = 400 * 24 * 3600  # browsers keep no cookie for longer
_MIN_COOKIE = 32

_Result = TypeVar("_Result")

router = APIRouter()

_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["portrait", "speech", "prompt", "tier"],
                    "properties": {
                        "portrait": {"type": "string", "format": "binary"},
                        "speech": {"type": "string", "format": "binary"},
                        "prompt": {"type": "string"},
                        "tier": {"type": "string"},
                        "num_clip": {"type": "integer"},
                        "infer_frames": {"type": "integer"},
                        "sample_steps": {"type": "integer"},
                        "seed": {"type": "integer"},
                        "online_decode": {"type": "boolean"},
                        "size": {"type": "string", "description": 'with the tier "custom"'},
                        "title": {"type": "string"},
                        "idempotency_key": {"type": "string"},
                    },
                }
            }
        },
    }
}
_REFUSALS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorAnswer} for status in (404, 409, 413, 415, 422, 429, 503)
}


def service_of(request: Request) -> Service:
    """The service of this application."""
    service: Service = request.app.state.service
    return service


def owner_of(request: Request) -> str | None:
    """Whose browser this is: a digest of its cookie; None where it has none."""
    cookie = request.cookies.get(BROWSER_COOKIE, "")
    return owner_digest(cookie) if len(cookie) >= _MIN_COOKIE else None


def owner_digest(cookie: str) -> str:
    """What the store keeps of a browser's cookie; it cannot be turned back."""
    return hashlib.sha256(cookie.encode()).hexdigest()


def sure_owner(request: Request, response: Response) -> str:
    """Whose browser this is; one without a cookie gets it with the answer."""
    owner = owner_of(request)
    if owner is None:
        cookie = secrets.token_urlsafe(32)
        set_browser_cookie(response, cookie, secure=request.url.scheme == "https")
        owner = owner_digest(cookie)
    return owner


def set_browser_cookie(response: Response, cookie: str, *, secure: bool) -> None:
    """Let the browser keep its cookie; no script can read it and no other site sends it."""
    response.set_cookie(
        BROWSER_COOKIE, cookie, max_age=_COOKIE_S, httponly=True, samesite="lax", secure=secure
    )


async def in_thread(call: Callable[..., _Result], *arguments: object) -> _Result:
    """Run what reads files or the database outside the event loop."""
    return await to_thread.run_sync(call, *arguments)


ServiceOf = Annotated[Service, Depends(service_of)]
Owner = Annotated[str, Depends(sure_owner)]
Admin = Annotated[bool, Depends(is_admin)]


@router.get("/api/config")
async def config(request: Request, service: ServiceOf, admin: Admin) -> ConfigView:
    """What this server offers: model, tiers with their cost, limits, features."""
    auth = request.app.state.accounts is not None
    return await in_thread(lambda: service.config_view(admin=admin, auth=auth))


@router.post("/api/inspect", responses=_REFUSALS, openapi_extra=_FORM)
async def inspect(request: Request, service: ServiceOf) -> InspectView:
    """Say what is to be said about inputs, each of which may be missing; nothing is kept."""
    async with received_form(request, service.spool, service.settings.limits) as form:
        return await in_thread(service.inspect, form.submission())


@router.post("/api/jobs", status_code=202, responses=_REFUSALS, openapi_extra=_FORM)
async def submit(request: Request, service: ServiceOf, owner: Owner) -> JobView:
    """Queue a video; the answer comes when the inputs are checked and kept."""
    async with received_form(request, service.spool, service.settings.limits) as form:
        job = await in_thread(service.submit, form.submission(), owner)
    return await in_thread(service.job_view, job)


@router.get("/api/jobs")
async def jobs(request: Request, service: ServiceOf) -> list[JobView]:
    """This browser's videos, newest first."""
    owner = owner_of(request)
    return [] if owner is None else await in_thread(service.jobs_of, owner)


@router.get("/api/jobs/{job_id}", responses=_REFUSALS)
async def job(job_id: str, service: ServiceOf) -> JobView:
    """One video."""
    return await in_thread(lambda: service.job_view(service.job(job_id)))


@router.post("/api/jobs/{job_id}/cancel", responses=_REFUSALS)
async def cancel(job_id: str, service: ServiceOf) -> JobView:
    """Cancel a video; what is finished of it stays. An ended one stays as it is."""
    return await in_thread(lambda: service.job_view(service.cancel(job_id)))


@router.delete("/api/jobs/{job_id}", status_code=204, responses=_REFUSALS)
async def delete(job_id: str, service: ServiceOf) -> None:
    """Remove a video that has ended, with all its files."""
    await in_thread(service.delete, job_id)


@router.get("/api/group")
async def group(service: ServiceOf, admin: Admin) -> GroupView:
    """The worker group; ranks, jobs and errors only for the operator."""
    return await in_thread(lambda: service.group_view(admin=admin))


@router.post("/api/group/ceiling", responses=_REFUSALS, dependencies=[Depends(require_operator)])
async def lower(wish: CeilingWish, service: ServiceOf) -> GroupView:
    """Make no tier larger than this one from the next job on; without a tier, go one down."""
    await in_thread(service.lower, wish.tier, wish.reason)
    return await in_thread(lambda: service.group_view(admin=True))


@router.delete("/api/group/ceiling", responses=_REFUSALS, dependencies=[Depends(require_operator)])
async def lift(service: ServiceOf) -> GroupView:
    """Make every tier again."""
    await in_thread(service.lift)
    return await in_thread(lambda: service.group_view(admin=True))


@router.get("/s/{token}/job", responses=_REFUSALS)
async def shared_job(token: str, service: ServiceOf) -> SharedJobView:
    """A shared video, for whoever has its link."""
    return await in_thread(lambda: service.shared_view(service.shared_job(token)))


@router.get("/healthz", response_model_exclude_none=True)
async def healthz(
    request: Request, service: ServiceOf, admin: Admin, response: Response
) -> HealthView:
    """For probes: 200 when jobs are rendered, 503 while they are not; strangers learn no more."""
    view = await in_thread(lambda: service.group_view(admin=True))
    serving = view.state in ("ready", "starting", "loading", "restarting", "draining")
    working = serving and service.spool.complaint() is None
    if not working:
        response.status_code = 503
    status = "ok" if working else "degraded"
    if request.app.state.accounts is not None and not admin:
        return HealthView(status=status)
    return HealthView(
        status=status,
        group=view.state,
        ranks=view.ranks or [],
        queue_length=view.queue_length,
    )
