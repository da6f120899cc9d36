"""A real Chromium that plays our files from a small web server, and what it says about them."""

import contextlib
import functools
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


class _RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Static files with `Range: bytes=a-b`, which a player needs to seek."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, "text/html", b"<!doctype html><title>player</title>")
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self._answer(404, "text/plain", b"")
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._answer(200, "video/mp4", data)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(data)), len(data) - 1)
        if first > last:
            self._answer(416, "text/plain", b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._answer(206, "video/mp4", data[first : last + 1], span)

    def _answer(
        self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        fixed = {"Content-Type": kind, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # a player hangs up at will
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output clean."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on 127.0.0.1, as long as the context lasts; gives its address."""
    handler = functools.partial(_RangeHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """Start a headless Chromium."""
    from playwright.sync_api import (
        sync_playwright,
    )  # where it is missing only its tests are skipped

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser: "Browser", address: str) -> Iterator["Page"]:
    """Open an address in a page of its own."""
    page = browser.new_page()
    try:
        page.goto(address)
        yield page
    finally:
        page.close()


@dataclass(frozen=True)
class Playback:
    """What Chromium reports after it played a file from start to end.

    Attributes:
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        duration_s: length by the index, in seconds.
        start_s: where the first range of playable time begins.
        end_s: the position when it ended.
        decoded_frames: frames that left the decoder.
        ready_state: HTMLMediaElement.readyState, 2 or more means that a frame is there.
        error: what the element reports, empty when nothing went wrong.
    """

    width: int
    height: int
    duration_s: float
    start_s: float
    end_s: float
    decoded_frames: int
    ready_state: int
    error: str


_PLAY = """async (url) => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = url;
  video.playbackRate = 2;  // to shorten the wait
  document.body.append(video);
  await new Promise((done) => {
    video.onended = video.onerror = done;
    video.play().catch(done);
  });
  return {
    width: video.videoWidth, height: video.videoHeight, duration_s: video.duration,
    start_s: video.seekable.length ? video.seekable.start(0) : -1, end_s: video.currentTime,
    decoded_frames: video.getVideoPlaybackQuality().totalVideoFrames,
    ready_state: video.readyState, error: video.error ? video.error.message : "",
  };
}"""

_READ_PIXELS = """async ({url, time, points}) => {
  const video = document.createElement("video");
  video.muted = true;
  video.src = url;
  await new Promise((done, fail) => { video.onloadeddata = done; video.onerror = fail; });
  video.currentTime = time;
  await new Promise((done) => { video.onseeked = done; });
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  const context = canvas.getContext("2d");
  // A busy Chromium says that it has sought before it has a picture to draw.
  do {
    await new Promise(requestAnimationFrame);
    context.drawImage(video, 0, 0);
  } while (context.getImageData(0, 0, 1, 1).data[3] === 0);
  return points.map(([x, y]) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3));
}"""


def play(page: "Page", name: str) -> Playback:
    """Play a served file to its end and report."""
    facts: dict[str, Any] = page.evaluate(_PLAY, f"/{name}")
    return Playback(**facts)


def read_pixels(
    page: "Page", name: str, time_s: float, points: list[tuple[int, int]]
) -> list[list[int]]:
    """Seek to a time, draw the frame to a canvas and return its RGB at the (x, y) points."""
    arguments = {"url": f"/{name}", "time": time_s, "points": points}
    pixels: list[list[int]] = page.evaluate(_READ_PIXELS, arguments)
    return pixels


def assert_chromium_plays(
    browser: "Browser", path: Path, frames: int, width: int, height: int
) -> None:
    """Fail unless Chromium plays the file from start to end and shows every frame of it.

    Args:
        browser: a Chromium.
        path: a finished or growing MP4 file of 25 frames per second.
        frames: how many video frames it must hold.
        width: width of the picture in pixels.
        height: height of the picture in pixels.
    """
    with serve(path.parent) as address, open_page(browser, address) as page:
        shown = play(page, path.name)
    assert shown.error == "", shown
    assert (shown.width, shown.height) == (width, height), shown
    assert abs(shown.duration_s - frames / 25) < 0.025, shown  # sound may end one AAC frame later
    assert shown.start_s == 0, shown
    assert abs(shown.end_s - shown.duration_s) < 0.01, shown
    assert shown.decoded_frames == frames, shown
    assert shown.ready_state >= 2, shown
