"""How the channels of a sound file become one: measured once, then the same for every listener.

The model hears the file at 16 kHz and the finished video carries it at 48 kHz. Both take their
samples from here, so they agree in channels, level, start and length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.errors import MediaError
from liveavatar.media.sound_reader import SoundFile, SoundReader
from liveavatar.media.upload import HEAD_BYTES, riff_lists_fit, riff_missing_factor, sniff

# A channel this far under the loudest carries no voice and would only thin the average.
_DEAD_CHANNEL = 1e-2
# Level of the average over the loudest channel. Two unlike channels give 0.7, six give 0.4.
_CANCELLED = 0.25

_SILENCE_SAMPLES = 32_768

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]


@dataclass
class Survey:
    """What one pass over a file measures.

    Attributes:
        rate_hz: sample rate of the file.
        channels: number of channels.
        gram: sum of the products of all pairs of channels, float64, (channels, channels).
        peaks: largest size in each channel, full scale 1, float64, (channels,).
        num_samples: samples of one channel.
        num_over: of these, how many exceed full scale.
        declared_s: length the container tells, seconds; None where it is unknown.
        num_bad_packets: packets that could not be decoded.
    """

    rate_hz: int
    channels: int
    gram: DoubleArray
    peaks: DoubleArray
    num_samples: int = 0
    num_over: int = 0
    declared_s: float | None = None
    num_bad_packets: int = 0

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.rate_hz


@dataclass(frozen=True, eq=False)
class Mix:
    """How a file becomes mono.

    Attributes:
        weights: share of each channel in the sum, float32, (channels,).
        divisor: what the sum is divided by, at least 1, so that it stays in [-1, 1] at 16 kHz.
        num_speech_samples: length of the speech, samples at `SPEECH_RATE_HZ`.
        source_rate_hz: sample rate of the file.
    """

    weights: FloatArray
    divisor: float
    num_speech_samples: int
    source_rate_hz: int

    @classmethod
    def of(cls, survey: Survey, weights: FloatArray, *, peak: float) -> Mix:
        """Make the mix of a surveyed file whose weighted sum reaches `peak` at 16 kHz."""
        return cls(weights, max(1.0, peak), num_speech_samples(survey), survey.rate_hz)


def survey_sound(source: SoundFile) -> Survey:
    """Measure a file: length, level of each channel, damage.

    Raises:
        MediaError: it is no sound, is over a limit, or less than half of it can be decoded.
        DECODER_ERRORS: the container cannot be read.
    """
    source.file.seek(0)
    _require_sound(source.file.read(HEAD_BYTES), source.shown)
    if not riff_lists_fit(source.file):
        raise source.unreadable()
    survey = Survey(0, 0, np.zeros((0, 0)), np.zeros(0))
    with SoundReader(source) as reader:
        for batch in reader.batches():
            if not survey.channels:
                survey.rate_hz, survey.channels = reader.rate_hz, reader.channels
                survey.gram = np.zeros((reader.channels, reader.channels))
                survey.peaks = np.zeros(reader.channels)
            _add(survey, batch)
        if reader.declared_s is not None:
            # Of a WAV that was cut off, the container states either the whole or what is left.
            missing = riff_missing_factor(source.file)
            states_rest = reader.declared_s < survey.duration_s * math.sqrt(missing)
            survey.declared_s = reader.declared_s * (missing if states_rest else 1.0)
        survey.num_bad_packets = reader.num_bad_packets
    _require_whole(survey, source)
    return survey


def _add(survey: Survey, batch: FloatArray) -> None:
    exact = batch.astype(np.float64)
    size = np.abs(batch)
    survey.gram += exact @ exact.T
    survey.peaks = np.maximum(survey.peaks, size.max(axis=1))
    survey.num_over += int((size > 1).any(axis=0).sum())
    survey.num_samples += batch.shape[1]


def _require_sound(head: bytes, shown: str) -> None:
    kind = sniff(head)
    if kind is not None and kind.family in ("picture", "other"):
        raise MediaError(
            f"{shown} is {kind.label}; the speech must be a WAV, MP3, FLAC, OGG or M4A sound, "
            "or a video with sound"
        )


def _require_whole(survey: Survey, source: SoundFile) -> None:
    """Refuse speech that is too short, or of which less than half could be decoded."""
    shown, limits = source.shown, source.limits
    if survey.num_samples == 0:
        raise MediaError(f"{shown} holds no sound that can be decoded; export it again")
    declared_s = survey.declared_s
    if declared_s is not None and survey.duration_s < declared_s / 2:
        raise MediaError(
            f"{shown} is cut off or damaged: only {survey.duration_s:.1f} of {declared_s:.1f} s "
            "can be read; upload it again"
        )
    if survey.duration_s < limits.min_seconds:
        raise MediaError(
            f"{shown} lasts {survey.duration_s:.2f} s; at least {limits.min_seconds:g} s are needed"
        )


def channel_weights(survey: Survey) -> tuple[FloatArray, bool]:
    """Choose the channels of the mono sum.

    Returns:
        The share of each channel, float32, (channels,), and whether the channels cancel each other,
        so that only the loudest is taken.
    """
    levels = np.sqrt(np.diagonal(survey.gram))
    live = levels >= _DEAD_CHANNEL * levels.max()
    weights = live / live.sum()
    mean_level = float(np.sqrt(max(0.0, weights @ survey.gram @ weights)))
    if levels.max() > 0 and mean_level < _CANCELLED * levels.max():
        loudest = np.arange(len(levels)) == int(levels.argmax())
        return loudest.astype(np.float32), True
    return weights.astype(np.float32), False


def mono(batches: Iterable[FloatArray], weights: FloatArray) -> Iterator[FloatArray]:
    """Sum the channels of batches (channels, n), float32; yields float32, (n,)."""
    for batch in batches:
        yield np.ascontiguousarray(weights @ batch)


def num_speech_samples(survey: Survey) -> int:
    """Length of the speech in samples at `SPEECH_RATE_HZ`."""
    return round(survey.num_samples * SPEECH_RATE_HZ / survey.rate_hz)


def resampled(
    parts: Iterable[FloatArray], source_rate_hz: int, target_rate_hz: int, num_samples: int
) -> Iterator[FloatArray]:
    """Resample a mono stream in time with its source (no delay), to a length known before.

    Args:
        parts: float32, (n,) each, at the source's rate.
        source_rate_hz: rate of the parts.
        target_rate_hz: rate wanted. Where both are equal, the samples pass unchanged.
        num_samples: length of the result. More is cut off; less, by rounding or because the source
            ended early, is filled with silence.
    """
    missing = num_samples
    for part in _converted(parts, source_rate_hz, target_rate_hz):
        yield part[:missing]
        missing -= min(missing, len(part))
    while missing:
        silence = np.zeros(min(missing, _SILENCE_SAMPLES), np.float32)
        yield silence
        missing -= len(silence)


def _converted(
    parts: Iterable[FloatArray], source_rate_hz: int, target_rate_hz: int
) -> Iterator[FloatArray]:
    if source_rate_hz == target_rate_hz:
        yield from parts
        return
    resampler = soxr.ResampleStream(source_rate_hz, target_rate_hz, 1, "float32", "VHQ")
    for part in parts:
        yield resampler.resample_chunk(part)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
