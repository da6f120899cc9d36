"""A click on Generate is acted on, or visibly refused within seconds, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.page_driver import choose_example, open_app, until, wait_for_step
from tests.web.live_server import Installation, Pace, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import APIResponse, BrowserContext, Page, Route

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # Gradio uses what is deprecated
]

PACE = Pace(load_s=0.1, prepare_s=0.1, fps=200.0)
_EXAMPLES = Path(__file__).parents[2] / "examples"
_CALLS = "**/run/predict*"
_CLICK = "document.getElementById('la-generate').click()"
_REFUSED = ".la-notes[data-field=form] .la-error"
_SHOWN = "#la-numbers:not([hidden])"

# Clicks in the first frame in which the button can be pressed, before any person could.
_CLICK_FIRST = """
const look = () => {
  const button = document.getElementById("la-generate");
  if (button && !button.disabled) button.click();
  else requestAnimationFrame(look);
};
look();
"""


def test_the_first_click_that_is_possible_counts(context: BrowserContext, address: str) -> None:
    page = context.new_page()
    page.add_init_script(_CLICK_FIRST)
    page.goto(address)
    page.wait_for_selector(".la-notes[data-field=portrait] .la-error")
    assert "choose a picture" in page.inner_text(".la-notes[data-field=portrait]").lower()


def test_no_click_is_lost_to_the_end_of_an_event_stream(
    context: BrowserContext, address: str
) -> None:
    """Gradio's queue answers over a stream that it ends; a call in this moment waited for ever."""
    page = open_app(context, address)
    choose_example(page, "lin")
    page.click("#la-fold")
    until(page, "document.querySelector('#la-inspected data')")
    page.wait_for_timeout(1500)  # all that the example set off is answered
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/queue/data*", lambda route: held.append((route, route.fetch())))
    serial = "document.querySelector('#la-inspected data').dataset.serial"
    known = page.evaluate(serial)
    page.fill("#la-seed input", "7")
    page.press("#la-seed input", "Tab")  # asks for an inspection
    wait_until(lambda: held or page.evaluate(serial) != known, "the server has answered")
    page.click("#la-generate")
    page.wait_for_timeout(1000)
    for route, answer in held:  # only now the page hears that the stream has ended
        route.fulfill(response=answer)
    page.unroute("**/queue/data*")
    page.wait_for_selector(_SHOWN)


