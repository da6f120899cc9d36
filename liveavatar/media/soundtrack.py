"""The sound of the finished video: the upload itself at 48 kHz, in time with what the model hears.

The model hears 16 kHz; a video that carried that would sound like a telephone. So the same file is
decoded once more while the video is written, a little ahead of the frames.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import numpy as np

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.errors import MediaError
from liveavatar.media.sound_mix import (
    FloatArray,
    Mix,
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

SOUNDTRACK_RATE_HZ = 48_000

# A whole number, so that the lengths at both rates are the same time, exactly.
_RATIO = SOUNDTRACK_RATE_HZ // SPEECH_RATE_HZ

_SKIP_SAMPLES = 65_536

logger = logging.getLogger(__name__)


class Soundtrack:
    """A speech file as a stream of 48 kHz samples; `open_soundtrack` makes it.

    Sample k lies at the time of sample k / 3 of the speech that `load_speech` gives, at the same
    level, and both have the same length. What exceeds full scale only here, as hiss above 8 kHz
    may, is clipped.

    The file stays open until `close`, or the end of the `with` block. Memory does not grow with the
    length of the sound. Not for concurrent use, yet bound to no thread.

    Attributes:
        num_samples: length of the whole sound, in samples at `SOUNDTRACK_RATE_HZ`.
    """

    def __init__(self, source: SoundFile, reader: SoundReader, mix: Mix) -> None:
        self.num_samples = _RATIO * mix.num_speech_samples
        self._source = source
        self._reader = reader
        self._divisor = mix.divisor
        self._parts = resampled(
            mono(_unfailing(reader, mix, source.shown), mix.weights),
            mix.source_rate_hz,
            SOUNDTRACK_RATE_HZ,
            self.num_samples,
        )
        self._rest: FloatArray = np.zeros(0, np.float32)

    def read(self, num_samples: int) -> FloatArray:
        """Return the next samples.

        Should the file change on disk meanwhile, so that it no longer decodes, silence takes the
        place of what is missing.

        Args:
            num_samples: how many; 0 or less gives none.

        Returns:
            Mono, float32 in [-1, 1], (n,), at `SOUNDTRACK_RATE_HZ`; n is less than asked for only
            at the end, and 0 from then on.
        """
        taken: list[FloatArray] = [np.zeros(0, np.float32)]
        missing = max(0, num_samples)
        while missing:
            if not len(self._rest):
                part = next(self._parts, None)
                if part is None:
                    break
                self._rest = (part / np.float32(self._divisor)).clip(-1, 1)
            taken.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(taken[-1])
        return np.concatenate(taken)

    def skip(self, num_samples: int) -> int:
        """Pass over samples, as a resumed video does; returns how many there were to pass over."""
        left = max(0, num_samples)
        while left and (passed := len(self.read(min(left, _SKIP_SAMPLES)))):
            left -= passed
        return max(0, num_samples) - left

    def close(self) -> None:
        """Release the decoder and the file. Reading afterwards gives nothing."""
        self._parts = iter(())
        self._rest = np.zeros(0, np.float32)
        self._reader.close()
        self._source.file.close()

    def __enter__(self) -> Soundtrack:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_soundtrack(
    path: str | os.PathLike[str], limits: SpeechLimits | None = None, *, mix: Mix | None = None
) -> Soundtrack:
    """Open a speech file for a second hearing, at 48 kHz.

    A file that `load_speech` accepts under these limits opens, and reading it never raises.

    Args:
        path: the file.
        limits: sizes accepted; the defaults of `SpeechLimits` when None.
        mix: `Speech.mix` of the same file. Without it the file is first decoded twice to find the
            channels and the level.

    Returns:
        The stream, at its start. The caller closes it.

    Raises:
        MediaError: as `load_speech`.
    """
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(open_sound(path, limits))
        try:
            mix = mix or _measure(source)
            reader = opened.enter_context(SoundReader(source))
        except DECODER_ERRORS:
            raise source.unreadable() from None
        opened.pop_all()  # from here on the soundtrack closes both
        return Soundtrack(source, reader, mix)


def _measure(source: SoundFile) -> Mix:
    """Find the mix that `load_speech` finds, in constant memory."""
    survey = survey_sound(source)
    weights, _ = channel_weights(survey)
    with SoundReader(source) as reader:
        parts = resampled(
            mono(reader.batches(), weights),
            survey.rate_hz,
            SPEECH_RATE_HZ,
            num_speech_samples(survey),
        )
        peak = max(float(np.abs(part).max(initial=0.0)) for part in parts)
    return Mix.of(survey, weights, peak=peak)


def _unfailing(reader: SoundReader, mix: Mix, shown: str) -> Iterator[FloatArray]:
    """The batches of a file that was read whole before: a failure now ends them."""
    try:
        for batch in reader.batches():
            if (reader.rate_hz, reader.channels) != (mix.source_rate_hz, len(mix.weights)):
                raise MediaError(f"{shown} is not the file whose mix was given")
            yield batch
    except (MediaError, *DECODER_ERRORS) as error:
        logger.warning("%s changed while it was read; the rest is silent (%s)", shown, error)
