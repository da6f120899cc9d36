"""The video routes: growing files, finished files with ranges, thumbnails; by id or share link."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from liveavatar.jobs.job import Job
from webui.live import LiveStreams
from webui.routes import ServiceOf, in_thread
from webui.schemas import RefusalError
from webui.views import download_name

router = APIRouter()

_LIVE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# Without an id in the name nobody finds these addresses, so a browser may keep the bytes.
_KEPT = {"Cache-Control": "private, max-age=3600"}

From = Annotated[int, Query(alias="from", ge=0, description="byte to begin with")]
Attempt = Annotated[int | None, Query(ge=1, description="refuse any other attempt at the job")]
Follow = Annotated[bool, Query(description="false: what there is now, a few megabytes at most")]
Download = Annotated[bool, Query(description="save under the video's title")]


@router.get("/live/{job_id}.mp4", response_class=StreamingResponse)
@router.head("/live/{job_id}.mp4", include_in_schema=False)
async def live(
    request: Request,
    job_id: str,
    service: ServiceOf,
    start: From = 0,
    attempt: Attempt = None,
    follow: Follow = True,
) -> Response:
    """The growing video from a byte on, until the job ends: fragmented MP4, whole segments."""
    job = await in_thread(service.job, job_id)
    return await _live(request, job, start, attempt, follow=follow)


@router.get("/media/{job_id}.mp4", response_class=FileResponse)
@router.head("/media/{job_id}.mp4", include_in_schema=False)
async def media(job_id: str, service: ServiceOf, download: Download = False) -> Response:
    """The finished video; ranges work."""
    job = await in_thread(service.job, job_id)
    return _video(job, await in_thread(service.video, job), download=download)


@router.get("/thumbnails/{job_id}.jpg", response_class=FileResponse)
@router.head("/thumbnails/{job_id}.jpg", include_in_schema=False)
async def thumbnail(job_id: str, service: ServiceOf) -> Response:
    """A small picture of the video."""
    job = await in_thread(service.job, job_id)
    return _picture(await in_thread(service.thumbnail, job))


@router.get("/posters/{job_id}.jpg", response_class=FileResponse)
@router.head("/posters/{job_id}.jpg", include_in_schema=False)
async def poster(job_id: str, service: ServiceOf) -> Response:
    """A small picture of the portrait."""
    job = await in_thread(service.job, job_id)
    return _picture(await in_thread(service.poster, job))


@router.get("/s/{token}/live.mp4", response_class=StreamingResponse)
@router.head("/s/{token}/live.mp4", include_in_schema=False)
async def shared_live(
    request: Request,
    token: str,
    service: ServiceOf,
    start: From = 0,
    attempt: Attempt = None,
    follow: Follow = True,
) -> Response:
    """As `/live`, for whoever has the link."""
    job = await in_thread(service.shared_job, token)
    return await _live(request, job, start, attempt, follow=follow)


@router.get("/s/{token}/video.mp4", response_class=FileResponse)
@router.head("/s/{token}/video.mp4", include_in_schema=False)
async def shared_video(token: str, service: ServiceOf, download: Download = False) -> Response:
    """As `/media`, for whoever has the link."""
    job = await in_thread(service.shared_job, token)
    if download and not service.settings.features.download:
        raise RefusalError(403, "videos cannot be downloaded by link on this server")
    return _video(job, await in_thread(service.video, job), download=download)


@router.get("/s/{token}/thumbnail.jpg", response_class=FileResponse)
@router.head("/s/{token}/thumbnail.jpg", include_in_schema=False)
async def shared_thumbnail(token: str, service: ServiceOf) -> Response:
    """As `/thumbnails`, for whoever has the link."""
    job = await in_thread(service.shared_job, token)
    return _picture(await in_thread(service.thumbnail, job))


@router.get("/s/{token}/poster.jpg", response_class=FileResponse)
@router.head("/s/{token}/poster.jpg", include_in_schema=False)
async def shared_poster(token: str, service: ServiceOf) -> Response:
    """As `/posters`, for whoever has the link."""
    job = await in_thread(service.shared_job, token)
    return _picture(await in_thread(service.poster, job))


async def _live(
    request: Request, job: Job, start: int, attempt: int | None, *, follow: bool
) -> Response:
    current = max(1, job.take)
    if attempt is not None and attempt != current:
        raise RefusalError(409, f"the video was begun anew, {current} times; begin at byte 0")
    headers = {
        **_LIVE_HEADERS,
        "X-Job-State": job.state.value,
        "X-Job-Attempt": str(current),
    }
    if request.method == "HEAD":
        return Response(media_type="video/mp4", headers=headers)
    streams: LiveStreams = request.app.state.streams
    if not follow:
        content = await in_thread(streams.read, job.id, current, start)
        return Response(content, media_type="video/mp4", headers=headers)
    bytes_of = streams.follow(job.id, job.take, start)
    return StreamingResponse(bytes_of, media_type="video/mp4", headers=headers)


def _video(job: Job, path: Path, *, download: bool) -> Response:
    if not path.exists():
        raise RefusalError(404, f"the video is {job.state.value}; there is no finished file")
    name = download_name(job) if download else None
    return FileResponse(path, media_type="video/mp4", filename=name, headers=_KEPT)


def _picture(path: Path) -> Response:
    if not path.exists():
        raise RefusalError(404, "there is no such picture yet")
    return FileResponse(path, media_type="image/jpeg", headers=_KEPT)
