"""The light page behind a share link: a player and a title, nothing else."""

from __future__ import annotations

import html
import json
from pathlib import Path
from string import Template

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from webui.routes import ServiceOf, in_thread
from webui.schemas import SharedJobView
from webui.static_files import asset_urls

TEMPLATE = Path(__file__).resolve().parent / "templates" / "share.html"

router = APIRouter()


@router.get("/s/{token}", response_class=HTMLResponse, include_in_schema=False)
async def share_page(request: Request, token: str, service: ServiceOf) -> HTMLResponse:
    """The page; the browser's script asks `/s/{token}/job` for what changes."""
    view = await in_thread(lambda: service.shared_view(service.shared_job(token)))
    page = fill_template(view, token, request.app.state.static)
    return HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Robots-Tag": "noindex"})


def fill_template(view: SharedJobView, token: str, static: Path) -> str:
    """Put a job into the template.

    It may use `$title`, `$thumbnail_url`, `$token`, `$job`, which is the job as JSON to stand in a
    script element of type application/json, and `$url_NAME` for the hashed address of a file of
    `static`, with every character that is no letter or digit an underscore: `$url_js_player_js`.
    """
    job = view.model_dump_json().replace("<", "\\u003c")
    words = {f"url_{name}": url for name, url in asset_urls(static).items()}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        words,
        title=html.escape(view.title),
        thumbnail_url=html.escape(view.thumbnail_url or ""),
        token=html.escape(json.dumps(token)[1:-1]),
        job=job,
    )
