"""The growing video: whole at every moment, exact in frames, colours and sound."""

import errno
import io
import struct
import threading
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from liveavatar.errors import ConfigError, MediaError, StreamClosedError
from liveavatar.media.encoder import EncoderSettings
from liveavatar.media.live_file import complete_length, iter_fragments, measure_live_file
from liveavatar.media.live_writer import AUDIO_LEAD_S, LiveVideoWriter
from liveavatar.media.remux import remux_to_progressive
from tests.unit.mp4_material import (
    QUICK,
    SILENCE,
    Array,
    decode_audio,
    decode_video,
    find,
    frame_numbers,
    moving,
    parse,
    tone,
    write,
)

# --- frames ---


def test_every_prefix_that_ends_at_an_append_decodes_to_exactly_the_frames_so_far() -> None:
    file = io.BytesIO()
    writer = LiveVideoWriter(file, width=64, height=48, settings=QUICK)
    num_frames = 0
    for block in [1, 12, 12, 3, 12]:
        writer.append(moving(block, first=num_frames), tone(block * 640, first=num_frames * 640))
        num_frames += block
        frames = decode_video(io.BytesIO(file.getvalue()))
        assert frame_numbers(frames) == [index % 24 for index in range(num_frames)]
        assert [frame.time for frame in frames] == [i / 25 for i in range(num_frames)]
    writer.abort()


@pytest.mark.parametrize("fps", [1, 16, 25, 30, 120])
def test_frame_times_follow_the_frame_rate(tmp_path: Path, fps: int) -> None:
    write(tmp_path / "live.mp4", [7, 7], fps=fps)
    remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    for name in ("live.mp4", "final.mp4"):
        times = [frame.time for frame in decode_video(tmp_path / name)]
        assert times == pytest.approx([i / fps for i in range(14)], abs=1e-9)


def test_blocks_begin_with_a_keyframe_and_single_frames_do_not_all() -> None:
    def keys(blocks: list[int]) -> list[int]:
        file = io.BytesIO()
        write(file, blocks)
        return [i for i, frame in enumerate(decode_video(file)) if frame.key_frame]

    assert keys([9, 12, 12, 12]) == [0, 9, 21, 33]
    assert keys([60]) == [0, 25, 50]  # at least one a second
    assert keys([1] * 16) == [0, 6, 12]  # no two closer than a quarter of a second


@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (128, 128), (384, 640), (65, 49), (16, 17)]
)
def test_sizes_are_kept_or_padded_to_even_by_repeating_the_edge(width: int, height: int) -> None:
    image = np.full((2, height, width, 3), 60, np.uint8)
    image[:, -1], image[:, :, -1] = 200, 200
    file = io.BytesIO()
    settings = EncoderSettings(crf=4)
    with LiveVideoWriter(file, width=width, height=height, settings=settings) as writer:
        writer.append(image, SILENCE)
    frame = decode_video(file)[1]
    assert (frame.width, frame.height) == (width + width % 2, height + height % 2)
    luma = frame.to_ndarray()[: frame.height]
    assert np.abs(luma[height - 1 :].astype(int) - 188).max() <= 6  # 16 + 200 * 219 / 255
    assert np.abs(luma[:, width - 1 :].astype(int) - 188).max() <= 6
    assert np.abs(luma[: height - 4, : width - 4].astype(int) - 68).max() <= 6


def test_colours_survive_within_rounding_and_are_tagged_bt709(tmp_path: Path) -> None:
    colours = np.random.default_rng(7).integers(0, 256, (64, 3), dtype=np.uint8)
    colours[:8] = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).T.reshape(8, 3)
    image = colours.reshape(8, 8, 3).repeat(16, 0).repeat(16, 1)
    with LiveVideoWriter(tmp_path / "live.mp4", width=128, height=128) as writer:
        writer.append(np.stack([image] * 3), SILENCE)
    remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    for name in ("live.mp4", "final.mp4"):
        frame = decode_video(tmp_path / name)[2]
        tags = (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range)
        assert tags == (1, 1, 1, 1)
        planes = frame.to_ndarray().astype(np.float64)
        luma = (planes[8:128:16, 8::16] - 16) / 219
        cb, cr = (
            (planes[at : at + 32].reshape(64, 64)[4::8, 4::8] - 128) / 224 for at in (128, 160)
        )
        red, blue = luma + 1.5748 * cr, luma + 1.8556 * cb
        green = (luma - 0.2126 * red - 0.0722 * blue) / 0.7152
        shown = np.stack([red, green, blue], axis=-1).reshape(64, 3) * 255
        # Half a step of Cb alone moves blue by 1.06 levels, half a step of luma all by 0.58; the
        # rest is for the encoder. The BT.601 matrix would be off by up to 40.
        assert np.abs(shown - colours).max() <= 4


