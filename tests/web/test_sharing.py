"""A share link: everything to watch, nothing to change, nothing private."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.patience import PATIENCE_S
from tests.web.live_server import (
    PROMPT,
    SETTINGS,
    Installation,
    Pace,
    serve,
    submit,
    wait_for_state,
    wait_until,
)
from webui.settings import Features


def test_who_has_the_link_watches_and_downloads(client: httpx.Client) -> None:
    job = submit(client, title="<b>Hello</b> & more").json()
    done = wait_for_state(client, job["id"], "done")
    with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as friend:
        shared = friend.get(f"{job['share_url']}/job").json()
        assert (shared["state"], shared["frames"]) == ("done", 48)
        assert friend.get(shared["live_url"]).content == client.get(job["live_url"]).content
        assert friend.get(shared["video_url"]).content == client.get(done["video_url"]).content
        assert friend.get(shared["thumbnail_url"]).status_code == 200
        assert "attachment" in friend.get(shared["download_url"]).headers["content-disposition"]
        page = friend.get(job["share_url"])
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["cache-control"] == "no-store"
        assert "<b>" not in page.text
        assert '<h1 class="la-share-title">&lt;b&gt;' in page.text
        assert "&lt;b&gt;Hello&lt;/b&gt; &amp; more" in page.text
        carried = re.search(r'type="application/json"[^>]*>(.*?)</script>', page.text, re.DOTALL)
        assert carried
        assert json.loads(carried[1]) == shared


def test_the_link_gives_nothing_private_and_no_power(client: httpx.Client) -> None:
    job = submit(client).json()
    wait_for_state(client, job["id"], "done")
    with httpx.Client(base_url=client.base_url, timeout=PATIENCE_S) as friend:
        for text in (friend.get(job["share_url"]).text, friend.get(f"{job['share_url']}/job").text):
            assert job["id"] not in text
            assert PROMPT not in text.replace(job["title"], "")
        token = job["share_url"].removeprefix("/s/")
        for method, path in (
            ("GET", f"/api/jobs/{token}"),
            ("POST", f"/api/jobs/{token}/cancel"),
            ("DELETE", f"/api/jobs/{token}"),
            ("POST", f"{job['share_url']}/cancel"),
            ("GET", f"/s/{job['id']}/job"),
            ("GET", f"/s/{token[:-1]}x/job"),
        ):
            assert friend.request(method, path).status_code in (404, 405), (method, path)
        stale = friend.get(f"/s/{token[:-1]}x")  # a page, in the reader's language
        assert (stale.status_code, ">null<" in stale.text) == (404, True), stale.text
        assert stale.text.count(">LiveAvatar<") == 2, "the tab's title and the header's name"
        assert "<h1" not in stale.text
    assert client.get(f"/api/jobs/{job['id']}").status_code == 200


def test_the_link_says_what_the_video_waits_for(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=Pace(load_s=40 * PATIENCE_S))
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        wait_until(lambda: client.get("/api/group").json()["num_groups"], "it starts")
        job = submit(client).json()
        shared = client.get(f"{job['share_url']}/job").json()
        assert shared["group"] == {"state": "starting", "load_percent": 0}
        for view in (job, shared):  # there is something to see before there is a video
            assert view["thumbnail_url"] is None
            picture = Image.open(io.BytesIO(client.get(view["poster_url"]).content))
            assert (picture.format, max(picture.size)) == ("JPEG", 320)
        installation.supervisor.stop()
        shared = client.get(f"{job['share_url']}/job").json()
        assert shared["group"] == {"state": "stopped", "load_percent": 0}
        client.post(f"/api/jobs/{job['id']}/cancel")
        assert client.get(f"{job['share_url']}/job").json()["group"] is None


@pytest.mark.parametrize("share", [True, False])
def test_the_operator_can_forbid_downloads_and_sharing(tmp_path: Path, share: bool) -> None:
    settings = replace(SETTINGS, features=Features(share=share, download=False))
    installation = Installation(tmp_path, settings=settings)
    with (
        serve(installation) as address,
        httpx.Client(base_url=address, timeout=PATIENCE_S) as client,
    ):
        job = submit(client).json()
        wait_for_state(client, job["id"], "done")
        stored = installation.store.get(job["id"])
        assert job["share_url"] == (f"/s/{stored.share_token}" if share else None)
        link = f"/s/{stored.share_token}"
        assert client.get(f"{link}/job").status_code == (200 if share else 404)
        if share:
            assert client.get(f"{link}/job").json()["download_url"] is None
            assert client.get(f"{link}/video.mp4?download=1").status_code == 403
            assert client.get(f"{link}/video.mp4").status_code == 200
