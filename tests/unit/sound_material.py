"""Sounds for the tests of speech: tones, bursts, synthetic voices, and files made of them."""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soxr

from liveavatar.config import SPEECH_RATE_HZ

RATE_HZ = 16_000
SECONDS = 1.0


def tone(
    rate_hz: int, *, hz: float = 440.0, level: float = 0.5, seconds: float = SECONDS
) -> np.ndarray:
    """A tone, float32 (n,)."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (level * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def chirps(rate_hz: int) -> np.ndarray:
    """A tone of 440 Hz in three bursts, whose place in time can be found."""
    time = np.arange(round(SECONDS * rate_hz)) / rate_hz
    gate = sum(np.exp(-(((time - centre) / 0.03) ** 2)) for centre in (0.2, 0.45, 0.8))
    return (tone(rate_hz) * gate).astype(np.float32)


def voice(rate_hz: int, seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """Synthetic speech of one sample rate, float32 (n,), resampled without aliasing."""
    return soxr.resample(voice_at_48k(seconds, seed), 48_000, rate_hz).astype(np.float32)


@functools.cache
def voice_at_48k(seconds: float, seed: int) -> np.ndarray:
    """Voiced syllables and hissing consonants up to 20 kHz over a quiet room, float64 (n,)."""
    rng = np.random.default_rng(seed)
    count = round(seconds * 48_000)
    time = np.arange(count) / 48_000
    pitch = 120 * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / 48_000
    voiced = sum(np.sin(k * phase) / k**1.5 for k in range(1, 60))
    hiss = np.diff(rng.normal(size=count + 1)) * 0.15
    syllables = np.interp(time * 6, np.arange(40), rng.uniform(0, 1, 40) ** 2)
    consonants = np.interp(time * 9, np.arange(60), rng.uniform(0, 1, 60) ** 4)
    sound = voiced * syllables + hiss * consonants + rng.normal(size=count) * 1e-4
    return 0.5 * sound / np.abs(sound).max()


def delay_s(samples: np.ndarray, expected: np.ndarray) -> float:
    """How much later `samples` is than `expected`, from the peak of their correlation."""
    size = 1 << 17
    product = np.fft.rfft(samples, size) * np.fft.rfft(expected, size).conj()
    lag = int(np.fft.irfft(product).argmax())
    return (lag - size if lag > size // 2 else lag) / SPEECH_RATE_HZ


def pcm(samples: np.ndarray, rate_hz: int) -> bytes:
    """A 16-bit WAV of float (n,) or (channels, n)."""
    table = np.atleast_2d(samples)
    whole = np.clip(np.rint(table * 32_768), -32_768, 32_767).astype("<i2")
    return wav_bytes(whole.T.tobytes(), channels=len(table), rate=rate_hz)


def wav_bytes(
    data: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    rate: int = RATE_HZ,
    bits: int = 16,
    data_size: int | None = None,
) -> bytes:
    """A WAV file with any header, true or not."""
    align = channels * bits // 8
    fmt = struct.pack(
        "<HHIIHH", tag, channels, rate, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits
    )
    size = len(data) if data_size is None else data_size
    body = (
        b"WAVEfmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    )
    return b"RIFF" + struct.pack("<I", len(body) - len(data) + size) + body


@functools.cache
def sound_bytes(container: str, codec: str, *, seconds: float = 2.0, movflags: str = "") -> bytes:
    """A valid recording of a wavering tone, mono, 16 kHz (48 kHz for opus)."""
    rate = 48_000 if codec == "libopus" else RATE_HZ
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * 220 * time) * (1 + 0.5 * np.sin(2 * np.pi * 3 * time))
    return encode_sound(wave[None].astype(np.float32), rate, container, codec, movflags=movflags)


def encode_sound(
    samples: np.ndarray,
    rate_hz: int,
    container: str,
    codec: str,
    *,
    layout: str = "mono",
    movflags: str = "",
    bit_rate: int | None = None,
) -> bytes:
    """Encode float32 (channels, n) with PyAV into the bytes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound"  # a file, as "faststart" opens it a second time by name
        options = {"movflags": movflags} if movflags else {}
        _encode_to(path, samples, (rate_hz, container, codec, layout, bit_rate), options)
        return path.read_bytes()


def _encode_to(
    path: Path,
    samples: np.ndarray,
    kind: tuple[int, str, str, str, int | None],
    options: dict[str, str],
) -> None:
    rate_hz, container, codec, layout, bit_rate = kind
    with av.open(str(path), "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=rate_hz, layout=layout)
        if bit_rate:
            stream.bit_rate = bit_rate
        context = stream.codec_context
        if codec == "vorbis":
            context.options = {"strict": "experimental"}
        context.open(strict=False)
        resampler = av.AudioResampler(
            format=context.format,
            layout=layout,
            rate=rate_hz,
            frame_size=context.frame_size or 1024,
        )
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples, dtype=np.float32), format="fltp", layout=layout
        )
        frame.sample_rate = rate_hz
        frame.pts, frame.time_base = 0, Fraction(1, rate_hz)
        for ready in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(ready))
        out.mux(stream.encode(None))


@functools.cache
def silent_video_bytes() -> bytes:
    """An MP4 with pictures and no sound."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()
