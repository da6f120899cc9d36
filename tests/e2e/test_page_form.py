"""The page in a real browser: what is said beside the fields, languages, names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import launch
from tests.e2e.page_driver import choose_example, open_app, until
from tests.web.live_server import Installation, Pace, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # Gradio uses what is deprecated
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pace = Pace(load_s=0.1, prepare_s=0.1, fps=30.0)
    data = tmp_path_factory.mktemp("page")
    with serve(Installation(data, pace=pace, with_page=True)) as address:
        yield address


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(locale="en-US", viewport={"width": 1366, "height": 900})
    yield context
    context.close()


def said_at(page: Page, field: str) -> str:
    page.wait_for_selector(f".la-notes[data-field={field}] li", timeout=20_000)
    return page.inner_text(f".la-notes[data-field={field}]")


def test_a_bad_upload_is_refused_beside_its_field(
    context: BrowserContext, address: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture" * 20)
    page = open_app(context, address)
    page.set_input_files("#la-portrait input[type=file]", str(broken))
    message = said_at(page, "portrait")
    assert message
    assert "Traceback" not in message
    assert page.get_attribute(".la-notes[data-field=portrait] li", "role") == "alert"


def test_what_is_missing_is_said_where_it_is_missing(context: BrowserContext, address: str) -> None:
    page = open_app(context, address)
    page.click("#la-generate")
    assert "describe the person" in said_at(page, "prompt")
    page.fill("#la-prompt textarea", "Somebody talks")
    until(page, "document.getElementById('la-count').textContent.startsWith('14 characters')")
    page.click("#la-generate")
    assert "choose a picture" in said_at(page, "portrait")
    assert page.query_selector(".la-notes[data-field=prompt] li") is None


def test_the_page_speaks_the_language_of_the_browser_and_has_a_switch(
    browser: Browser, address: str
) -> None:
    context = browser.new_context(locale="zh-CN")
    page = open_app(context, address)
    assert page.inner_text("#la-generate").strip() == "生成"
    assert page.inner_text("#la-headline") == "视频将在这里播放"
    assert page.get_attribute("html", "lang") == "zh-CN"
    page.click("[data-language=en]")
    assert page.inner_text("#la-generate").strip() == "Generate"
    page.reload()
    page.wait_for_selector("#la-group-chip[data-state=ready]")
    assert page.inner_text("#la-headline") == "Your video plays here"
    context.close()


def test_both_languages_say_the_same_things(context: BrowserContext, address: str) -> None:
    page = open_app(context, address)
    missing = page.evaluate(
        """async () => {
          const { english } = await import("/static/js/english.js");
          const { chinese } = await import("/static/js/chinese.js");
          const places = (text) => (text.match(/\\{\\w+\\}/g) ?? []).sort().join();
          return Object.keys(english).filter(
            (key) => !(key in chinese) || places(english[key]) !== places(chinese[key]));
        }"""
    )
    assert missing == []


def test_every_button_and_field_has_a_name_and_nothing_is_asked_of_other_sites(
    context: BrowserContext, address: str
) -> None:
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = open_app(context, address)
    choose_example(page, "maya")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, a[href]")]
          .filter((e) => e.offsetParent && !e.getAttribute("aria-label")
            && !e.labels?.length && !e.textContent.trim()).map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    modules = [url for url in asked if "/static/" in url]
    assert modules
    assert [url for url in modules if "?v=" not in url] == []


def test_stage_and_button_are_in_sight_and_the_theme_can_be_asked_for(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, f"{address}/?__theme=dark")
    for selector in ("#la-screen", "#la-controls", "#la-generate"):
        box = page.query_selector(selector).bounding_box()
        assert box["y"] >= 0, (selector, box)
        assert box["y"] + box["height"] <= 900, (selector, box)
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert int(red) < 60


def test_playing_starts_as_early_as_it_can_without_stopping_later(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    early, late, unknown, end = page.evaluate(
        """async () => {
          const { secondsNeeded } = await import("/static/js/pacing.js");
          return [secondsNeeded(0, 20, 1.5), secondsNeeded(0, 20, 0.5),
                  secondsNeeded(0, 20, null), secondsNeeded(19.9, 20, 0.5)];
        }"""
    )
    assert early < 0.5  # the first block is enough where more comes faster than it plays
    assert 10 < late < 12  # half of it where it comes half as fast
    assert (unknown, end) == (20, 20)
