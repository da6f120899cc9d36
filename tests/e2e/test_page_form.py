"""The page in a real browser: what is said beside the fields, languages, names."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from liveavatar.config import SamplingConfig
from liveavatar.errors import LiveAvatarError
from liveavatar.media.ingest import check_prompt
from liveavatar.media.portrait import PortraitLimits, load_portrait
from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.media.speech import load_speech
from liveavatar.plan.layout import Machine, plan_layout
from liveavatar.plan.shapes import Network
from liveavatar.plan.tiers import TIERS
from liveavatar.request import parse_size
from tests.e2e.page_driver import choose_example, open_app, until, write_beeps
from tests.patience import PATIENCE_S
from tests.web.live_server import PORTRAIT, Installation, Pace, serve, submit
from webui.auth import read_accounts
from webui.offers import ServedModel
from webui.schemas import describe
from webui.server import Access
from webui.settings import Features, ServerSettings
from webui.submission import Submission

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # Gradio uses what is deprecated
]

PACE = Pace(load_s=0.1, prepare_s=0.1, fps=30.0)


_NOTES = ".la-notes[data-field={}]"

# Width of the picture behind an element, 0 where there is none.
_POSTER = """async (selector) => {
  const { backgroundImage } = document.querySelector(selector).style;
  const image = new Image();
  image.src = /url\\("(.*)"\\)/.exec(backgroundImage)?.[1] ?? "";
  return image.decode().then(() => image.naturalWidth, () => 0);
}"""


def has_portrait(page: Page) -> bool:
    """Whether the stage shows the portrait in place of the idle drawing."""
    width: int = page.evaluate(_POSTER, "#la-art")
    return page.is_visible("#la-art.la-has-portrait") and width == 320


def said_at(page: Page, field: str) -> str:
    page.wait_for_selector(f".la-notes[data-field={field}] li")
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


def test_a_file_of_another_kind_is_refused_beside_its_field(
    context: BrowserContext, address: str, tmp_path: Path
) -> None:
    page = open_app(context, address)
    heic = b"\0\0\0\x18ftypheic" + bytes(500)
    for field, name, content, said in (
        ("portrait", "photo.jpg", heic, "a HEIC picture; expected a PNG, JPEG, WebP, TIFF, GIF"),
        ("portrait", "archive.png", b"PK\x03\x04" + bytes(500), "a ZIP archive"),
        ("speech", "archive.wav", b"PK\x03\x04" + bytes(500), "a ZIP archive"),
        ("speech", "nothing.wav", b"", "is empty (0 bytes)"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files(f"#la-{field} input[type=file]", str(tmp_path / name))
        until(
            page, f"document.querySelector('{_NOTES.format(field)}').textContent.includes('{said}')"
        )
    choose_example(page, "maya")  # the fields take another file as before
    until(page, "document.querySelectorAll('.la-notes[data-field=portrait] li').length === 0")


def test_what_is_missing_is_said_where_it_is_missing(context: BrowserContext, address: str) -> None:
    page = open_app(context, address)
    page.click("#la-generate")
    assert "describe the person" in said_at(page, "prompt")
    assert "choose a picture" in said_at(page, "portrait")
    assert "choose a sound file" in said_at(page, "speech")
    page.fill("#la-prompt textarea", "Somebody talks")
    until(page, "document.getElementById('la-count').textContent.startsWith('14 characters')")
    page.click("#la-generate")
    until(page, "document.body.classList.contains('la-sending') === false")
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


def test_what_the_server_refuses_often_is_said_in_chinese(
    context: BrowserContext, address: str, tmp_path: Path
) -> None:
    page = open_app(context, f"{address}/?lang=zh")
    said = page.evaluate(
        """async (messages) => {
          const { sayError } = await import("/static/js/texts.js");
          return messages.map((message) => sayError({ message }));
        }""",
        refusals(tmp_path),
    )
    assert len(said) > 15
    assert [text for text in said if not re.match("[\u4e00-\u9fff]", text)] == []
    assert [text for text in said if "{" in text] == []
    small = next(text for text in said if "8x8" in text)
    assert "64" in small, "what varies is filled in"


def test_the_operator_sees_every_rank_and_heat_only_where_it_is_measured(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    assert not page.is_visible("#la-operators")
    rank = {"rank": 0, "role": "stage 0", "device": "cuda:0", "layers": [0, 39], "item": ""}
    rank |= {"memory_bytes": 2**30, "memory_limit_bytes": 2**31, "busy_share": 0.5}
    for more, shown in (({"temperature_c": 71, "gpu_busy_share": 0.25}, True), ({}, False)):
        page.evaluate(
            """async (rank) => {
              const { drawOperators } = await import("/static/js/operators.js");
              drawOperators({ state: "ready", load_percent: 100, ranks: [rank] });
            }""",
            rank | more,
        )
        text = page.inner_text("#la-operators")
        assert "stage 0 (0–39)" in text
        assert "1.0 / 2.0 GiB" in text
        assert ("71 °C" in text, "Temp." in text, "25 %" in text) == (shown,) * 3, text


def test_a_video_that_ended_before_its_first_picture_says_so(
    context: BrowserContext, address: str
) -> None:
    def end(route: Route) -> None:
        answer = route.fetch()
        ended = {"state": "cancelled", "frames": 0, "video_url": None, "can_cancel": False}
        route.fulfill(response=answer, json=answer.json() | ended)

    page = open_app(context, address)
    choose_example(page, "lin")
    page.route("**/api/jobs/*", end)
    page.click("#la-generate")
    until(page, "document.getElementById('la-headline').textContent === 'Cancelled'")
    assert page.is_visible("#la-message")
    assert page.is_disabled("#la-play")


def test_a_video_that_waits_for_the_model_says_so(context: BrowserContext, address: str) -> None:
    group = {"state": "ready", "load_percent": 100}
    waits = {"state": "queued", "stage": "", "position": 1, "frames": 0, "eta_s": 29.5}
    waits |= {"video_url": None, "download_url": None, "thumbnail_url": None}

    def answer(route: Route, changed: dict[str, object]) -> None:
        said = route.fetch()
        view = said.json()
        many = [each | changed for each in view] if isinstance(view, list) else view | changed
        route.fulfill(response=said, json=many)

    page = open_app(context, address)
    choose_example(page, "lin")
    for jobs in ("**/api/jobs", "**/api/jobs/*"):
        page.route(jobs, lambda route: answer(route, waits))
    page.route("**/live/*", lambda _route: None)  # never answered: there is no picture yet
    page.route("**/api/group", lambda route: answer(route, group))
    page.click("#la-generate")
    for state, percent, language, headline, detail in (
        ("ready", 100, "en", "Next in the queue", "It goes on by itself"),
        ("starting", 0, "en", "The model is still loading", "starts by itself"),
        ("starting", 0, "zh", "模型仍在加载", "稍后自动开始"),
        ("loading", 40, "zh", "正在加载模型 40%", "稍后自动开始"),
        ("loading", 40, "en", "Loading the model, 40 %", "starts by itself"),
        ("restarting", 0, "en", "Restarting the model", "The video is kept"),
        ("failed", 0, "en", "Model failed to start", "The video is kept"),
        ("failed", 0, "zh", "模型启动失败", "视频保留在队列中"),
        ("stopped", 0, "zh", "模型已停止", "视频保留在队列中"),
        ("stopped", 0, "en", "Model is stopped", "The video is kept"),
        ("draining", 0, "en", "The server is being stopped", "The video is kept"),
    ):
        group |= {"state": state, "load_percent": percent}
        page.click(f"[data-language={language}]")
        until(page, f"document.getElementById('la-headline').textContent === '{headline}'")
        assert detail in page.inner_text("#la-detail"), state
        assert has_portrait(page)
    group |= {"state": "ready"}
    waits |= {"eta_s": 0.2}
    until(page, "document.getElementById('la-detail').textContent.startsWith('It goes on')")
    page.reload()
    page.wait_for_selector("#la-numbers:not([hidden])")
    assert has_portrait(page)
    assert page.evaluate(_POSTER, ".la-thumbnail") > 0, "in the strip of videos, too"


def test_the_tab_says_how_far_a_video_is_and_that_it_is_being_stopped(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    titles = page.evaluate(
        """async () => {
          const { TabTitle } = await import("/static/js/tab_title.js");
          const job = { id: "x", state: "running", stage: "rendering", total_frames: 50 };
          const title = new TabTitle();
          return [{ frames: 0, can_cancel: true }, { frames: 5, can_cancel: true },
                  { frames: 6, can_cancel: false }].map((more) => {
            title.show({ ...job, ...more });
            return document.title.split(" · ")[0];
          });
        }"""
    )
    assert titles == ["Rendering", "10 %", "Stopping"]


def test_the_share_page_says_what_its_video_waits_for(
    context: BrowserContext, tmp_path: Path
) -> None:
    loading = Installation(tmp_path, pace=Pace(load_s=60.0), with_page=True)
    with serve(loading) as address, httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        job = submit(client).json()
        viewer = context.new_page()
        viewer.goto(address + job["share_url"])
        assert has_portrait(viewer)
        headline = "document.getElementById('la-headline').textContent"
        until(viewer, f"/^Loading the model, \\d+ %$/.test({headline})")
        loading.groups[0].die("a rank ended")
        until(viewer, f"{headline} !== '' && !{headline}.startsWith('Loading')")
        assert viewer.inner_text("#la-headline") != "Next in the queue"


def test_the_operator_sees_and_lifts_the_highest_tier(browser: Browser, tmp_path: Path) -> None:
    accounts = read_accounts("ann:secret", "test", b"k" * 32)
    installation = Installation(tmp_path, access=Access(accounts), with_page=True)
    installation.store.set_ceiling("fast", "gpu 0 holds 21500 MB")
    with serve(installation) as address:
        basic = b64encode(b"ann:secret").decode()
        headers = {"Authorization": f"Basic {basic}"}
        context = browser.new_context(locale="en-US", extra_http_headers=headers)
        page = open_app(context, address)
        page.wait_for_selector("#la-ceiling-chip:not([hidden])")
        assert "at most Fast" in page.inner_text("#la-ceiling-chip")
        assert "gpu 0 holds 21500 MB" in page.inner_text("#la-op-ceiling")
        page.click("#la-op-lift")
        until(page, "document.getElementById('la-ceiling-chip').hidden")
        assert installation.store.ceiling() is None
        assert not page.is_visible("#la-op-lift")
        context.close()


def test_a_size_of_ones_own_says_what_it_costs(context: BrowserContext, tmp_path: Path) -> None:
    settings = ServerSettings(tiers=TIERS, features=Features(custom_tier=True))
    machine = Machine(4, int(17.4 * 2**30))
    plan = partial(plan_layout, Network())
    model = ServedModel("large", plan=lambda size_hw, sampling: plan(size_hw, sampling, machine))
    with serve(Installation(tmp_path, settings=settings, model=model, with_page=True)) as address:
        page = open_app(context, address)
        page.click("#la-tier input")
        choices = page.inner_text("ul.options")
        assert re.search(r"Fast · 384×256\s+[\d.]+ of 17\.4 GiB", choices), choices
        assert re.search(r"High · 704×384\s+does not fit: [\d.]+ of 17\.4 GiB", choices), choices
        page.click("ul.options li:last-child")
        page.wait_for_selector("#la-size input")  # the settings unfold by themselves
        page.fill("#la-size input", "384*256")
        page.press("#la-size input", "Tab")
        until(page, "/[\\d.]+ of 17\\.4 GiB/.test(document.getElementById('la-cost').textContent)")
        assert page.is_visible("#la-size input")
        page.fill("#la-size input", "1280*720")
        page.press("#la-size input", "Tab")
        until(page, "document.getElementById('la-cost').dataset.fits === 'false'")
        assert "does not fit here" in page.inner_text("#la-cost").lower()
        assert page.get_attribute("#la-cost p", "title")  # the whole verdict


def refusals(folder: Path) -> list[str]:
    """What the server says, word for word, about bad inputs."""
    small, damaged, empty = (folder / name for name in ("small.png", "damaged.png", "empty.wav"))
    Image.new("RGB", (8, 8)).save(small)
    damaged.write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture" * 20)
    empty.write_bytes(b"")
    noise, long = folder / "noise.wav", folder / "long.wav"
    noise.write_bytes(b"RIFF" + b"\0" * 4 + b"WAVE" + b"noise" * 50)
    write_beeps(long, (0.1,), 3.0)
    cut, header = folder / "cut.wav", folder / "header.wav"
    cut.write_bytes(long.read_bytes()[:20_000])
    header.write_bytes(long.read_bytes()[:44])
    tier = {"tier": "fast", "prompt": "p"}
    calls = [
        *(partial(load_portrait, path) for path in (small, damaged, noise, empty)),
        lambda: load_portrait(PORTRAIT, PortraitLimits(max_pixels=1000)),
        lambda: load_portrait(PORTRAIT, PortraitLimits(max_bytes=1000)),
        *(partial(load_speech, path) for path in (empty, noise, cut, header)),
        lambda: load_speech(long, SpeechLimits(max_bytes=1000)),
        lambda: load_speech(long, SpeechLimits(max_seconds=1)),
        *(partial(check_prompt, text) for text in (" ", "p" * 5000, "a\0b")),
        *(partial(parse_size, text) for text in ("704x384", "8*8")),
        lambda: SamplingConfig(infer_frames=50),
        lambda: SamplingConfig(num_steps=99),
        lambda: Submission(None, None, **tier, seed="much").choice(),
    ]
    said = [str(error) for error in Submission(None, None, "", "fast").missing()]
    for call in calls:
        with pytest.raises(LiveAvatarError) as raised:
            call()
        said.append(describe(raised.value).message)
    return said


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
