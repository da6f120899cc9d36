"""How soon the first decoded block is painted by a real browser, over encoder, file, server, page.

    python -m benchmarks.first_paint [--size 688*368] [--runs 10] [--json]

The application runs over a group that draws, so that the moment in which a block is decoded is
known; all behind it is what every job goes through. Each run is what a person does: a new browser
profile opens the page, clicks an example and Generate, and waits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.environment import describe_environment
from liveavatar.config import SamplingConfig
from liveavatar.engine.fake import FakeGroup, Pace
from liveavatar.engine.supervisor import Supervisor
from liveavatar.errors import LiveAvatarError
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.media.reader_process import MediaReader
from liveavatar.plan.tiers import Tier
from liveavatar.request import SizeOption, parse_size
from webui.mounting import mount_page
from webui.offers import ServedModel
from webui.running import listen
from webui.server import create_app
from webui.service import Service
from webui.settings import ServerSettings

_PACE = Pace(load_s=0.1, prepare_s=1.0, fps=30.0)
_PATIENCE_MS = 60_000
_WATCH = """(patienceMs) => new Promise((painted, missed) => {
  const video = document.getElementById("la-video");
  video.requestVideoFrameCallback((now) => painted(performance.timeOrigin + now));
  const step = () => document.getElementById("la-step").textContent;
  setTimeout(() => missed(Error(`nothing was painted in time, step '${step()}'`)), patienceMs);
})"""
_CLOCK = "performance.timeOrigin + performance.now()"
_PROMPT_IS_FILLED = "document.querySelector('#la-prompt textarea').value.length > 20"


@dataclass(frozen=True)
class Report:
    """Milliseconds from a decoded first block to its first painted frame, over all runs."""

    size: str
    runs: int
    median_ms: float
    p95_ms: float
    largest_ms: float


class Decoded:
    """Remembers when the first block of the latest job was decoded."""

    def __init__(self) -> None:
        self.at_ms = 0.0

    def note(self, block: int) -> None:
        """A block is decoded now."""
        if block == 0:
            self.at_ms = 1000 * time.time()


@contextlib.contextmanager
def application(size: SizeOption, decoded: Decoded) -> Iterator[str]:
    """Serve the page over a group that draws videos of this size; gives the address."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        spool = Spool(Path(name))
        store = JobStore(sqlite_url(spool.root / "jobs.db"))
        stack.callback(store.close)
        reader = MediaReader()
        stack.callback(reader.close)
        settings = ServerSettings(tiers=(Tier("fast", size, SamplingConfig(num_clip=50)),))
        service = Service(store, spool, settings, ServedModel("test picture"), reader)
        supervisor = Supervisor(store, spool, lambda: FakeGroup(_PACE, decoded.note))
        app = create_app(service, mount_page)
        listener = stack.enter_context(listen("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        supervisor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            supervisor.stop()
            server.should_exit = True
            thread.join(20)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the machine's Chromium, or else the one that Playwright keeps."""
    with sync_playwright() as playwright:
        found = shutil.which("chromium")
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def run_once(browser: Browser, address: str, decoded: Decoded) -> float:
    """Ask for a video as a person does; milliseconds from its first block to its first picture."""
    context = browser.new_context(viewport={"width": 1366, "height": 900})
    try:
        page = context.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        page.goto(address)
        page.wait_for_selector("#la-group-chip[data-state=ready]")
        _choose_example(page)
        page.click("#la-generate")
        painted_ms: float = page.evaluate(_WATCH, _PATIENCE_MS)
        elapsed_ms = painted_ms - _clock_offset_ms(page) - decoded.at_ms
        page.click("#la-cancel")
        page.wait_for_selector("#la-cancel:disabled")
        return elapsed_ms
    finally:
        context.close()


def _choose_example(page: Page) -> None:
    """Click an example and wait until it has filled the form."""
    page.click("#la-example-maya")
    page.wait_for_selector("#la-speech .waveform-container")
    _wait_until(page, _PROMPT_IS_FILLED)


def _clock_offset_ms(page: Page) -> float:
    """How far the browser's clock is ahead of ours, from the quickest of some questions."""
    asked = []
    for _ in range(10):
        before = 1000 * time.time()
        theirs: float = page.evaluate(_CLOCK)
        after = 1000 * time.time()
        asked.append((after - before, theirs - (before + after) / 2))
    return min(asked)[1]


def _wait_until(page: Page, expression: str) -> None:
    """Playwright's own way needs `eval`, which the content policy forbids."""
    deadline = time.monotonic() + _PATIENCE_MS / 1000
    while not page.evaluate(expression):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the page did not come so far: {expression}")
        page.wait_for_timeout(30)


def measure(size: SizeOption, runs: int) -> Report:
    """Measure one size of video, after one run that does not count."""
    decoded = Decoded()
    with application(size, decoded) as address, chromium() as browser:
        run_once(browser, address, decoded)
        times = sorted(run_once(browser, address, decoded) for _ in range(runs))
    p95 = times[min(runs - 1, round(0.95 * (runs - 1)))]
    return Report(str(size), runs, statistics.median(times), p95, times[-1])


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_paint")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--size", default="688*368", help="of the video")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        size = parse_size(options.size)
    except LiveAvatarError as error:
        parser.error(str(error))
    report = measure(size, max(1, options.runs))
    record = asdict(report) | describe_environment(torch.device("cpu"))
    if options.json:
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    else:
        for key, value in record.items():
            shown = f"{value:.0f}" if isinstance(value, float) else value
            sys.stdout.write(f"{key:>10}  {shown}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
