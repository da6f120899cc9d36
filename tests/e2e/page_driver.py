"""What a person does on the page, and what Chromium painted and heard meanwhile."""

from __future__ import annotations

import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

# Counts frames that were really painted from the first moment on.
WATCH = """
new MutationObserver(() => {
  const video = document.getElementById("la-video");
  if (!video || window.painted) return;
  window.painted = [];
  const count = (now, frame) => {
    window.painted.push(frame.mediaTime);
    video.requestVideoFrameCallback(count);
  };
  video.requestVideoFrameCallback(count);
}).observe(document, { childList: true, subtree: true });
"""

_SEEN = """() => {
  const video = document.getElementById("la-video");
  return {
    painted: window.painted?.length ?? 0, position: video.currentTime, paused: video.paused,
    sound_bytes: video.webkitAudioDecodedByteCount, width: video.videoWidth,
    phase: document.getElementById("la-stage").dataset.phase,
    step: document.getElementById("la-step").textContent,
  };
}"""


def until(page: Page, expression: str) -> None:
    """Wait until an expression is true; Playwright's own way needs `eval`, which is forbidden."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"timed out: {expression}; {seen(page)}"
        page.wait_for_timeout(30)


def open_app(context: BrowserContext, address: str) -> Page:
    """Open the page and wait until its own modules have taken over."""
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    page.add_init_script(WATCH)
    page.goto(address)
    page.wait_for_selector("#la-group-chip[data-state=ready]")
    return page


def choose_example(page: Page, name: str) -> None:
    """Click an example and wait until it has filled everything."""
    page.click(f"#la-example-{name}")
    page.wait_for_selector("#la-portrait img")
    page.wait_for_selector("#la-speech .waveform-container")
    until(page, "document.querySelector('#la-prompt textarea').value.length > 20")


def generate(page: Page) -> None:
    """Press the button and wait until the stage shows the job."""
    page.click("#la-generate")
    page.wait_for_selector("#la-numbers:not([hidden])")


def seen(page: Page) -> dict[str, Any]:
    """What the stage shows now, and how many frames were painted so far."""
    facts: dict[str, Any] = page.evaluate(_SEEN)
    return facts


def wait_for_frames(page: Page, count: int) -> None:
    """Wait until so many frames were painted."""
    until(page, f"window.painted && window.painted.length >= {count}")


def wait_for_step(page: Page, word: str) -> None:
    """Wait until the page names this step of the job."""
    until(page, f"document.getElementById('la-step').textContent === '{word}'")


def write_beeps(path: Path, beeps_s: tuple[float, ...], duration_s: float) -> None:
    """Write 16 kHz speech that is silent but for tones of 0.2 s."""
    samples = np.zeros(round(duration_s * 16_000), np.float32)
    for start in beeps_s:
        first = round(start * 16_000)
        time = np.arange(3200) / 16_000
        samples[first : first + 3200] = 0.7 * np.sin(2 * np.pi * 440 * time)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
