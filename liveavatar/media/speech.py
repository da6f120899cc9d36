"""Speech: any common sound file, or the sound of a video, to mono float32 at 16 kHz.

A file is decoded twice: once to measure it (length, level of each channel, damage) and once to mix,
resample and analyse it. So memory holds only the 16 kHz result, and a file that unpacks to more
than the limits is refused while it is counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.media.notes import Note
from liveavatar.media.sound_mix import (
    FloatArray,
    Mix,
    Survey,
    channel_weights,
    mono,
    num_speech_samples,
    resampled,
    survey_sound,
)
from liveavatar.media.sound_reader import (
    DECODER_ERRORS,
    SoundFile,
    SoundReader,
    SpeechLimits,
    open_sound,
)
from liveavatar.media.speech_findings import Analysis, speech_notes


@dataclass(frozen=True, eq=False)
class Speech:
    """Decoded speech.

    Attributes:
        samples: mono, float32, (n,), in [-1, 1], at `SPEECH_RATE_HZ`.
        mix: how the file's channels became one; `open_soundtrack` takes it.
        notes: findings, for the user.
    """

    samples: FloatArray
    mix: Mix
    notes: tuple[Note, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SPEECH_RATE_HZ

    @property
    def source_rate_hz(self) -> int:
        """Sample rate of the file."""
        return self.mix.source_rate_hz


def load_speech(path: str | os.PathLike[str], limits: SpeechLimits | None = None) -> Speech:
    """Read speech from a sound file (wav, mp3, flac, ogg, opus, m4a, ...) or from a video.

    Channels are averaged, leaving out those without sound; where the average cancels them, the
    loudest is taken. Levels above full scale are scaled down.

    Args:
        path: the file.
        limits: sizes accepted; the defaults of `SpeechLimits` when None.

    Returns:
        The speech and notes with the codes "truncated", "antiphase", "over_full_scale", "clipping",
        "silent", "quiet", "mostly_silent", "low_sample_rate", "low_bandwidth" and "aliasing".

    Raises:
        MediaError: the file cannot be read, holds no sound, is damaged, too short or too long, or
            has samples that are not numbers.
    """
    with open_sound(path, limits) as source:
        try:
            survey = survey_sound(source)
            weights, cancelled = channel_weights(survey)
            samples, analysis = _samples(source, survey, weights)
        except DECODER_ERRORS:
            raise source.unreadable() from None
    mix = Mix.of(
        survey, weights, peak=float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))
    )
    samples /= mix.divisor
    notes = speech_notes(samples, survey, analysis, cancelled=cancelled)
    return Speech(samples, mix, tuple(notes))


def _samples(source: SoundFile, survey: Survey, weights: FloatArray) -> tuple[FloatArray, Analysis]:
    """Mix to mono and resample to 16 kHz, and analyse at the file's own rate on the way."""
    analysis = Analysis(survey.rate_hz, survey.peaks[weights > 0])
    samples = np.zeros(num_speech_samples(survey), np.float32)
    position = 0
    with SoundReader(source) as reader:
        watched = analysis.watch(reader.batches(), weights)
        parts = mono(watched, weights)
        for part in resampled(parts, survey.rate_hz, SPEECH_RATE_HZ, len(samples)):
            samples[position : position + len(part)] = part
            position += len(part)
    return samples, analysis