def test_a_click_that_gradio_does_not_send_is_refused(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    page.evaluate("window.requestAnimationFrame = () => 0")  # Gradio sends in the next frame
    page.evaluate(_CLICK)
    page.wait_for_selector(_REFUSED)
    assert page.evaluate("document.body.classList.contains('la-sending')") is False


def test_what_the_server_says_instead_of_an_answer_is_shown(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    choose_example(page, "ravi")
    message = "too many requests; try again in 3 s"
    body = json.dumps({"error": {"field": None, "message": message}})
    page.route(_CALLS, lambda route: route.fulfill(status=429, body=body))
    page.click("#la-generate")
    page.wait_for_selector(_REFUSED)
    assert page.inner_text(_REFUSED).lower() == message
    page.unroute(_CALLS)
    page.click("#la-generate")
    page.wait_for_selector(_SHOWN)


def test_what_is_sent_twice_is_made_once(context: BrowserContext, address: str) -> None:
    page = open_app(context, address)
    choose_example(page, "oliver")
    until(page, "document.querySelector('#la-key input, #la-key textarea').value.length > 9")
    jobs = lambda: context.request.get(f"{address}/api/jobs").json()  # noqa: E731

    def lose_answer(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route(_CALLS, lose_answer)
    page.evaluate(_CLICK)
    page.wait_for_selector(_REFUSED)
    assert len(jobs()) == 1
    page.unroute(_CALLS)
    page.evaluate(f"{_CLICK}; {_CLICK}")
    page.wait_for_selector(_SHOWN)
    wait_for_step(page, "Done")
    assert len(jobs()) == 1
    page.evaluate(_CLICK)  # what is sent anew is made anew
    wait_until(lambda: len(jobs()) == 2, "another one")


def test_a_press_waits_for_the_example_that_is_on_its_way(
    context: BrowserContext, address: str, installation: Installation
) -> None:
    page = open_app(context, address)
    choose_example(page, "lin")
    on_its_way = _hold_example(page, "ravi")
    page.click("#la-example-maya")
    page.click("#la-generate")
    until(page, "document.querySelector('#la-generate[aria-busy=true]')")
    assert context.request.get(f"{address}/api/jobs").json() == []
    on_its_way.continue_()
    page.wait_for_selector(_SHOWN)
    (job,) = context.request.get(f"{address}/api/jobs").json()
    examples = json.loads((_EXAMPLES / "examples.json").read_text(encoding="utf-8"))
    (maya,) = [example for example in examples if example["name"] == "maya"]
    assert job["prompt"] == maya["prompt"]
    folder = installation.spool.job(job["id"]).path
    for name in ("portrait", "speech"):
        (sent,) = folder.glob(f"{name}.*")
        assert sent.read_bytes() == (_EXAMPLES / maya[name]).read_bytes(), name


def test_a_press_that_waits_for_an_example_that_fails_is_refused(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    choose_example(page, "lin")
    on_its_way = _hold_example(page, "ravi")
    page.click("#la-generate")
    on_its_way.abort()
    page.wait_for_selector(_REFUSED)
    assert context.request.get(f"{address}/api/jobs").json() == []
    page.click("#la-generate")
    page.wait_for_selector(_SHOWN)


def test_what_is_changed_while_an_example_is_on_its_way_stays(
    context: BrowserContext, address: str, installation: Installation, tmp_path: Path
) -> None:
    page = open_app(context, address)
    on_its_way = _hold_example(page, "ravi")
    own = tmp_path / "own.png"
    own.write_bytes((_EXAMPLES / "maya.png").read_bytes())
    page.set_input_files("#la-portrait input[type=file]", str(own))
    page.wait_for_selector("#la-portrait img")
    page.fill("#la-prompt textarea", "A woman of my own choice")
    on_its_way.continue_()
    page.wait_for_selector("#la-speech .waveform-container")
    job = _generated(page, context, address)
    assert job["prompt"] == "A woman of my own choice"
    assert _sent(installation, job, "portrait") == own.read_bytes()
    assert _sent(installation, job, "speech") == (_EXAMPLES / "ravi.wav").read_bytes()


def test_an_example_counts_over_a_file_that_was_chosen_before(
    context: BrowserContext, address: str, installation: Installation
) -> None:
    page = open_app(context, address)
    uploads: list[tuple[Route, APIResponse]] = []
    page.route("**/upload?*", lambda route: uploads.append((route, route.fetch())))
    page.set_input_files("#la-portrait input[type=file]", str(_EXAMPLES / "maya.png"))
    wait_until(lambda: page.evaluate("true") and uploads, "the file has left")
    assert "uploading-portrait" in page.get_attribute("body", "class")
    choose_example(page, "ravi")
    for route, answer in uploads:
        route.fulfill(response=answer)
    until(page, "!document.body.classList.contains('la-uploading-portrait')")
    job = _generated(page, context, address)
    assert _sent(installation, job, "portrait") == (_EXAMPLES / "ravi.png").read_bytes()


def test_a_press_waits_for_the_file_that_is_on_its_way(
    context: BrowserContext, address: str, installation: Installation
) -> None:
    page = open_app(context, address)
    choose_example(page, "ravi")
    page.click("#la-portrait button[aria-haspopup]")
    uploads: list[Route] = []
    page.route("**/upload?*", lambda route: uploads.append(route))
    page.set_input_files("#la-portrait input[type=file]", str(_EXAMPLES / "maya.png"))
    wait_until(lambda: page.evaluate("true") and uploads, "the file has left")
    page.click("#la-generate")
    until(page, "document.querySelector('#la-generate[aria-busy=true]')")
    assert context.request.get(f"{address}/api/jobs").json() == []
    uploads[0].continue_()
    page.wait_for_selector(_SHOWN)
    (job,) = context.request.get(f"{address}/api/jobs").json()
    assert _sent(installation, job, "portrait") == (_EXAMPLES / "maya.png").read_bytes()


def test_an_example_that_was_pressed_while_a_file_came_counts_where_the_file_is_refused(
    context: BrowserContext, address: str, installation: Installation
) -> None:
    page = open_app(context, address)
    uploads: list[Route] = []
    page.route("**/upload?*", lambda route: uploads.append(route))
    page.set_input_files("#la-portrait input[type=file]", str(_EXAMPLES / "maya.png"))
    wait_until(lambda: page.evaluate("true") and uploads, "the file has left")
    page.click("#la-generate")
    page.click("#la-example-ravi")
    assert context.request.get(f"{address}/api/jobs").json() == []
    body = json.dumps({"error": {"field": None, "message": "the file is damaged"}})
    uploads[0].fulfill(status=415, body=body)
    page.wait_for_selector("#la-speech .waveform-container")
    job = _generated(page, context, address)  # the press before was about the refused file
    assert _sent(installation, job, "portrait") == (_EXAMPLES / "ravi.png").read_bytes()


def test_a_press_waits_for_a_file_for_half_an_hour_at_most(
    context: BrowserContext, address: str
) -> None:
    page = context.new_page()
    page.clock.install()
    page.goto(f"{address}/static/js/examples.js")
    page.evaluate(
        """async () => {
          const { Examples } = await import("/static/js/examples.js");
          const calls = Object.assign(new EventTarget(), { mendWith() {} });
          window.uploads = Object.assign(new EventTarget(), { areComing: true });
          window.told = [];
          const examples = new Examples(calls, uploads);
          for (const name of ["held", "failed", "dropped"]) {
            examples.addEventListener(name, () => told.push(name));
          }
          const button = Object.assign(document.createElement("button"), { id: "la-generate" });
          button.addEventListener("click", () => told.push("pressed"));
          document.body.append(button);
          button.click();
        }"""
    )
    page.clock.fast_forward(1_799_000)
    assert page.evaluate("told") == ["held"]
    page.clock.fast_forward(2000)
    page.evaluate("uploads.dispatchEvent(new Event('taken'))")
    assert page.evaluate("told") == ["held", "failed"]


def test_the_language_that_was_chosen_last_counts_for_the_tiers(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    chinese = _hold(page, "la-tell-zh", lambda: page.click("[data-language=zh]"))
    english = _hold(page, "la-tell-en", lambda: page.click("[data-language=en]"))
    for call in (english, chinese):
        with page.expect_response(_CALLS):
            call.continue_()
    page.wait_for_timeout(300)  # what an answer changes is drawn in the next frames
    page.click("#la-tier input")
    choices = page.inner_text("ul.options")
    assert "Fast" in choices, choices
    assert "快速" not in choices, choices


def _generated(page: Page, context: BrowserContext, address: str) -> Any:
    """Press Generate; returns the one job of this browser."""
    page.click("#la-generate")
    page.wait_for_selector(_SHOWN)
    (job,) = context.request.get(f"{address}/api/jobs").json()
    return job


def _sent(installation: Installation, job: Any, name: str) -> bytes:
    (sent,) = installation.spool.job(job["id"]).path.glob(f"{name}.*")
    return sent.read_bytes()


def _hold_example(page: Page, name: str) -> Route:
    """Click an example; returns its call, which does not reach the server by itself."""
    button = f"la-example-{name}"
    return _hold(page, button, lambda: page.click(f"#{button}"))


def _hold(page: Page, name: str, act: Callable[[], None]) -> Route:
    """Do what presses a button; returns its call, which does not reach the server by itself."""
    is_button = f"({{ props }}) => props.elem_id === '{name}'"
    number = page.evaluate(f"gradio_config.components.find({is_button}).id")
    held: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.post_data_json["trigger_id"] == number:
            held.append(route)
        else:
            route.fallback()

    page.route(_CALLS, hold)
    act()
    wait_until(lambda: page.evaluate("true") and held, "the call has left")
    return held[0]


def test_a_press_counts_though_the_button_moves_before_it_ends(
    context: BrowserContext, address: str
) -> None:
    """A browser makes a click only of a press and a release on the same element."""
    page = open_app(context, address)
    page.set_viewport_size({"width": 1366, "height": 1100})  # in a low one the button stays put
    box = page.locator("#la-generate").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 80, box["y"] + 4)
    page.mouse.down()
    page.evaluate("document.getElementById('la-speech').style.minHeight = '200px'")
    page.mouse.up()
    page.wait_for_selector(".la-notes[data-field=portrait] .la-error")


def test_a_recording_that_appears_leaves_the_button_in_its_place(
    context: BrowserContext, address: str
) -> None:
    page = open_app(context, address)
    page.set_viewport_size({"width": 1366, "height": 1100})
    # What it costs is said in a line or in two, as long as it takes here.
    page.evaluate("document.getElementById('la-cost').style.display = 'none'")
    place = "document.getElementById('la-generate').getBoundingClientRect().top"
    before = page.evaluate(place)
    choose_example(page, "lin")
    assert abs(page.evaluate(place) - before) < 5, "of the 42 pixels of its height"
