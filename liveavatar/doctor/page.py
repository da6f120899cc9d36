"""Checks of a running server: why a browser would show a blank page."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from liveavatar.doctor.finding import Finding, fail, ok, skip, warn

TIMEOUT_S = 3.0
LARGEST_ANSWER = 8 * 2**20
KINDS = {"css": "text/css", "js": "javascript", "images": "image/"}
RELOAD = "reload without cache (Ctrl+Shift+R); then restart app.py from the folder of its release"


@dataclass(frozen=True)
class Answer:
    """What a server said; status 0 when it said nothing.

    Attributes:
        status: HTTP status.
        kind: content type.
        body: at most `LARGEST_ANSWER` bytes.
        url: where a redirection led.
    """

    status: int
    kind: str
    body: bytes
    url: str


def get(url: str) -> Answer:
    """Fetch `url`; never raises for what a server does."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
            kind = reply.headers.get("Content-Type", "")
            return Answer(reply.status, kind, reply.read(LARGEST_ANSWER), reply.url)
    except urllib.error.HTTPError as error:
        with error:
            kind = error.headers.get("Content-Type", "")
            return Answer(error.code, kind, error.read(LARGEST_ANSWER), url)
    except (OSError, ValueError):
        return Answer(0, "", b"", url)


def is_ours(base: str) -> bool:
    """Whether this application answers at `base`: it says how it is, at least in one word."""
    answer = get(f"{base}/healthz")
    try:
        health = json.loads(answer.body)
    except ValueError:
        return False
    return isinstance(health, dict) and health.get("status") in ("ok", "degraded")


def check_page(base: str) -> Iterator[Finding]:
    """Fetch the page of a running server and everything it needs to show itself."""
    page = get(f"{base}/")
    if page.status == 401 or page.url.startswith(f"{base}/login"):
        yield skip("page", "asks for a login; this cannot look behind it")
        return
    if page.status != 200 or b"gradio" not in page.body:
        yield fail(
            "page",
            f"{base}/ answered {page.status or 'nothing'} and no Gradio page",
            "read the log of app.py; 'packages' above must be ok",
        )
        return
    yield ok("page", f"{base}/ answers with {len(page.body)} bytes")
    for path, need in (("/config", "the page cannot build itself"), ("/info", "no button works")):
        status = get(base + path).status
        if status != 200:
            cure = "let it through the proxy; pydantic must be below 2.11 (see 'packages')"
            yield fail("page", f"{path} answered {status or 'nothing'}: {need}", cure)
    yield _theme(base)
    yield from _assets(base, page.body.decode(errors="replace"))


def _theme(base: str) -> Finding:
    style = get(f"{base}/theme.css")
    if style.status == 200 and style.body:
        dark = get(f"{base}/?__theme=dark")
        if dark.status == 200:
            return ok("theme", "its style sheet answers; ?__theme=light and ?__theme=dark choose")
    return fail("theme", f"/theme.css answered {style.status or 'nothing'}", RELOAD)


def _assets(base: str, page: str) -> Iterator[Finding]:
    named = sorted(set(re.findall(r"/static/(?:css|js|images)/[\w./-]+(?:\?v=\w+)?", page)))
    if not named:
        yield warn("assets", "the page names none of static/css, static/js, static/images", RELOAD)
        return
    bad = []
    for path in named:
        folder = path.split("/")[2]
        answer = get(base + path)
        if answer.status != 200 or KINDS[folder] not in answer.kind:
            bad.append(f"{path} ({answer.status or 'no answer'} {answer.kind})".replace(" )", ")"))
    if bad:
        yield fail(
            "assets",
            f"{len(bad)} of {len(named)} do not come: {bad[0]}",
            "serve /static/css, /static/js and /static/images through the proxy unchanged; "
            "git checkout -- static",
        )
    else:
        yield ok("assets", f"all {len(named)} files that the page names come")
