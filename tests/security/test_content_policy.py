"""The pages work in a real browser under their policy, and what is put into them does not run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser import chromium
from tests.e2e.page_driver import (
    choose_example,
    generate,
    open_app,
    until,
    wait_for_frames,
    wait_for_step,
)
from tests.security.servers import Target
from tests.web.live_server import Installation
from webui.content_policy import content_policy

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # Gradio uses what is deprecated
]

RECORD = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def said(browser: Browser) -> Iterator[tuple[BrowserContext, list[str]]]:
    """A browser that nobody used before, and what its console says about policies."""
    context = browser.new_context(locale="en-US", viewport={"width": 1366, "height": 900})
    context.add_init_script(RECORD)
    lines: list[str] = []

    def watch(page: Page) -> None:
        page.on("console", lambda message: lines.append(message.text))
        page.on("pageerror", lambda error: lines.append(str(error)))

    context.on("page", watch)
    yield context, lines
    context.close()


def complaints(page: Page, lines: list[str]) -> list[str]:
    violations: list[str] = page.evaluate("window.violations")
    words = ("Content Security Policy", "Refused to", "EvalError")
    return violations + [line for line in lines if any(word in line for word in words)]


def test_page_and_share_page_break_no_rule_of_their_policy(
    said: tuple[BrowserContext, list[str]], installation: Installation
) -> None:
    context, lines = said
    page = open_app(context, f"{installation.address}/?__theme=dark")
    choose_example(page, "maya")
    generate(page)
    wait_for_frames(page, 10)
    wait_for_step(page, "Done")
    assert complaints(page, lines) == []
    # In the end, what an attacker would put into the page: it is seen, and does not run.
    page.evaluate(
        """() => {
          document.body.insertAdjacentHTML("beforeend", '<img src="x" onerror="window.ran = 1">');
          const script = document.createElement("script");
          script.textContent = "window.ran = 2";
          document.body.append(script);
        }"""
    )
    until(page, "window.violations.length >= 2")
    assert page.evaluate("window.ran") is None
    (job,) = context.request.get(f"{installation.address}/api/jobs").json()
    page.close()
    lines.clear()
    for theme in ("light", "dark"):
        context.clear_cookies()
        shared = context.new_page()
        shared.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        shared.goto(f"{installation.address}{job['share_url']}")
        shared.wait_for_selector("#la-stage[data-phase=video]")
        until(shared, "document.getElementById('la-video').readyState >= 2")
        assert complaints(shared, lines) == []
        shared.close()


def test_light_page_documentation_and_login_break_no_rule_either(
    said: tuple[BrowserContext, list[str]], installation: Installation, locked: Installation
) -> None:
    context, lines = said
    page = open_app(context, f"{installation.address}/?__theme=light")
    assert complaints(page, lines) == []
    page.goto(f"{installation.address}/docs")
    assert complaints(page, lines) == []
    page.goto(locked.address)
    page.fill("[name=username]", "ann")
    page.fill("[name=password]", "secret")
    page.click("button")
    page.wait_for_selector("#la-group-chip[data-state=ready]", timeout=30_000)
    assert complaints(page, lines) == []


def test_an_uploaded_page_runs_on_plain_gradio(
    said: tuple[BrowserContext, list[str]], plain: Target, ours: Target
) -> None:
    """CVE-2024-47872, in the browser; ours does not take it, so it is served as a picture would."""
    context, _ = said
    content = b"\x89PNG\r\n\x1a\n<html><script>document.title = 'ran'</script></html>"
    (stored,) = plain.upload("x.html", content).json()
    page = context.new_page()
    page.goto(f"{plain.address}/file={stored}")
    assert page.title() == "ran"
    (stored,) = ours.upload("x.html", content).json()
    page.goto(f"{ours.address}/file={stored}")
    assert page.title() != "ran"


def test_only_inline_scripts_of_the_document_are_allowed() -> None:
    policy = content_policy('<script src="a.js"></script><script type="importmap">{}</script>')
    (scripts,) = [part for part in policy.split("; ") if part.startswith("script-src")]
    # printf '{}' | openssl dgst -sha256 -binary | base64
    allowed = "'sha256-RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o='"
    assert scripts == f"script-src 'self' {allowed}"
    assert "unsafe" not in content_policy().replace("style-src 'self' 'unsafe-inline'", "")
