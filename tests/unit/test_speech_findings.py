"""Faults of a recording are noticed, and good recordings get no note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr

from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.media.speech import Speech, load_speech
from tests.unit.sound_material import (
    encode_sound,
    pcm,
    tone,
    voice,
)


def load(folder: Path, data: bytes, limits: SpeechLimits | None = None) -> Speech:
    path = folder / "speech.bin"
    path.write_bytes(data)
    return load_speech(path, limits)


def codes(speech: Speech) -> set[str]:
    return {note.code for note in speech.notes}


def test_clean_speech_of_any_rate_gets_no_note(tmp_path: Path) -> None:
    for seed, rate_hz in enumerate((16_000, 22_050, 24_000, 44_100, 48_000)):
        speech = load(tmp_path, pcm(voice(rate_hz, seed=seed % 2), rate_hz))
        assert codes(speech) == set(), rate_hz


@pytest.mark.parametrize(
    ("container", "codec", "bit_rate"),
    [("mp3", "libmp3lame", 64_000), ("ipod", "aac", 96_000), ("ogg", "libopus", 32_000)],
)
def test_clean_speech_in_lossy_files_gets_no_note(
    container: str, codec: str, bit_rate: int, tmp_path: Path
) -> None:
    data = encode_sound(voice(48_000)[None], 48_000, container, codec, bit_rate=bit_rate)
    assert codes(load(tmp_path, data)) == set()


@pytest.mark.parametrize(
    ("way", "rate_hz"),
    [
        *(("filtered", rate_hz) for rate_hz in (16_000, 22_050, 44_100, 48_000)),
        *(("lines", rate_hz) for rate_hz in (16_000, 32_000, 44_100, 48_000)),
        *(("repeated", rate_hz) for rate_hz in (16_000, 32_000, 48_000)),
    ],
)
def test_telephone_speech_in_a_wider_file_is_noticed(
    way: str, rate_hz: int, tmp_path: Path
) -> None:
    narrow = voice(8_000)
    if way == "filtered":
        wide = soxr.resample(narrow, 8_000, rate_hz)
    else:
        place = np.arange(round(len(narrow) * rate_hz / 8_000) - 8) * 8_000 / rate_hz
        if way == "repeated":
            wide = narrow[place.astype(int)]
        else:
            wide = np.interp(place, np.arange(len(narrow)), narrow)
    notes = {note.code: note.message for note in load(tmp_path, pcm(wide, rate_hz)).notes}
    assert set(notes) == {"low_bandwidth"}
    assert "about 4 kHz" in notes["low_bandwidth"]
    assert f"{rate_hz} samples" in notes["low_bandwidth"]


def test_an_honest_telephone_file_is_told_apart(tmp_path: Path) -> None:
    assert codes(load(tmp_path, pcm(voice(8_000), 8_000))) == {"low_sample_rate"}


def test_a_rate_reduced_without_a_filter_is_noticed(tmp_path: Path) -> None:
    assert codes(load(tmp_path, pcm(voice(48_000)[::3], 16_000))) == {"aliasing"}


def test_a_tone_or_hum_says_nothing_about_bandwidth(tmp_path: Path) -> None:
    for hz in (50, 440, 1_000):
        assert codes(load(tmp_path, pcm(tone(44_100, hz=hz), 44_100))) == set()


def test_silence_is_a_note_and_not_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dither = rng.normal(size=16_000) * 3e-5
    for samples in (np.zeros(16_000), np.full(16_000, 0.2), dither):
        speech = load(tmp_path, pcm(samples, 16_000))
        assert codes(speech) == {"silent"}
        assert np.isfinite(speech.samples).all()


def test_faint_speech_and_long_pauses_are_noticed(tmp_path: Path) -> None:
    assert codes(load(tmp_path, pcm(voice(16_000) * 0.01, 16_000))) == {"quiet"}
    padded = np.concatenate([voice(16_000, seconds=1), np.zeros(16_000 * 5)])
    assert codes(load(tmp_path, pcm(padded, 16_000))) == {"mostly_silent"}


@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_clipping_is_noticed(rate_hz: int, tmp_path: Path) -> None:
    clipped = np.clip(voice(rate_hz) * 4, -1, 1)
    assert "clipping" in codes(load(tmp_path, pcm(clipped, rate_hz)))
    turned_down = load(tmp_path, pcm(clipped * 0.6, rate_hz))
    assert "clipping" in codes(turned_down), "flat tops stay flat when turned down"
    in_one_channel = np.stack([voice(rate_hz), clipped])
    assert "clipping" in codes(load(tmp_path, pcm(in_one_channel, rate_hz)))
    assert codes(load(tmp_path, pcm(voice(rate_hz) * 1.9, rate_hz))) == set()
