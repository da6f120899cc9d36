"""The soundtrack at 48 kHz is the speech at 16 kHz: same channels, level, start and length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.errors import MediaError
from liveavatar.media.live_writer import AUDIO_LEAD_S, LiveVideoWriter
from liveavatar.media.sound_reader import SpeechLimits
from liveavatar.media.soundtrack import SOUNDTRACK_RATE_HZ, open_soundtrack
from liveavatar.media.speech import load_speech
from tests.unit.fresh_process import memory_growth_mib
from tests.unit.malformed_inputs import CATALOGUE
from tests.unit.mp4_material import QUICK, decode_audio, moving
from tests.unit.sound_material import encode_sound, pcm, sound_bytes, tone, voice, wav_bytes


def save(folder: Path, data: bytes) -> Path:
    path = folder / "speech.bin"
    path.write_bytes(data)
    return path


def whole(path: Path, step: int = 23_040) -> np.ndarray:
    """The soundtrack, read in blocks of 12 frames."""
    with open_soundtrack(path) as soundtrack:
        parts = []
        while len(part := soundtrack.read(step)):
            parts.append(part)
        samples = np.concatenate(parts)
        assert len(samples) == soundtrack.num_samples
    return samples


def lag(samples: np.ndarray, expected: np.ndarray) -> int:
    """How many samples later the first sound is, from the peak of their correlation."""
    size = 1 << (len(samples) + len(expected)).bit_length()
    product = np.fft.rfft(samples, size) * np.fft.rfft(expected, size).conj()
    found = int(np.fft.irfft(product).argmax())
    return found - size if found > size // 2 else found


def assert_same_sound(samples: np.ndarray, heard: np.ndarray) -> None:
    """Compare a soundtrack with speech from `load_speech`, in length, time and level."""
    assert samples.dtype == np.float32
    assert len(samples) * SPEECH_RATE_HZ == len(heard) * SOUNDTRACK_RATE_HZ
    assert lag(samples, soxr.resample(heard, SPEECH_RATE_HZ, SOUNDTRACK_RATE_HZ)) == 0
    reduced = soxr.resample(samples, SOUNDTRACK_RATE_HZ, SPEECH_RATE_HZ, "VHQ")
    error = (reduced - heard)[800:-800]  # at the ends the filters see different silence
    # Two filters one after the other, against one, differ only close to 8 kHz.
    assert error.std() < 0.01 * heard.std()


KINDS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "m4a": ("ipod", "aac"),
    "flac": ("flac", "flac"),
    "vorbis": ("ogg", "vorbis"),
    "opus": ("ogg", "libopus"),
}


@pytest.mark.parametrize(
    ("kind", "rate_hz"),
    [
        *(("wav", rate_hz) for rate_hz in (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000)),
        *((kind, rate_hz) for kind in ("mp3", "m4a", "flac") for rate_hz in (16_000, 44_100)),
        *((kind, 48_000) for kind in KINDS if kind != "wav"),
        ("mp3", 22_050),
        ("m4a", 32_000),
        ("vorbis", 44_100),
        ("opus", 16_000),
    ],
)
def test_the_soundtrack_is_the_speech_in_length_time_and_level(
    kind: str, rate_hz: int, tmp_path: Path
) -> None:
    # A length that is no whole number of codec frames, nor of samples at the other rate.
    original = voice(rate_hz, seconds=1)[: round(0.9337 * rate_hz)]
    channels = 2 if kind == "vorbis" else 1
    data = encode_sound(
        np.repeat(original[None], channels, 0),
        rate_hz,
        *KINDS[kind],
        layout="stereo" if channels == 2 else "mono",
        bit_rate=96_000,
    )
    path = save(tmp_path, data)
    samples = whole(path)
    assert_same_sound(samples, load_speech(path).samples)
    # And both begin where the recording does: the run-in of the codec is gone. The one that is not
    # told in a file, Vorbis as FFmpeg writes it, is shorter than a millisecond.
    exact = soxr.resample(original, rate_hz, SOUNDTRACK_RATE_HZ)
    assert abs(lag(samples, exact)) <= (48 if kind == "vorbis" else 1)


def test_the_soundtrack_keeps_what_the_model_cannot_hear(tmp_path: Path) -> None:
    for rate_hz in (44_100, 48_000, 96_000):
        path = save(tmp_path, pcm(tone(rate_hz, hz=15_000), rate_hz))
        assert float(whole(path)[4800:-4800].std()) * np.sqrt(2) == pytest.approx(0.5, abs=1e-3)
        assert float(load_speech(path).samples[1600:-1600].std()) < 1e-4


def test_sound_of_48_khz_passes_bit_for_bit(tmp_path: Path) -> None:
    original = np.rint(voice(48_000, seconds=1) * 32_768).astype(np.float32) / 32_768
    assert np.array_equal(whole(save(tmp_path, pcm(original, 48_000))), original)


def test_reads_of_any_size_join_to_the_same_sound(tmp_path: Path) -> None:
    path = save(tmp_path, pcm(voice(44_100, seconds=2), 44_100))
    expected = whole(path)
    sizes = np.random.default_rng(0).integers(0, 9_000, 100)
    with open_soundtrack(path) as soundtrack:
        parts = [soundtrack.read(int(size)) for size in sizes]
        lengths = [len(part) for part in parts]
        end = np.cumsum(sizes).searchsorted(len(expected))
        assert lengths[:end] == sizes[:end].tolist(), "less than asked for only at the end"
        assert np.array_equal(np.concatenate(parts), expected)
        assert soundtrack.read(1000).shape == (0,)
        assert soundtrack.read(0).dtype == np.float32
    with open_soundtrack(path) as soundtrack:
        assert soundtrack.skip(70_001) == 70_001
        assert np.array_equal(soundtrack.read(500), expected[70_001:70_501])
        assert soundtrack.skip(10**9) == len(expected) - 70_501


def test_the_mix_of_the_speech_saves_measuring_and_changes_nothing(tmp_path: Path) -> None:
    loud = np.stack([voice(44_100, seconds=1) * 6, np.zeros(44_100)])
    path = save(tmp_path, encode_sound(loud, 44_100, "wav", "pcm_f32le", layout="stereo"))
    speech = load_speech(path)
    assert speech.mix.divisor > 1
    with open_soundtrack(path, mix=speech.mix) as soundtrack:
        assert np.array_equal(soundtrack.read(10**6), whole(path))


@pytest.mark.parametrize(
    "channels",
    {
        "antiphase": (1.0, -0.9),
        "one dead": (0.0, 0.7),
        "quieter one": (0.9, 0.3),
        "centre of six": (0, 0, 0.8, 0, 0, 0),
        "beyond full scale": (6.0, 6.0),
        "integers as floats": (32_767.0,),
    }.items(),
    ids=lambda item: item[0],
)
def test_channels_and_level_are_those_of_the_speech(
    channels: tuple[str, tuple[float, ...]], tmp_path: Path
) -> None:
    table = np.array(channels[1], np.float32)[:, None] * voice(44_100, seconds=1)
    data = wav_bytes(table.T.tobytes(), tag=3, bits=32, channels=len(table), rate=44_100)
    path = save(tmp_path, data)
    samples = whole(path)
    assert_same_sound(samples, load_speech(path).samples)
    assert float(np.abs(samples).max()) <= 1


def test_level_beyond_full_scale_above_8_khz_is_clipped_and_the_voice_is_not_thinned(
    tmp_path: Path,
) -> None:
    low, high = tone(48_000, hz=500, level=0.8), tone(48_000, hz=15_000, level=0.8)
    path = save(tmp_path, wav_bytes((low + high).tobytes(), tag=3, bits=32, rate=48_000))
    assert float(np.abs(load_speech(path).samples).max()) == pytest.approx(0.8, abs=1e-3)
    assert np.array_equal(whole(path), (low + high).clip(-1, 1))


def test_damage_and_a_missing_end_are_treated_as_in_the_speech(tmp_path: Path) -> None:
    flac = bytearray(encode_sound(voice(44_100)[None], 44_100, "flac", "flac"))
    flac[len(flac) // 2 : len(flac) // 2 + 400] = bytes(400)
    m4a = sound_bytes("mp4", "aac", seconds=6.0, movflags="faststart")
    for data in (bytes(flac), m4a[: len(m4a) * 8 // 10]):
        path = save(tmp_path, data)
        speech = load_speech(path)
        assert "truncated" in {note.code for note in speech.notes}
        assert_same_sound(whole(path), speech.samples)


@pytest.mark.parametrize("harm", ["cut", "zeros", "nothing", "other channels", "other rate"])
def test_a_file_that_changes_while_it_is_read_ends_in_silence(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Longer than the five seconds that FFmpeg reads ahead on opening.
    sound = np.tile(voice(16_000), 3)
    good = pcm(np.stack([sound, sound]), 16_000)
    path = save(tmp_path, good)
    mix = load_speech(path).mix
    bad = {
        "cut": good[: len(good) // 2],
        "zeros": good[:5000] + bytes(len(good)),
        "nothing": b"",
        "other channels": pcm(sound, 16_000),
        "other rate": pcm(np.stack([sound, sound]), 8_000),
    }[harm]
    if harm.startswith("other"):
        path.write_bytes(bad)
    with open_soundtrack(path, mix=mix) as soundtrack:
        path.write_bytes(bad)
        samples = soundtrack.read(10**6)
    assert len(samples) == soundtrack.num_samples
    assert not samples[-48_000:].any()
    if harm.startswith("other"):
        assert "the rest is silent" in caplog.text


def test_files_that_are_no_speech_are_refused_as_by_load_speech(tmp_path: Path) -> None:
    names = ("wav-nan", "wav-short", "wav-rate-0", "m4a-noise", "flac-cut-at-40%", "png-as-speech")
    names += ("video-without-sound", "speech-missing", "speech-folder", "wav-unknown-codec")
    entries = [entry for entry in CATALOGUE if entry.name in names]
    assert len(entries) == len(names)
    for entry in entries:
        folder = tmp_path / entry.name
        folder.mkdir()
        path = entry.make(folder)
        with pytest.raises(MediaError) as refused:
            load_speech(path)
        with pytest.raises(MediaError) as caught:
            open_soundtrack(path)
        assert str(caught.value) == str(refused.value)


def test_limits_are_those_of_the_speech(tmp_path: Path) -> None:
    path = save(tmp_path, pcm(tone(16_000), 16_000))
    with pytest.raises(MediaError, match=r"more than 0\.5 s"):
        open_soundtrack(path, SpeechLimits(max_seconds=0.5))


def test_a_closed_soundtrack_gives_nothing_and_closes_again(tmp_path: Path) -> None:
    soundtrack = open_soundtrack(save(tmp_path, pcm(voice(44_100, seconds=1), 44_100)))
    soundtrack.read(1000)
    soundtrack.close()
    soundtrack.close()
    assert len(soundtrack.read(1000)) == 0


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = save(tmp_path, wav_bytes(bytes(16_000 * 2 * 90)))
    grown_mib = memory_growth_mib(
        "from liveavatar.media.soundtrack import open_soundtrack\n"
        f"soundtrack = open_soundtrack({str(path)!r})\n"
        "soundtrack.read(48_000)",
        "soundtrack.skip(48_000 * 89)",
    )
    assert grown_mib < 6, "90 s take 17 MB at 48 kHz"


def test_a_video_carries_the_sound_of_the_upload_in_time_also_when_resumed(tmp_path: Path) -> None:
    original = voice(44_100, seconds=2.4)
    path = save(tmp_path, pcm(original, 44_100))
    video = tmp_path / "live.mp4"

    def append(writer: LiveVideoWriter, num_blocks: int) -> None:
        with open_soundtrack(path) as soundtrack:
            soundtrack.skip(writer.num_samples)
            for _ in range(num_blocks):
                lead_s = (writer.num_frames + 12) / 25 + AUDIO_LEAD_S
                wanted = round(lead_s * SOUNDTRACK_RATE_HZ) - writer.num_samples
                writer.append(moving(12, first=writer.num_frames), soundtrack.read(wanted))

    options = {"width": 64, "height": 48, "sample_rate_hz": SOUNDTRACK_RATE_HZ, "settings": QUICK}
    first = LiveVideoWriter(video, **options)
    append(first, 3)
    first.abort()
    with LiveVideoWriter.resume(video, **options) as second:
        append(second, 2)
    samples = decode_audio(video)
    exact = soxr.resample(original, 44_100, SOUNDTRACK_RATE_HZ)
    assert abs(len(samples) - len(exact)) <= 1024
    assert lag(samples, exact) == 0
    for start in range(0, 96_000, 24_000):
        ours, theirs = samples[start : start + 24_000], exact[start : start + 24_000]
        # AAC replaces part of a hiss by other noise; sound out of time would come near 0.
        assert np.corrcoef(ours, theirs)[0, 1] > 0.9
    above_8_khz = slice(9_000 * 2, 16_000 * 2)  # bins of half a hertz in two seconds
    power, wanted = (np.abs(np.fft.rfft(sound[:96_000])) ** 2 for sound in (samples, exact))
    assert power[above_8_khz].sum() > 0.5 * wanted[above_8_khz].sum()
