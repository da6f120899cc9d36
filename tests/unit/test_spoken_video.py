"""A growing video with the upload's sound: whole fragments, sound under its frames, a clean end."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from liveavatar.errors import MediaError, StreamClosedError
from liveavatar.media.live_file import measure_live_file
from liveavatar.media.soundtrack import Soundtrack, open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo
from tests.unit.mp4_material import decode_audio, decode_video, frame_numbers, moving
from tests.unit.sound_material import chirps, pcm, tone

WIDTH, HEIGHT = 64, 48


def write_sound(folder: Path, samples: np.ndarray, rate_hz: int = 48_000) -> Path:
    path = folder / "sound.wav"
    path.write_bytes(pcm(samples, rate_hz))
    return path


def write_video(live: Path, sound: Soundtrack, blocks: list[int]) -> SpokenVideo:
    with SpokenVideo(live, sound, WIDTH, HEIGHT) as video:
        for num_frames in blocks:
            video.append(moving(num_frames, first=video.num_frames))
    return video


@pytest.mark.parametrize("blocks", [[25], [12, 12, 1], [9, 12, 4], [1] * 25])
def test_every_frame_is_in_the_file_in_order_however_they_come(
    tmp_path: Path, blocks: list[int]
) -> None:
    live = tmp_path / "live.mp4"
    video = write_video(live, open_soundtrack(write_sound(tmp_path, tone(48_000))), blocks)
    assert video.num_frames == 25
    assert frame_numbers(decode_video(live)) == [number % 24 for number in range(25)]


@pytest.mark.parametrize("blocks", [[25], [12, 12, 1], [3, 12, 10]])
def test_sound_stands_where_it_was_in_the_upload(tmp_path: Path, blocks: list[int]) -> None:
    live, heard = tmp_path / "live.mp4", chirps(48_000)
    write_video(live, open_soundtrack(write_sound(tmp_path, heard)), blocks)
    written = decode_audio(live)[: len(heard)]
    size = 1 << 17
    product = np.fft.rfft(written, size) * np.fft.rfft(heard, size).conj()
    lag = int(np.fft.irfft(product).argmax())
    lag = lag - size if lag > size // 2 else lag
    assert abs(lag) <= 480  # 10 ms, a quarter of a frame
    assert np.corrcoef(written, heard[: len(written)])[0, 1] > 0.95


@pytest.mark.parametrize("seconds", [0.2, 1.0, 3.0])
def test_sound_and_picture_end_together_whatever_the_length_of_the_upload(
    tmp_path: Path, seconds: float
) -> None:
    live = tmp_path / "live.mp4"
    sound = open_soundtrack(write_sound(tmp_path, tone(48_000, seconds=seconds)))
    write_video(live, sound, [12, 12, 12])
    written = decode_audio(live)
    assert abs(len(written) / 48_000 - 36 / 25) < 0.03
    heard = np.abs(written) > 0.1
    assert heard[: int(min(seconds, 1.4) * 48_000) - 2400].any()
    assert not heard[int(seconds * 48_000) + 4800 :].any()


def test_every_append_is_a_whole_fragment_with_its_sound(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    sound = open_soundtrack(write_sound(tmp_path, tone(48_000, seconds=3)))
    with SpokenVideo(live, sound, WIDTH, HEIGHT) as video:
        for block in range(1, 5):
            video.append(moving(12, first=video.num_frames))
            extent = measure_live_file(live)
            assert extent.num_bytes == live.stat().st_size
            assert (extent.num_fragments, extent.num_frames) == (block, 12 * block)
            # 1024 samples of 48 kHz to a packet; a player never lacks sound for a frame it has.
            assert extent.num_audio_packets * 1024 >= 12 * block * 1920


def test_an_error_in_the_block_closes_the_file_after_its_last_whole_fragment(
    tmp_path: Path,
) -> None:
    live = tmp_path / "live.mp4"
    video = SpokenVideo(live, open_soundtrack(write_sound(tmp_path, tone(48_000))), WIDTH, HEIGHT)

    def fail() -> None:
        with video:
            video.append(moving(12))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    extent = measure_live_file(live)
    assert (extent.num_fragments, extent.num_frames) == (1, 12)
    assert extent.num_bytes == live.stat().st_size
    with pytest.raises(StreamClosedError):
        video.append(moving(12))


def test_a_video_without_frames_is_a_file_without_fragments(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    write_video(live, open_soundtrack(write_sound(tmp_path, tone(48_000))), [])
    extent = measure_live_file(live)
    assert (extent.num_fragments, extent.num_frames) == (0, 0)


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
def test_leaving_the_block_closes_the_sound_and_every_file(
    tmp_path: Path, error: Exception | None
) -> None:
    path = write_sound(tmp_path, tone(48_000))
    before = len(os.listdir("/proc/self/fd"))
    sound = open_soundtrack(path)
    video = SpokenVideo(tmp_path / "live.mp4", sound, WIDTH, HEIGHT)
    video.append(moving(12))
    video.__exit__(type(error) if error else None, error, None)
    assert len(sound.read(10)) == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_frames_of_another_size_are_refused_and_the_file_stays_whole(tmp_path: Path) -> None:
    live = tmp_path / "live.mp4"
    sound = open_soundtrack(write_sound(tmp_path, tone(48_000)))
    with SpokenVideo(live, sound, WIDTH, HEIGHT) as video:
        video.append(moving(12))
        with pytest.raises(MediaError, match="frames expected uint8"):
            video.append(moving(12, width=32))
    assert len(decode_video(live)) == 12


def test_a_file_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    with (
        open_soundtrack(write_sound(tmp_path, tone(48_000))) as sound,
        pytest.raises(MediaError, match=r"^cannot create live video live\.mp4: .*$"),
    ):
        SpokenVideo(tmp_path / "gone" / "live.mp4", sound, WIDTH, HEIGHT)