def test_colour_tags_are_in_the_h264_stream_too_for_players_that_ignore_the_box() -> None:
    file = io.BytesIO()
    writer = write(file, [2])
    entry = find(writer.init_segment, "moov/trak/mdia/minf/stbl/stsd")[8:]
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = dict(parse(parse(entry)[0][1][78:]))["avcC"]
    moof, payload = (body for _, body in parse(file.getvalue()[len(writer.init_segment) :])[:2])
    (size,) = struct.unpack_from(">I", find(find(moof, "traf", 0), "trun"), 12)
    (frame,) = decoder.decode(av.Packet(payload[:size])) or decoder.decode(None)
    tags = (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range)
    assert tags == (1, 1, 1, 1)


# --- sound ---


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_a_click_stays_with_its_frame(tmp_path: Path, rate: int) -> None:
    frames = np.zeros((60, 48, 64, 3), np.uint8)
    frames[[0, 30, 59]] = 255
    samples = np.zeros(60 * rate // 25, np.float32)
    time = np.arange(rate // 100) / rate
    click = np.hanning(len(time)) * np.sin(2 * np.pi * 1000 * time)
    clicks = [0, 30 * rate // 25, 59 * rate // 25]
    for start in clicks:
        samples[start : start + len(click)] = click
    options = {"width": 64, "height": 48, "sample_rate_hz": rate, "settings": QUICK}
    with LiveVideoWriter(tmp_path / "live.mp4", **options) as writer:
        for first in range(0, 60, 12):
            sound = samples[first * rate // 25 : (first + 12) * rate // 25]
            writer.append(frames[first : first + 12], sound)
    remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    fine = np.arange(480) / 48_000
    template = np.hanning(480) * np.sin(2 * np.pi * 1000 * fine)
    for name in ("live.mp4", "final.mp4"):
        flashes = [f.time for f in decode_video(tmp_path / name) if f.to_ndarray().mean() > 130]
        assert flashes == [0, 1.2, 2.36]
        heard = decode_audio(tmp_path / name)
        for flash in flashes[1:]:
            start = round(flash * 48_000) - 960
            match = np.correlate(heard[start : start + 2400], template)
            assert abs(int(match.argmax()) - 960) <= 12, (name, flash)  # a quarter millisecond
        # The first sample is not lost to the priming: correlate from the very start.
        match = np.correlate(heard[:2000], template)
        assert int(match.argmax()) <= 12
        assert match.max() > 0.8 * (template**2).sum()


@pytest.mark.parametrize("num_samples", [0, 1, 5_000, 28_800, 28_801, 70_000])
def test_sound_and_picture_end_together_whatever_is_handed_in(
    tmp_path: Path, num_samples: int
) -> None:
    live = tmp_path / "live.mp4"
    with LiveVideoWriter(live, width=64, height=48, settings=QUICK) as writer:
        writer.append(moving(20), tone(num_samples // 3))
        writer.append(moving(25), tone(num_samples - num_samples // 3))
    extent = measure_live_file(live)
    audio_s = (extent.num_audio_packets - 1) * 1024 / 48_000
    assert 0 <= audio_s - 45 / 25 < 1024 / 48_000
    remux_to_progressive(live, tmp_path / "final.mp4")
    with av.open(str(tmp_path / "final.mp4")) as container:
        video, audio = container.streams
        assert video.duration * video.time_base == Fraction(45, 25)
        assert audio.duration * audio.time_base == Fraction(45, 25)
    assert len(decode_audio(tmp_path / "final.mp4")) - 86_400 in range(1024)


def test_sound_handed_in_ahead_reaches_the_end_of_each_fragments_picture(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    lead = round(AUDIO_LEAD_S * 16_000)
    sound = tone(10 * 7680 + lead)
    with LiveVideoWriter(live, width=64, height=48, settings=QUICK) as writer:
        for block in range(1, 11):
            writer.append(moving(12), sound[writer.num_samples : block * 7680 + lead])
            extent = measure_live_file(live)
            audio_s = (extent.num_audio_packets - 1) * 1024 / 48_000
            assert 0 <= audio_s - block * 0.48 < 1024 / 48_000
        writer.abort()


def test_a_tone_keeps_its_shape(tmp_path: Path) -> None:
    write(tmp_path / "live.mp4", [12] * 4)
    heard = decode_audio(tmp_path / "live.mp4")
    wanted = tone(48 * 1920, rate=48_000)
    middle = slice(4800, 48 * 1920 - 4800)
    error = heard[: len(wanted)][middle] - wanted[middle]
    assert (error**2).mean() < 1e-5 * (wanted[middle] ** 2).mean()  # 50 dB; 62 dB on this tone


# --- life and death ---


def test_closed_writer_refuses_more(tmp_path: Path) -> None:
    writer = write(tmp_path / "live.mp4", [12])
    size = (tmp_path / "live.mp4").stat().st_size
    with pytest.raises(StreamClosedError, match="closed"):
        writer.append(moving(12), SILENCE)
    with pytest.raises(StreamClosedError):
        writer.__enter__()
    writer.close()
    writer.abort()
    assert (tmp_path / "live.mp4").stat().st_size == size


def test_error_inside_the_context_leaves_the_whole_fragments(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with LiveVideoWriter(tmp_path / "live.mp4", width=64, height=48) as writer:
            writer.append(moving(12), tone(7680))
            raise RuntimeError("decoder failed")

    with pytest.raises(RuntimeError, match="decoder failed"):
        fail_midway()
    extent = measure_live_file(tmp_path / "live.mp4")
    assert (extent.num_frames, extent.num_fragments) == (12, 1)
    assert extent.num_bytes == (tmp_path / "live.mp4").stat().st_size


def test_nothing_appended_leaves_an_init_segment_alone(tmp_path: Path) -> None:
    with LiveVideoWriter(tmp_path / "live.mp4", width=64, height=48, settings=QUICK) as writer:
        writer.append(moving(0), SILENCE)
    assert (tmp_path / "live.mp4").read_bytes() == writer.init_segment
    with pytest.raises(MediaError, match="at least one whole fragment"):
        remux_to_progressive(tmp_path / "live.mp4", tmp_path / "final.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["live.mp4"]


@pytest.mark.parametrize(
    ("frames", "samples", "message"),
    [
        (np.zeros((2, 48, 64, 3), np.float32), SILENCE, "got float32"),
        (np.zeros((2, 64, 48, 3), np.uint8), SILENCE, r"expected uint8 \(T, 48, 64, 3\)"),
        (np.zeros((48, 64, 3), np.uint8), SILENCE, r"got uint8 \(48, 64, 3\)"),
        (moving(1), np.zeros((2, 100), np.float32), r"expected float32 \(n,\)"),
        (moving(1), np.zeros(100, np.int16), "got int16"),
        (moving(1), np.array([0, np.nan], np.float32), "NaN"),
    ],
)
def test_wrong_arrays_are_named_and_change_nothing(
    frames: Array, samples: Array, message: str
) -> None:
    file = io.BytesIO()
    writer = LiveVideoWriter(file, width=64, height=48, settings=QUICK)
    with pytest.raises(MediaError, match=message):
        writer.append(frames, samples)
    assert file.getvalue() == writer.init_segment
    writer.append(moving(3), tone(1920))  # the writer still works
    assert len(decode_video(file)) == 3
    writer.abort()


@pytest.mark.parametrize(
    "options",
    [{"width": 8}, {"height": 5000}, {"fps": 0}, {"fps": 25.0}, {"sample_rate_hz": 4000}],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name} expected a whole number"):
        LiveVideoWriter(io.BytesIO(), **({"width": 64, "height": 48} | options))


@pytest.mark.parametrize(
    "options",
    [{"preset": "best"}, {"crf": 60}, {"keyframe_interval_s": 0}, {"num_threads": 0}],
)
def test_encoder_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} expected"):
        EncoderSettings(**options)


class FullDisk(io.BytesIO):
    """A file on a disk with little room: takes what fits, then fails as the system does."""

    room = 3000

    def write(self, data: Any) -> int:
        taken = min(self.room - self.tell(), len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:taken])


def test_full_disk_is_one_clear_error_and_ends_the_writer() -> None:
    file = FullDisk()
    writer = LiveVideoWriter(file, width=64, height=48, settings=QUICK)

    def fill() -> None:
        for _ in range(100):
            writer.append(moving(12), tone(7680))

    with pytest.raises(MediaError, match="No space left on device") as caught:
        fill()
    assert "\n" not in str(caught.value)
    with pytest.raises(StreamClosedError):
        writer.append(moving(12), tone(7680))
    writer.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_device_is_told_at_once() -> None:
    with pytest.raises(MediaError, match="cannot write live video full: No space left"):
        LiveVideoWriter(Path("/dev/full"), width=64, height=48, settings=QUICK)


def test_path_that_cannot_be_created_is_told(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"cannot create live video live\.mp4: No such file"):
        LiveVideoWriter(tmp_path / "missing" / "live.mp4", width=64, height=48)


def test_each_call_may_come_from_another_thread(tmp_path: Path) -> None:
    writer = LiveVideoWriter(tmp_path / "live.mp4", width=64, height=48, settings=QUICK)
    calls = [
        lambda: writer.append(moving(12), tone(7680)),
        lambda: writer.append(moving(12, first=12), tone(7680, first=7680)),
        writer.close,
    ]
    for call in calls:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert frame_numbers(decode_video(tmp_path / "live.mp4")) == list(range(24))


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    frames, samples = moving(12), tone(7680)
    with LiveVideoWriter(tmp_path / "live.mp4", width=64, height=48, settings=QUICK) as writer:
        tracemalloc.start()
        try:
            held = []
            for _ in range(3):
                for _ in range(40):
                    writer.append(frames, samples)
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert held[2] - held[1] < 20_000  # 40 fragments are 19 s of video


def test_resumed_file_has_every_frame_and_unbroken_sound(tmp_path: Path) -> None:
    whole, live = tmp_path / "whole.mp4", tmp_path / "live.mp4"
    write(whole, [12] * 8)
    data = whole.read_bytes()
    with whole.open("rb") as file:
        start = complete_length(whole) and len(write(io.BytesIO(), [1]).init_segment)
        ends = [found.end for found in iter_fragments(file, start)]
    for num_blocks in (0, 1, 3):
        end = ends[num_blocks - 1] if num_blocks else start
        live.write_bytes(data[: end + 333])  # killed inside the next fragment
        options = {"width": 64, "height": 48, "settings": QUICK}
        with LiveVideoWriter.resume(live, **options) as writer:
            assert writer.num_frames == 12 * num_blocks
            first_sample = writer.num_samples
            assert first_sample <= writer.num_frames * 640
            while writer.num_frames < 96:
                samples = tone((writer.num_frames + 12) * 640)[writer.num_samples :]
                writer.append(moving(12, first=writer.num_frames), samples)
        assert frame_numbers(decode_video(live)) == [i % 24 for i in range(96)]
        extent = measure_live_file(live)
        assert extent.num_audio_packets == measure_live_file(whole).num_audio_packets
        remux_to_progressive(live, tmp_path / "final.mp4")
        heard = decode_audio(tmp_path / "final.mp4")[: 96 * 1920]
        wanted = tone(96 * 1920, rate=48_000)
        error = (heard - wanted)[2400:-2400]
        # At the seam two encoders' choices meet: 0.01. One sample of shift would make 0.023,
        # windows that do not fit 0.3.
        assert np.abs(error).max() < 0.02, num_blocks


def test_resume_refuses_another_size_and_unknown_files(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    write(live, [12])
    before = live.read_bytes()
    with pytest.raises(MediaError, match="another size"):
        LiveVideoWriter.resume(live, width=128, height=48, settings=QUICK)
    assert live.read_bytes() == before
    live.write_bytes(b"")
    with pytest.raises(MediaError, match="init segment"):
        LiveVideoWriter.resume(live, width=64, height=48, settings=QUICK)
