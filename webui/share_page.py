"""The light page behind a share link: a player and a title, nothing else."""

from __future__ import annotations

import html
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from liveavatar.errors import UnknownJobError
from webui.content_policy import content_policy
from webui.page_head import head
from webui.routes import ServiceOf, in_thread
from webui.schemas import RefusalError, SharedJobView

_TEMPLATES = Path(__file__).resolve().parent / "templates"

router = APIRouter()


@router.get("/s/{token}", response_class=HTMLResponse, include_in_schema=False)
async def share_page(request: Request, token: str, service: ServiceOf) -> HTMLResponse:
    """The page; its module asks `/s/{token}/job` for what changes."""
    view: SharedJobView | None
    try:
        view = await in_thread(lambda: service.shared_view(service.shared_job(token)))
    except (UnknownJobError, RefusalError):
        view = None
    page = fill_template(view, token, request.app.state.static)
    headers = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex"}
    headers["Content-Security-Policy"] = content_policy(page)
    return HTMLResponse(page, status_code=200 if view else 404, headers=headers)


def fill_template(view: SharedJobView | None, token: str, static: Path) -> str:
    """Put a job into the template: its title, its picture, the stage and itself as JSON.

    Without a job the page says that there is none.
    """
    picture = view.thumbnail_url or view.poster_url if view else None
    title = html.escape(view.title if view else "LiveAvatar")
    return Template(_read("share.html")).substitute(
        head=head(static, "share", "../"),
        stage=_read("stage.html"),
        title=title,
        heading=f'<h1 class="la-share-title">{title}</h1>' if view else "",
        thumbnail=html.escape(f"..{picture}" if picture else ""),
        token=html.escape(token),
        job=view.model_dump_json().replace("<", "\\u003c") if view else "null",
    )


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
