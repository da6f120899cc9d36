"""With a login asked for, no route answers a stranger but those that have to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.routing import Host, Mount, Route, WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, submit, wait_for_state
from webui.auth import OPEN_PATHS

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
OPEN = {"/login", "/login/", "/healthz"}


def paths_of(app: object, prefix: str = "") -> Iterator[str]:
    """Paths of all routes, also of what is mounted, with something in place of parameters."""
    for route in app.routes:  # type: ignore[attr-defined]
        if isinstance(route, Mount):
            yield from (f"{prefix}{route.path}/", f"{prefix}{route.path}/x")
            if hasattr(route.app, "routes"):
                yield from paths_of(route.app, f"{prefix}{route.path}")
        elif hasattr(route, "original_router"):  # how FastAPI keeps what was included
            yield from paths_of(route.original_router, prefix)
        else:
            assert isinstance(route, (Route, WebSocketRoute)), route
            assert not isinstance(route, Host)
            yield prefix + re.sub(r"\{[^}]*\}", "x", route.path)


def files_of(installation: Installation) -> Iterator[str]:
    """Files that are mounted, ours and Gradio's, and what a job leaves."""
    yield from ("/static/js/page.js", "/static/css/tokens.css", "/static/images/icon.svg")
    with httpx.Client(
        base_url=installation.address, timeout=PATIENCE_S, auth=("ann", "secret")
    ) as ann:
        page = ann.get("/").text
        assets = re.findall(r"assets/[\w.-]+", page)
        assert assets
        yield from (f"/{name}" for name in assets[:3])
        (stored,) = ann.post("/upload", files={"files": b"\x89PNG\r\n\x1a\n"}).json()
        yield f"/file={stored}"
        job = submit(ann).json()
        done = wait_for_state(ann, job["id"], "done")
        yield from (
            done[f"{name}_url"] for name in ("live", "video", "thumbnail", "poster", "share")
        )
        yield from (f"{done['share_url']}/{name}" for name in ("job", "live.mp4", "video.mp4"))
        yield f"/api/jobs/{job['id']}"


def test_no_route_answers_a_stranger(locked: Installation) -> None:
    paths = set(paths_of(locked.app)) | set(files_of(locked))
    assert set(OPEN_PATHS) == OPEN
    assert paths >= {
        "/api/jobs",
        "/live/x.mp4",
        "/queue/join",
        "/static/js/x",
        "/file=x",
        "/upload",
    }
    assert len(paths) > 70
    with httpx.Client(base_url=locked.address, timeout=PATIENCE_S) as stranger:
        for path in sorted(paths - OPEN):
            for method in METHODS:
                assert stranger.request(method, path).status_code == 401, (method, path)
        page = stranger.get("/", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["location"]) == (303, "/login?next=/")


@pytest.mark.parametrize(
    "path",
    [
        "//api/config",
        "/healthz/",
        "/healthz/../api/config",
        "/login/../api/config",
        "/login/x",
        "/login;/api/config",
        "/HEALTHZ",
        "/s/x",
        "/static/../api/config",
        "/api/config?next=/login",
        "/api/config%2f",
        "/%61pi/config",
        "/x/y/z",
    ],
)
def test_no_spelling_leads_past_the_login(locked: Installation, path: str) -> None:
    # The address is put together by hand, as clients would tidy it up.
    with httpx.Client(timeout=PATIENCE_S) as stranger:
        request = stranger.build_request("GET", locked.address)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert stranger.send(request).status_code in (401, 404)


def test_no_websocket_is_opened(locked: Installation) -> None:
    for path in ("/", "/queue/join", "/login", "/healthz", "/x"):
        address = f"ws://{urlsplit(locked.address).netloc}{path}"
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, open_timeout=PATIENCE_S)


def test_strangers_learn_whether_the_server_works_and_no_more(locked: Installation) -> None:
    """What a health check of a container or a proxy needs."""
    assert httpx.get(f"{locked.address}/healthz").json() == {"status": "ok"}
    known = httpx.get(f"{locked.address}/healthz", auth=("ann", "secret")).json()
    assert set(known) == {"status", "group", "ranks", "queue_length"}


def test_one_sender_locks_nobody_else_out(locked: Installation) -> None:
    """Wrong passwords are counted for each address."""
    accounts = locked.access.accounts
    assert accounts is not None
    for number in range(10):
        assert not accounts.check("ann", f"guess {number}", "192.0.2.1")
    with pytest.raises(Exception, match="too many wrong passwords"):
        accounts.check("ann", "secret", "192.0.2.1")
    assert accounts.check("ann", "secret", "192.0.2.2")
