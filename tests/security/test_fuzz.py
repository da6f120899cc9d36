"""A thousand malformed requests: each gets a proper answer, and nothing is left of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.security.fuzzed import Answer, Request, requests, send
from tests.security.servers import run_apart
from tests.web.live_server import SETTINGS, Installation
from webui.auth import read_accounts
from webui.server import Access
from webui.settings import Limits

pytestmark = pytest.mark.filterwarnings("ignore")  # Gradio uses what is deprecated

MANY = Limits(jobs_per_owner=10_000, jobs_in_all=10_000, requests_per_second=100_000,
    requests_in_all=100_000)  # fmt: skip
PROPER = {200, 202, 204, 206, 303, 304, 307, 400, 401, 403, 404, 405, 408, 409, 411, 413, 415, 416}
PROPER |= {421, 422, 429}


def answers(installation: Installation, seed: int, count: int) -> list[tuple[Request, Answer]]:
    return run_apart(answered(installation, seed, count))


async def answered(
    installation: Installation, seed: int, count: int
) -> list[tuple[Request, Answer]]:
    app = installation.application()
    given = []
    async with app.router.lifespan_context(app):
        for number, request in enumerate(requests(seed, count)):
            try:
                answer = await send(app, request, pieces=1 + number % 5)
            except Exception as error:
                raise AssertionError(f"no answer to {request}"[:2000]) from error
            given.append((request, answer))
    return given


def require_proper(request: Request, answer: Answer) -> None:
    stopped = request.path == "/healthz" and answer.status == 503  # nothing renders in this test
    assert answer.status in PROPER or stopped, (answer, request)
    assert b"Traceback" not in answer.body
    # Whoever follows an old link reads it on a page.
    is_page = answer.status == 404 and request.path.startswith("/s/")
    if answer.status >= 400 and request.method != "HEAD" and not stopped and not is_page:
        assert set(json.loads(answer.body)) in ({"error"}, {"detail"}), request  # Gradio's own


def test_a_thousand_malformed_requests_are_refused_properly(tmp_path: Path) -> None:
    installation = Installation(tmp_path, settings=replace(SETTINGS, limits=MANY), with_page=True)
    given = answers(installation, seed=7, count=1000)
    for request, answer in given:
        require_proper(request, answer)
    statuses = {answer.status for _, answer in given}
    assert statuses >= {200, 202, 400, 403, 404, 405, 408, 413, 415, 421, 422}
    taken = [answer for request, answer in given if answer.status == 202]
    kept = sum(
        len(json.loads(answer.body))
        for request, answer in given
        if request.path == "/upload" and answer.status == 200
    )
    assert len(list((tmp_path / "jobs").iterdir())) == len(taken)
    assert len(installation.store.list_jobs(limit=2000)) == len(taken)
    assert list((tmp_path / "uploads").iterdir()) == []
    # Gradio keeps the examples there as well, under names of 40 digits, when they are chosen.
    uploads = [path for path in (tmp_path / "gradio").iterdir() if len(path.name) == 32]
    assert len(uploads) == kept
    installation.store.close()


def test_malformed_requests_get_nothing_without_a_login(tmp_path: Path) -> None:
    access = Access(read_accounts("ann:secret", "test", b"k" * 32))
    settings = replace(SETTINGS, limits=MANY)
    installation = Installation(tmp_path, settings=settings, access=access)
    for request, answer in answers(installation, seed=8, count=300):
        is_open = request.path in ("/login", "/healthz")
        require_proper(request, answer)
        assert is_open or answer.status >= 303, request
    assert [*(tmp_path / "uploads").iterdir(), *(tmp_path / "jobs").iterdir()] == []
    installation.store.close()
