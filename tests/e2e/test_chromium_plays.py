"""What the writer makes is what a real browser plays: finished, and while it grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from liveavatar.media.live_file import complete_length, measure_live_file
from liveavatar.media.live_writer import LiveVideoWriter
from liveavatar.media.remux import remux_to_progressive
from tests.e2e.browser import assert_chromium_plays, open_page, read_pixels, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

PATCHES = [
    (0, 0, 0),
    (255, 255, 255),
    (128, 128, 128),
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (224, 172, 140),
    (40, 90, 60),
]
WIDTH, HEIGHT = 32 * len(PATCHES), 64
LEAD = 2400  # samples: 0.15 s


def patches(num_frames: int) -> np.ndarray:
    row = np.array(PATCHES, np.uint8).repeat(32, axis=0)
    return np.broadcast_to(row, (num_frames, HEIGHT, WIDTH, 3))


def speech(num_samples: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(num_samples) / 16_000)).astype(np.float32)


def write_live(path: Path, num_blocks: int) -> list[int]:
    """Write blocks of 12 frames; return the byte length after each step, init segment first."""
    with LiveVideoWriter(path, width=WIDTH, height=HEIGHT) as writer:
        ends = [path.stat().st_size]
        sound = speech(num_blocks * 7680)
        for block in range(num_blocks):
            upto = (block + 1) * 7680 + LEAD
            writer.append(patches(12), sound[writer.num_samples : upto])
            ends.append(path.stat().st_size)
    ends.append(path.stat().st_size)
    return ends


def test_finished_file_plays_to_its_end_with_every_frame(browser: Browser, tmp_path: Path) -> None:
    write_live(tmp_path / "live.mp4", 4)
    remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    assert_chromium_plays(browser, tmp_path / "final.mp4", 48, WIDTH, HEIGHT)


def test_live_file_of_a_killed_writer_plays_as_it_is(browser: Browser, tmp_path: Path) -> None:
    ends = write_live(tmp_path / "live.mp4", 4)
    data = (tmp_path / "live.mp4").read_bytes()
    (tmp_path / "killed.mp4").write_bytes(data[: ends[3] + 700])
    assert measure_live_file(tmp_path / "killed.mp4").num_frames == 36
    remux_to_progressive(tmp_path / "killed.mp4", tmp_path / "saved.mp4")
    assert_chromium_plays(browser, tmp_path / "saved.mp4", 36, WIDTH, HEIGHT)


def test_colours_on_a_canvas_are_those_handed_in(browser: Browser, tmp_path: Path) -> None:
    write_live(tmp_path / "live.mp4", 2)
    remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    points = [(32 * i + 16, HEIGHT // 2) for i in range(len(PATCHES))]
    with serve(tmp_path) as address, open_page(browser, address) as page:
        for name in ("final.mp4", "live.mp4"):
            shown = np.array(read_pixels(page, name, 0.5, points))
            # Y, Cb and Cr are rounded to one of 219 or 224 steps, so 2 levels of RGB, and 2 more
            # for the browser's own rounding. BT.601 taken for BT.709 would be off by up to 40,
            # full range taken for limited by 16.
            allowed = np.full((len(PATCHES), 3), 4.0)
            # Without a GPU Chromium converts with libyuv, whose BT.709 factor from Cb to blue is
            # 2.0 in place of 2.112 (it has to fit 7 bits).
            red, green, blue = np.array(PATCHES).T
            luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
            allowed[:, 2] += 0.112 * np.abs(blue - luma) / 1.8556 * 224 / 255
            assert (np.abs(shown - np.array(PATCHES)) <= allowed).all(), (name, shown.tolist())


_OPEN = """async ({url, codecs}) => {
  const video = document.createElement("video");
  video.muted = true;
  document.body.append(video);
  const media = new MediaSource();
  video.src = URL.createObjectURL(media);
  await new Promise((done) => { media.onsourceopen = done; });
  const type = `video/mp4; codecs="${codecs}"`;
  if (!MediaSource.isTypeSupported(type)) throw new Error(`not supported: ${type}`);
  window.live = { url, video, media, buffer: media.addSourceBuffer(type) };
}"""

_APPEND = """async ([first, end]) => {
  const { url, video, buffer } = window.live;
  const reply = await fetch(url, { headers: { Range: `bytes=${first}-${end - 1}` } });
  const data = await reply.arrayBuffer();
  if (data.byteLength !== end - first) throw new Error(`got ${data.byteLength} bytes`);
  await new Promise((done, fail) => {
    buffer.onupdateend = done;
    buffer.onerror = () => fail(new Error(video.error ? video.error.message : "append failed"));
    buffer.appendBuffer(data);
  });
  const ranges = [];
  for (let i = 0; i < buffer.buffered.length; i++) {
    ranges.push([buffer.buffered.start(i), buffer.buffered.end(i)]);
  }
  return ranges;
}"""

_PLAY_TO_END = """async (from) => {
  const { video, media } = window.live;
  media.endOfStream();
  if (from > 0) video.currentTime = from;  // a seek decodes the buffered frames again
  video.playbackRate = 2;
  await new Promise((done) => { video.onended = video.onerror = done; video.play(); });
  return {
    width: video.videoWidth, height: video.videoHeight, end: video.currentTime,
    duration: video.duration, error: video.error ? video.error.message : "",
    frames: video.getVideoPlaybackQuality().totalVideoFrames,
  };
}"""


def open_media_source(page: Page, path: Path) -> None:
    codecs = measure_live_file(path).codecs
    page.evaluate(_OPEN, {"url": f"/{path.name}", "codecs": codecs})


def test_growing_file_plays_through_media_source_after_every_append(
    browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "live.mp4"
    num_blocks = 5
    sound = speech(num_blocks * 7680)
    with serve(tmp_path) as address, open_page(browser, address) as page:
        writer = LiveVideoWriter(path, width=WIDTH, height=HEIGHT)
        open_media_source(page, path)
        seen = complete_length(path)
        assert page.evaluate(_APPEND, [0, seen]) == []
        for block in range(1, num_blocks + 1):
            upto = block * 7680 + LEAD
            writer.append(patches(12), sound[writer.num_samples : upto])
            end = complete_length(path, seen)
            ranges = page.evaluate(_APPEND, [seen, end])
            seen = end
            # At the very end no sound is left to hand in ahead: it is complete after close().
            playable = 0.48 * block - (0.15 if block == num_blocks else 0)
            assert len(ranges) == 1, ranges
            assert ranges[0][0] == 0
            assert ranges[0][1] >= playable - 1e-6
        writer.close()
        ((start, end_s),) = page.evaluate(_APPEND, [seen, complete_length(path, seen)])
        # The priming packet is not counted: Chromium applies the edit list.
        packets = measure_live_file(path).num_audio_packets
        assert start == 0
        assert end_s == pytest.approx(min((packets - 1) * 1024 / 48_000, 2.4), abs=1e-5)
        shown: dict[str, Any] = page.evaluate(_PLAY_TO_END, 0)
    assert shown["error"] == ""
    assert (shown["width"], shown["height"], shown["frames"]) == (WIDTH, HEIGHT, 60)
    assert shown["duration"] == pytest.approx(2.4, abs=0.022)
    assert shown["end"] == pytest.approx(shown["duration"], abs=0.01)


def test_late_viewer_starts_at_the_newest_fragment(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "live.mp4"
    ends = write_live(path, 4)
    with serve(tmp_path) as address, open_page(browser, address) as page:
        open_media_source(page, path)
        page.evaluate(_APPEND, [0, ends[0]])
        ranges = page.evaluate(_APPEND, [ends[3], ends[-1]])
        assert len(ranges) == 1
        assert ranges[0][0] == pytest.approx(1.44, abs=0.022)
        shown = page.evaluate(_PLAY_TO_END, ranges[0][0])
    assert shown["error"] == ""
    assert shown["frames"] == 12
    assert shown["end"] == pytest.approx(1.92, abs=0.03)
