"""The application as `scripts/run` starts it, with the bundled demo model, in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from tests.e2e.page_driver import (
    choose_example,
    generate,
    open_app,
    seen,
    wait_for_frames,
    wait_for_step,
)
from tests.e2e.test_application import application, is_ready
from tests.web.live_server import ROOT, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # Gradio uses what is deprecated
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with application(tmp_path_factory.mktemp("demo") / "data") as (client, _process):
        wait_until(lambda: is_ready(client), "the ranks are ready")
        yield client


def test_an_example_talks_before_its_video_is_finished(
    browser: Browser, demo: httpx.Client, tmp_path: Path
) -> None:
    """PAGE_PICTURES=docs/images writes the pictures of the README."""
    pictures = ROOT / os.environ["PAGE_PICTURES"] if "PAGE_PICTURES" in os.environ else tmp_path
    assert demo.get("/api/config").json()["model"] == {
        "name": "demo",
        "is_demo": True,
        "is_random": False,
    }
    address = str(demo.base_url).rstrip("/")
    context = browser.new_context(locale="en-US", viewport={"width": 1366, "height": 900})
    page = open_app(context, address)
    choose_example(page, "lin")
    generate(page)
    wait_for_frames(page, 15)
    first = seen(page)
    (job,) = context.request.get(f"{address}/api/jobs").json()
    assert job["state"] == "running", job
    take_picture(page, pictures / "page-live.png")
    page.wait_for_timeout(400)
    second = seen(page)
    assert second["painted"] > first["painted"], (first, second)
    assert second["position"] > first["position"], (first, second)
    assert second["sound_bytes"] > 0, second

    wait_for_step(page, "Done")
    with page.expect_download() as waiting:
        page.click("#la-download")
    assert Path(waiting.value.path()).stat().st_size > 10_000
    page.goto(f"{address}/?__theme=dark")  # the browser finds its video again
    page.wait_for_selector("#la-history-list [style*=thumbnails]")
    page.click("#la-history-list button")
    page.click("#la-play")
    wait_for_frames(page, 30)
    take_picture(page, pictures / "page-dark.png")
    context.close()


def take_picture(page: Page, path: Path) -> None:
    page.mouse.move(700, 5)
    page.screenshot(path=str(path))
    Image.open(path).convert("RGB").save(path, optimize=True)
    assert 20_000 < path.stat().st_size < 500_000
