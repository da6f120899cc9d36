"""The page in a real browser over a group that draws: it plays while the video is still made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.page_driver import (
    choose_example,
    generate,
    open_app,
    seen,
    until,
    wait_for_frames,
    wait_for_step,
    write_beeps,
)
from tests.web.live_server import Installation, Pace, free_port, serve, wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # Gradio uses what is deprecated
]

# Faster than it plays, and slow enough that the job runs on for seconds once it plays.
PACE = Pace(load_s=0.1, prepare_s=0.3, fps=32.0)


def test_an_example_plays_with_sound_before_the_job_is_done_and_downloads_afterwards(
    context: BrowserContext, address: str, installation: Installation
) -> None:
    page = open_app(context, address)
    choose_example(page, "maya")
    generate(page)
    wait_for_frames(page, 15)
    first = seen(page)
    (job,) = context.request.get(f"{address}/api/jobs").json()
    assert job["state"] == "running", job
    assert first["phase"] == "video", first
    assert first["width"] == job["width"], first
    page.wait_for_timeout(400)
    second = seen(page)
    assert second["painted"] > first["painted"], (first, second)
    assert second["position"] > first["position"], (first, second)
    assert second["sound_bytes"] > 0, second
    wait_for_step(page, "Done")
    with page.expect_download() as waiting:
        page.click("#la-download")
    stored = installation.spool.job(job["id"]).video.read_bytes()
    assert Path(waiting.value.path()).read_bytes() == stored
    page.wait_for_selector("#la-history-list [style*=thumbnails]")
    page.fill("#la-seek", "1")  # the same player seeks freely
    assert abs(seen(page)["position"] - 1) < 0.5


def test_what_is_seen_and_what_is_heard_are_at_most_40_ms_apart(
    context: BrowserContext, address: str, tmp_path: Path
) -> None:
    speech = tmp_path / "beeps.wav"
    write_beeps(speech, (1.0, 2.0), 3.0)
    page = open_app(context, address)
    choose_example(page, "maya")
    page.click("#la-speech button[aria-haspopup]")
    page.set_input_files("#la-speech input[type=file]", str(speech))
    until(page, "document.querySelector('#la-speech #duration')?.textContent === '0:03'")
    generate(page)
    # The strip below the picture is as bright as the sound of the frame is loud.
    flashes, beeps = page.evaluate(
        """async () => {
          const video = document.getElementById("la-video");
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = 32;
          const context = canvas.getContext("2d", { willReadFrequently: true });
          const flashes = [];
          let wasBright = false;
          await new Promise((done) => {
            const look = (now, frame) => {
              context.drawImage(video, 0, 0, 32, 32);
              const isBright = context.getImageData(16, 31, 1, 1).data[0] > 128;
              if (isBright && !wasBright) flashes.push(frame.mediaTime);
              wasBright = isBright;
              if (frame.mediaTime > 2.6) done();
              else video.requestVideoFrameCallback(look);
            };
            video.requestVideoFrameCallback(look);
          });
          const [job] = await (await fetch("/api/jobs")).json();
          const bytes = await (await fetch(job.live_url)).arrayBuffer();
          const sound = await new OfflineAudioContext(1, 48000, 48000).decodeAudioData(bytes);
          const samples = sound.getChannelData(0);
          const beeps = [];
          let last = -1;
          for (let i = 0; i < samples.length; i += 1) {
            if (Math.abs(samples[i]) < 0.2) continue;
            if (last < 0 || i - last > 4800) beeps.push(i / sound.sampleRate);
            last = i;
          }
          return [flashes, beeps];
        }"""
    )
    assert len(flashes) == len(beeps) == 2, (flashes, beeps)
    for flash, beep in zip(flashes, beeps, strict=True):
        assert abs(flash - beep) <= 0.04, (flashes, beeps)


def test_a_refresh_rejoins_and_a_late_viewer_sees_it_from_the_start(
    context: BrowserContext, browser: Browser, address: str
) -> None:
    page = open_app(context, address)
    choose_example(page, "walter")
    generate(page)
    wait_for_frames(page, 10)
    page.reload()
    page.wait_for_selector("#la-stage[data-phase=video]")
    (job,) = context.request.get(f"{address}/api/jobs").json()
    late = browser.new_context()
    viewer = late.new_page()
    viewer.goto(address + job["share_url"])
    until(viewer, "document.getElementById('la-video').currentTime > 0.3")
    assert viewer.evaluate("document.getElementById('la-video').buffered.start(0)") == 0
    assert viewer.title() == job["title"]
    late.close()
    wait_for_step(page, "Done")
    wait_for_frames(page, 10)


_HIDE = """(isHidden) => {
  Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
_MADE = """() => {
  const { buffered } = document.getElementById("la-video");
  return buffered.length ? buffered.end(0) : 0;
}"""


def test_eight_tabs_share_the_connections_of_one_browser(
    context: BrowserContext, tmp_path: Path
) -> None:
    slow = Installation(tmp_path, pace=Pace(load_s=0.1, prepare_s=0.1, fps=8.0), with_page=True)
    with serve(slow) as address:
        first = open_app(context, address)
        choose_example(first, "walter")
        generate(first)
        wait_for_frames(first, 1)
        (job,) = context.request.get(f"{address}/api/jobs").json()
        pages = [first]
        for _ in range(7):  # a headless browser takes all its tabs for visible
            pages[-1].evaluate(_HIDE, True)
            pages.append(context.new_page())
            pages[-1].goto(address + job["share_url"])
            until(pages[-1], f"({_MADE})() > 0")
        streams = slow.app.state.streams
        wait_until(lambda: streams.num_viewers == 1, "only the visible one holds a connection")
        assert pages[7].evaluate("fetch('/api/group').then((answer) => answer.status)") == 200
        first.wait_for_timeout(1000)  # what had come before it was hidden is taken in
        rested = first.evaluate(_MADE)
        pages[7].click("#la-play-now")  # now it plays, and plays on when hidden
        until(pages[7], "document.getElementById('la-video').currentTime > 0")
        pages[7].evaluate(_HIDE, True)
        heard = pages[7].evaluate(_MADE)
        until(pages[7], f"({_MADE})() > {heard}")
        assert streams.num_viewers == 0
        assert first.evaluate(_MADE) == rested
        first.evaluate(_HIDE, False)
        until(first, f"({_MADE})() > {rested}")
        first.click("#la-cancel")
        for page in (first, pages[7]):
            wait_for_step(page, "Cancelled")


def test_the_page_finds_back_to_its_job_after_a_restart_of_the_server(
    context: BrowserContext, tmp_path: Path
) -> None:
    port = free_port()
    pace = Pace(load_s=0.1, prepare_s=0.1, fps=20.0)
    with serve(Installation(tmp_path, pace=pace, with_page=True), port) as address:
        page = open_app(context, address)
        choose_example(page, "maya")
        generate(page)
        wait_for_frames(page, 1)
    page.wait_for_selector("#la-group-chip[data-state=lost]")
    with serve(Installation(tmp_path, pace=PACE, with_page=True), port):
        page.wait_for_selector("#la-group-chip[data-state=ready]")
        wait_for_step(page, "Done")
        (job,) = context.request.get(f"{address}/api/jobs").json()
        assert (job["state"], job["frames"]) == ("done", job["total_frames"])
        page.click("#la-play")
        until(page, "document.getElementById('la-video').currentTime > 0.3")


def test_slow_rendering_says_its_speed_and_when_it_plays(
    context: BrowserContext, tmp_path: Path
) -> None:
    slow = Installation(tmp_path, pace=Pace(load_s=0.1, prepare_s=0.1, fps=12.0), with_page=True)
    with serve(slow) as address:
        page = open_app(context, address)
        choose_example(page, "maya")
        generate(page)
        page.wait_for_selector("#la-caption:not([hidden])")
        until(
            page,
            "/Rendering at 0.[45]× · plays/.test("
            "document.getElementById('la-caption-text').textContent)",
        )
        assert seen(page)["painted"] >= 1  # the first picture is there while it waits
        page.click("#la-play-now")
        until(page, "document.getElementById('la-video').currentTime > 0.2")
        page.click("#la-cancel")
        wait_for_step(page, "Cancelled")
