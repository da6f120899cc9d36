"""Speech of every common kind keeps its pitch, level and time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.errors import MediaError
from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.media.speech import Speech, load_speech
from tests.unit.fresh_process import memory_growth_mib
from tests.unit.sound_material import (
    SECONDS,
    chirps,
    delay_s,
    encode_sound,
    pcm,
    silent_video_bytes,
    sound_bytes,
    tone,
    voice,
    wav_bytes,
)


def load(folder: Path, data: bytes, limits: SpeechLimits | None = None) -> Speech:
    path = folder / "speech.bin"
    path.write_bytes(data)
    return load_speech(path, limits)


def codes(speech: Speech) -> set[str]:
    return {note.code for note in speech.notes}


def frequency_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return float(spectrum.argmax()) * SPEECH_RATE_HZ / (1 << 18)


# Codec, the level error of its quantisation, and whether it keeps every sample's time.
WAV_CODECS = {
    "pcm_u8": 0.01,
    "pcm_s16le": 1e-3,
    "pcm_s24le": 1e-3,
    "pcm_s32le": 1e-3,
    "pcm_f32le": 1e-3,
    "pcm_f64le": 1e-3,
    "pcm_alaw": 0.03,
    "pcm_mulaw": 0.03,
    "adpcm_ms": 0.05,
    "adpcm_ima_wav": 0.05,
}


CONTAINERS = {
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg vorbis": ("ogg", "vorbis"),
    "ogg opus": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
    "mp4": ("mp4", "aac"),
    "alac": ("ipod", "alac"),
    "mka": ("matroska", "pcm_s16le"),
    "webm": ("webm", "libopus"),
    "aiff": ("aiff", "pcm_s16be"),
    "caf": ("caf", "pcm_s16le"),
    "au": ("au", "pcm_s16be"),
    "w64": ("w64", "pcm_s16le"),
    "adts": ("adts", "aac"),
    "wma": ("asf", "wmav2"),
}


@pytest.mark.parametrize("codec", WAV_CODECS)
def test_every_kind_of_wav_keeps_pitch_level_and_time(codec: str, tmp_path: Path) -> None:
    speech = load(tmp_path, encode_sound(tone(16_000)[None], 16_000, "wav", codec))
    middle = speech.samples[1600:-1600]
    assert speech.samples.dtype == np.float32
    assert speech.source_rate_hz == 16_000
    assert abs(frequency_hz(middle) - 440) < 0.5
    assert abs(float(middle.std()) * np.sqrt(2) - 0.5) < WAV_CODECS[codec]
    bursts = load(tmp_path, encode_sound(chirps(16_000)[None], 16_000, "wav", codec))
    assert delay_s(bursts.samples, chirps(16_000)) == 0
    # ADPCM fills its last packet.
    assert abs(bursts.duration_s - SECONDS) < (0.13 if "adpcm" in codec else 1e-9)


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_common_kind_keeps_pitch_level_and_time(name: str, tmp_path: Path) -> None:
    container, codec = CONTAINERS[name]
    rate = 48_000
    layout = "stereo" if codec == "vorbis" else "mono"
    samples = np.repeat(chirps(rate)[None], 2 if layout == "stereo" else 1, 0)
    data = encode_sound(samples, rate, container, codec, layout=layout, bit_rate=96_000)
    speech = load(tmp_path, data)
    expected = chirps(SPEECH_RATE_HZ)
    assert speech.source_rate_hz == rate
    assert abs(frequency_hz(speech.samples) - 440) < 1
    power = float(np.sum(speech.samples.astype(float) ** 2) / np.sum(expected.astype(float) ** 2))
    assert abs(np.sqrt(power) - 1) < 0.05
    # Raw AAC and WMA carry no word about the encoder's run-in, so theirs stays.
    limit_s = 0.1 if name in ("adts", "wma") else 1e-3
    assert abs(delay_s(speech.samples, expected)) <= limit_s
    assert abs(speech.duration_s - SECONDS) < 0.12


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000])
def test_every_rate_is_resampled_in_time_and_level(rate_hz: int, tmp_path: Path) -> None:
    speech = load(tmp_path, pcm(chirps(rate_hz), rate_hz))
    assert speech.source_rate_hz == rate_hz
    assert len(speech.samples) == SPEECH_RATE_HZ
    # 16-bit steps of 3e-5 and the filter's ripple.
    assert np.abs(speech.samples - chirps(SPEECH_RATE_HZ)).max() < 2e-4


def test_resampling_keeps_what_it_can_hold_and_nothing_else(tmp_path: Path) -> None:
    kept = load(tmp_path, pcm(tone(48_000, hz=7_000), 48_000)).samples[1600:-1600]
    assert abs(float(kept.std()) * np.sqrt(2) - 0.5) < 1e-3
    gone = load(tmp_path, pcm(tone(48_000, hz=9_000), 48_000)).samples[1600:-1600]
    assert float(gone.std()) < 1e-4  # 74 dB down: nothing folds back


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_channels_of_the_same_sound_keep_its_level(
    layout: str, channels: int, tmp_path: Path
) -> None:
    samples = np.repeat(chirps(48_000)[None], channels, 0)
    speech = load(tmp_path, encode_sound(samples, 48_000, "wav", "pcm_s16le", layout=layout))
    assert np.abs(speech.samples - chirps(SPEECH_RATE_HZ)).max() < 2e-4


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(16_000, hz=300, level=0.6), tone(16_000, hz=800, level=0.4)
    speech = load(tmp_path, pcm(np.stack([left, right]), 16_000))
    assert np.abs(speech.samples - (left + right) / 2).max() < 1e-4
    assert "antiphase" not in codes(speech)


def test_channels_without_sound_do_not_thin_the_voice(tmp_path: Path) -> None:
    samples = np.zeros((6, 48_000), np.float32)
    samples[2] = chirps(48_000)
    speech = load(tmp_path, encode_sound(samples, 48_000, "wav", "pcm_s16le", layout="5.1"))
    assert np.abs(speech.samples - chirps(SPEECH_RATE_HZ)).max() < 2e-4
    assert "antiphase" not in codes(speech)
    one_sided = load(tmp_path, pcm(np.stack([tone(16_000), np.zeros(16_000)]), 16_000))
    assert np.abs(one_sided.samples - tone(16_000)).max() < 1e-4


def test_channels_that_cancel_give_the_louder_one_with_a_note(tmp_path: Path) -> None:
    loud = tone(16_000, level=0.5)
    speech = load(tmp_path, pcm(np.stack([-0.9 * loud, loud]), 16_000))
    assert np.abs(speech.samples - loud).max() < 1e-4
    assert "antiphase" in codes(speech)


def test_the_sound_of_a_video_is_taken(tmp_path: Path) -> None:
    speech = load(tmp_path, sound_bytes("mp4", "aac"))
    assert abs(speech.duration_s - 2.0) < 0.1
    with pytest.raises(MediaError, match="holds no sound"):
        load(tmp_path, silent_video_bytes())


def test_levels_beyond_full_scale_are_scaled_down_with_a_note(tmp_path: Path) -> None:
    integers = (voice(16_000) * 32_767).astype("<f4")
    speech = load(tmp_path, wav_bytes(integers.tobytes(), tag=3, bits=32))
    assert codes(speech) == {"over_full_scale"}
    assert float(np.abs(speech.samples).max()) == pytest.approx(1.0)


def test_samples_never_leave_the_range_even_after_resampling(tmp_path: Path) -> None:
    square = np.sign(tone(44_100, hz=200))
    speech = load(tmp_path, pcm(square, 44_100))
    assert float(np.abs(speech.samples).max()) <= 1


def test_a_cut_recording_is_used_with_a_note_when_most_is_there(tmp_path: Path) -> None:
    for container, codec in (("wav", "pcm_s16le"), ("flac", "flac")):
        data = sound_bytes(container, codec, seconds=6.0)
        speech = load(tmp_path, data[: len(data) * 8 // 10])
        assert "truncated" in codes(speech), container
        assert 3.0 < speech.duration_s < 5.0
    data = sound_bytes("mp4", "aac", seconds=6.0, movflags="faststart")
    speech = load(tmp_path, data[: len(data) * 8 // 10])
    assert "truncated" in codes(speech)
    message = next(note.message for note in speech.notes if note.code == "truncated")
    assert "of 6.0 s could be read" in message


def test_a_cut_recording_that_states_its_length_is_not_reckoned_longer(tmp_path: Path) -> None:
    data = sound_bytes("wav", "pcm_f32le", seconds=6.0)
    assert b"fact" in data[:64]  # how many samples there were
    speech = load(tmp_path, data[: len(data) * 6 // 10])
    message = next(note.message for note in speech.notes if note.code == "truncated")
    assert "of 6.0 s could be read" in message


def test_damage_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    data = bytearray(sound_bytes("flac", "flac", seconds=6.0))
    data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
    speech = load(tmp_path, bytes(data))
    assert "truncated" in codes(speech)
    assert speech.duration_s > 4


def test_a_header_from_a_pipe_is_not_taken_at_its_word(tmp_path: Path) -> None:
    data = bytearray(pcm(voice(16_000), 16_000))
    for size in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"):
        data[4:8] = data[40:44] = size
        speech = load(tmp_path, bytes(data))
        assert speech.duration_s == 4.0
        assert codes(speech) == set()


def test_the_longest_speech_is_counted_while_it_is_decoded(tmp_path: Path) -> None:
    data = encode_sound(np.zeros((1, 16_000 * 12), np.float32), 16_000, "flac", "flac")
    assert len(data) < 50_000
    with pytest.raises(MediaError, match="more than 10 s"):
        load(tmp_path, data, SpeechLimits(max_seconds=10))
    assert load(tmp_path, data, SpeechLimits(max_seconds=12)).duration_s == 12


def test_limits_are_values_the_caller_chooses(tmp_path: Path) -> None:
    data = pcm(np.stack([tone(16_000)] * 3), 16_000)
    for limits, words in (
        (SpeechLimits(max_bytes=1000), "MB"),
        (SpeechLimits(min_seconds=1.5), "at least 1.5 s"),
        (SpeechLimits(max_rate_hz=8_000), "16000 samples a second"),
        (SpeechLimits(max_channels=2), "3 channels"),
    ):
        with pytest.raises(MediaError, match=words):
            load(tmp_path, data, limits)


def test_long_speech_takes_little_more_memory_than_its_result(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav_bytes(bytes(48_000 * 2 * 2 * 60), channels=2, rate=48_000))
    grown_mib = memory_growth_mib(
        "from liveavatar.media.speech import load_speech", f"load_speech({str(path)!r})"
    )
    # 60 s are 4 MB at 16 kHz; level checks take a float64 copy of it and its squares. The two
    # channels at their own rate would be 23 MB in float32, and the same again when joined.
    assert grown_mib < 40
