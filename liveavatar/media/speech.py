"""Speech: any common sound file, or the sound of a video, to mono float32 at 16 kHz.

A file is decoded twice: once to measure it (length, level of each channel, damage) and once to mix,
resample and analyse it. So memory holds only the 16 kHz result, and a file that unpacks to more
than the limits is refused while it is counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
import soxr

from liveavatar.errors import MediaError
from liveavatar.media.notes import (
    HEAD_BYTES,
    Note,
    open_upload,
    riff_lists_fit,
    riff_missing_factor,
    shown_name,
    sniff,
)

SAMPLE_RATE_HZ = 16_000

# Only these demuxers see a user's bytes: none of them opens further files or addresses.
_DEMUXERS = "wav,w64,aiff,au,caf,mp3,flac,ogg,mov,matroska,aac,ac3,amr,asf,avi,wv"

# What the decoders raise on damaged files, beside FFmpeg's own errors.
_DECODER_ERRORS = (
    av.FFmpegError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)

# Zero and full scale of FFmpeg's integer samples; 24-bit files arrive as s32.
_INTEGER_SCALES = {
    "u8": (128.0, 2.0**7),
    "s16": (0.0, 2.0**15),
    "s32": (0.0, 2.0**31),
    "s64": (0.0, 2.0**63),
}

_BATCH_SAMPLES = 32_768

# A channel this far under the loudest carries no voice and would only thin the average.
_DEAD_CHANNEL = 1e-2
# Level of the average over the loudest channel. Two unlike channels give 0.7, six give 0.4.
_CANCELLED = 0.25

# Float files may hold integers unscaled, up to 2**31; more is no sound.
_ABSURD_LEVEL = 1e10

_SILENT_DBFS, _QUIET_DBFS = -60.0, -40.0

# The model hears up to 8 kHz; a voice that ends well below it loses its consonants.
_NARROW_HZ = 7_000.0
# Long-term spectrum under its peak, dB: speech keeps 57 up to 8 kHz, a stop band lies under 80.
_STOP_BAND_DB = 68.0

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SpeechLimits:
    """What a speech file may be.

    Attributes:
        max_bytes: largest file, bytes.
        min_seconds: shortest speech, seconds.
        max_seconds: longest speech, seconds.
        min_rate_hz: lowest sample rate.
        max_rate_hz: highest sample rate.
        max_channels: most channels.
    """

    max_bytes: int = 1_000_000_000
    min_seconds: float = 0.2
    max_seconds: float = 3600.0
    min_rate_hz: int = 4_000
    max_rate_hz: int = 384_000
    max_channels: int = 16


@dataclass(frozen=True, eq=False)
class Speech:
    """Decoded speech.

    Attributes:
        samples: mono, float32, (n,), in [-1, 1], at `SAMPLE_RATE_HZ`.
        source_rate_hz: sample rate of the file.
        notes: findings, for the user.
    """

    samples: FloatArray
    source_rate_hz: int
    notes: tuple[Note, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE_HZ


@dataclass
class _Survey:
    """What the first pass measures; `gram` is the sum of products of all pairs of channels."""

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
        return self.num_samples / self.rate_hz


@dataclass
class _Analysis:
    """What the second pass collects at the file's own rate."""

    num_flat: int = 0
    spectra: list[DoubleArray] = field(default_factory=list)
    power: DoubleArray | None = None


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
    limits = limits or SpeechLimits()
    with open_upload(path, "speech", limits.max_bytes) as file:
        shown = f"speech '{shown_name(path)}'"
        _require_sound(file.read(HEAD_BYTES), shown)
        if not riff_lists_fit(file):
            raise MediaError(_unreadable(shown))
        try:
            survey = _survey(file, limits, shown)
            _require_whole(survey, limits, shown)
            weights, mix_notes = _mix(survey)
            samples, analysis = _resample(file, survey, weights, limits, shown)
        except _DECODER_ERRORS:
            raise MediaError(_unreadable(shown)) from None
    peak = float(np.abs(samples).max())
    if peak > 1:
        samples /= peak
    notes = [*_damage_notes(survey), *mix_notes, *_level_notes(samples, survey, analysis)]
    if "silent" not in {note.code for note in notes}:
        notes += _spectrum_notes(survey.rate_hz, analysis)
    return Speech(samples, survey.rate_hz, tuple(notes))


def _unreadable(shown: str) -> str:
    return (
        f"{shown} is cut off, damaged or not a sound file this program reads; "
        "export it again as WAV, MP3, FLAC, OGG or M4A"
    )


def _require_sound(head: bytes, shown: str) -> None:
    kind = sniff(head)
    if kind is not None and kind.family in ("picture", "other"):
        raise MediaError(
            f"{shown} is {kind.label}; the speech must be a WAV, MP3, FLAC, OGG or M4A sound, "
            "or a video with sound"
        )


def _require_whole(survey: _Survey, limits: SpeechLimits, shown: str) -> None:
    """Refuse speech that is too short, or of which less than half could be decoded."""
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


class _Reader:
    """One pass over the sound of a file: batches of float32 samples, (channels, n)."""

    def __init__(self, file: BinaryIO, limits: SpeechLimits, shown: str) -> None:
        """Open the container and find its sound; raises as `load_speech` does."""
        self._limits = limits
        self._shown = shown
        file.seek(0)
        self._container: Any = av.open(
            file, mode="r", metadata_errors="replace", options={"format_whitelist": _DEMUXERS}
        )
        streams = self._container.streams.audio
        if not streams:
            self._container.close()
            raise MediaError(f"{shown} holds no sound; give a recording of the speech")
        self._stream: Any = streams[0]
        # PyAV hands out streams it has no decoder for, and decoding those kills the process.
        if getattr(self._stream, "codec_context", None) is None:
            self._container.close()
            raise MediaError(
                f"{shown} uses a codec this program cannot read; export it again as WAV or MP3"
            )
        self.num_bad_packets = 0
        self.rate_hz = 0
        self.channels = 0

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._container.close()

    @property
    def declared_s(self) -> float | None:
        """Length the container tells, seconds; None where it is unknown."""
        stream = self._stream
        if stream.duration is None or stream.time_base is None:
            return None
        return float(stream.duration * stream.time_base)

    def batches(self) -> Iterator[FloatArray]:
        """Yield the samples in order; the count of samples is held under the limit."""
        pending: list[FloatArray] = []
        num_pending = num_samples = 0
        for frame in self._frames():
            if not self.channels:
                self._start(frame)
            elif (frame.sample_rate, frame.layout.nb_channels) != (self.rate_hz, self.channels):
                raise MediaError(
                    f"{self._shown} changes its sample rate or channels midway; export it again"
                )
            num_samples += frame.samples
            if num_samples > self._limits.max_seconds * self.rate_hz:
                raise MediaError(self._too_long())
            pending.append(_as_float(frame, self.channels))
            num_pending += frame.samples
            if num_pending >= _BATCH_SAMPLES:
                yield self._checked(pending)
                pending, num_pending = [], 0
        if pending:
            yield self._checked(pending)

    def _start(self, frame: Any) -> None:
        limits, shown = self._limits, self._shown
        self.rate_hz, self.channels = frame.sample_rate, frame.layout.nb_channels
        if not limits.min_rate_hz <= self.rate_hz <= limits.max_rate_hz:
            raise MediaError(
                f"{shown} has {self.rate_hz} samples a second; expected {limits.min_rate_hz} "
                f"to {limits.max_rate_hz}, so export it again at 16 or 48 kHz"
            )
        if not 1 <= self.channels <= limits.max_channels:
            raise MediaError(
                f"{shown} has {self.channels} channels; expected 1 to {limits.max_channels}, "
                "so mix it down to mono"
            )
        # A header may lie a little, so only a clear case is refused before counting.
        if (self.declared_s or 0) > 2 * limits.max_seconds:
            raise MediaError(self._too_long())

    def _too_long(self) -> str:
        return (
            f"{self._shown} lasts more than {self._limits.max_seconds:g} s, the longest accepted; "
            "cut it into parts"
        )

    def _checked(self, pending: list[FloatArray]) -> FloatArray:
        batch = np.concatenate(pending, axis=1)
        if not np.isfinite(batch).all():
            raise MediaError(
                f"{self._shown} holds samples that are not numbers (NaN or infinity); "
                "export it again as 16-bit WAV"
            )
        if float(np.abs(batch).max()) > _ABSURD_LEVEL:
            raise MediaError(
                f"{self._shown} holds absurd levels, as files of another kind do; "
                "export it again as 16-bit WAV"
            )
        return batch

    def _frames(self) -> Iterator[Any]:
        """Decode packet by packet, so that one damaged packet costs only itself."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except _DECODER_ERRORS:
                self.num_bad_packets += 1
                return  # the container itself is damaged from here on
            try:
                frames = packet.decode()
            except _DECODER_ERRORS:
                self.num_bad_packets += 1
                continue
            yield from (frame for frame in frames if frame.samples)


def _as_float(frame: Any, channels: int) -> FloatArray:
    """Samples of one decoded frame, float32, (channels, n), full scale 1."""
    values: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    zero, scale = _INTEGER_SCALES.get(frame.format.name.removesuffix("p"), (0.0, 1.0))
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, refused later
        samples: FloatArray = ((values.astype(np.float64) - zero) / scale).astype(np.float32)
    return samples


def _survey(file: BinaryIO, limits: SpeechLimits, shown: str) -> _Survey:
    with _Reader(file, limits, shown) as reader:
        survey = _Survey(0, 0, np.zeros((0, 0)), np.zeros(0))
        for batch in reader.batches():
            if not survey.channels:
                survey.rate_hz, survey.channels = reader.rate_hz, reader.channels
                survey.gram = np.zeros((reader.channels, reader.channels))
                survey.peaks = np.zeros(reader.channels)
            exact = batch.astype(np.float64)
            size = np.abs(batch)
            survey.gram += exact @ exact.T
            survey.peaks = np.maximum(survey.peaks, size.max(axis=1))
            survey.num_over += int((size > 1).any(axis=0).sum())
            survey.num_samples += batch.shape[1]
        if reader.declared_s is not None:
            survey.declared_s = reader.declared_s * riff_missing_factor(file)
        survey.num_bad_packets = reader.num_bad_packets
        return survey


def _mix(survey: _Survey) -> tuple[FloatArray, list[Note]]:
    """Weight of each channel in the mono sum."""
    levels = np.sqrt(np.diagonal(survey.gram))
    live = levels >= _DEAD_CHANNEL * levels.max()
    weights = live / live.sum()
    mean_level = float(np.sqrt(max(0.0, weights @ survey.gram @ weights)))
    if levels.max() > 0 and mean_level < _CANCELLED * levels.max():
        loudest = np.arange(len(levels)) == int(levels.argmax())
        note = Note(
            "speech",
            "antiphase",
            "The channels of the recording cancel each other in mono, so only the louder one is "
            "used; check the wiring or export one channel.",
        )
        return loudest.astype(np.float32), [note]
    return weights.astype(np.float32), []


def _resample(
    file: BinaryIO, survey: _Survey, weights: FloatArray, limits: SpeechLimits, shown: str
) -> tuple[FloatArray, _Analysis]:
    """Mix to mono and resample to 16 kHz, in time with the source (no delay)."""
    analysis = _Analysis()
    resampler = soxr.ResampleStream(survey.rate_hz, SAMPLE_RATE_HZ, 1, "float32", "VHQ")
    samples = np.zeros(
        round(survey.num_samples * SAMPLE_RATE_HZ / survey.rate_hz), dtype=np.float32
    )
    position = 0
    with _Reader(file, limits, shown) as reader:
        for batch in reader.batches():
            mono = np.ascontiguousarray(weights @ batch)
            _analyse(analysis, mono, batch[weights > 0], survey, weights)
            if survey.rate_hz != SAMPLE_RATE_HZ:
                mono = resampler.resample_chunk(mono)
            position += _put(samples, position, mono)
    if survey.rate_hz != SAMPLE_RATE_HZ:
        _put(samples, position, resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    return samples, analysis


def _put(samples: FloatArray, position: int, part: FloatArray) -> int:
    part = part[: max(0, len(samples) - position)]
    samples[position : position + len(part)] = part
    return len(part)


def _analyse(
    analysis: _Analysis,
    mono: FloatArray,
    channels: FloatArray,
    survey: _Survey,
    weights: FloatArray,
) -> None:
    """Count flat tops in the channels used and add the mono spectrum."""
    # A clipped wave stays at the peak for several samples; a clean one passes through it.
    flat = np.abs(channels) >= survey.peaks[weights > 0][:, None] - 1e-5
    run = 3 + survey.rate_hz // 16_000
    if flat.shape[1] > run:
        runs = np.lib.stride_tricks.sliding_window_view(flat, run, axis=1).all(axis=2)
        analysis.num_flat += int(runs.any(axis=0).sum())
    size = 1024 if survey.rate_hz <= 24_000 else 2048 if survey.rate_hz <= 48_000 else 4096
    count = len(mono) // size
    if not count:
        return
    windowed = mono[: count * size].reshape(count, size) * np.hanning(size)
    power = np.abs(np.fft.rfft(windowed, axis=1)).astype(np.float64) ** 2
    total = power.sum(axis=0)
    analysis.power = total if analysis.power is None else analysis.power + total
    if len(analysis.spectra) < 40:
        analysis.spectra.append(power)


def _damage_notes(survey: _Survey) -> Iterator[Note]:
    declared_s = survey.declared_s or 0.0
    lost_s = declared_s - survey.duration_s
    if lost_s > max(0.1, 0.02 * declared_s):
        yield Note(
            "speech",
            "truncated",
            f"The recording is cut off: {survey.duration_s:.1f} of {declared_s:.1f} s could be "
            "read; upload it again if the end matters.",
        )
    elif survey.num_bad_packets:
        yield Note(
            "speech",
            "truncated",
            "Parts of the recording are damaged and were left out; upload it again if they matter.",
        )


def _level_notes(samples: FloatArray, survey: _Survey, analysis: _Analysis) -> Iterator[Note]:
    peak = float(survey.peaks.max())
    if peak > 2:
        yield Note(
            "speech",
            "over_full_scale",
            f"The recording goes up to {peak:.3g} times full scale and was scaled down; "
            "export it as 16-bit WAV at a normal level.",
        )
    elif peak > 0.25 and max(survey.num_over, analysis.num_flat) > 1e-4 * survey.num_samples:
        yield Note(
            "speech",
            "clipping",
            "The recording is clipped, so loud sounds are distorted; record it again at a lower "
            "level.",
        )
    size = SAMPLE_RATE_HZ // 20
    count = len(samples) // size
    level = samples[: count * size].reshape(count, size).astype(np.float64).std(axis=1)
    level_db = 20 * np.log10(level + 1e-12)
    loud_db = float(np.percentile(level_db, 95))
    if level_db.max() < _SILENT_DBFS:
        yield Note(
            "speech",
            "silent",
            "The recording is silent, so the mouth will stay closed; choose another file.",
        )
    elif loud_db < _QUIET_DBFS:
        yield Note(
            "speech",
            "quiet",
            f"The speech is very quiet ({-loud_db:.0f} dB below full scale); record it louder or "
            "normalise it.",
        )
    elif float(np.mean(level_db < loud_db - 45)) > 0.7:
        yield Note(
            "speech",
            "mostly_silent",
            "More than 70 % of the recording is silence; cut the silent parts to save time.",
        )


def _spectrum_notes(rate_hz: int, analysis: _Analysis) -> Iterator[Note]:
    if analysis.power is None or not analysis.power.any():
        return
    if rate_hz / 2 < _NARROW_HZ:
        yield Note(
            "speech",
            "low_sample_rate",
            f"The file holds {rate_hz} samples a second, so nothing above {rate_hz / 2000:.3g} "
            "kHz, and consonants will be guessed; record at 16 kHz or more.",
        )
    real_hz = _real_bandwidth_hz(rate_hz, analysis)
    if real_hz is not None:
        yield Note(
            "speech",
            "low_bandwidth",
            f"The file claims {rate_hz} samples a second but its real bandwidth is only about "
            f"{real_hz / 1000:.2g} kHz, as after a telephone; use the original recording.",
        )
    elif _is_aliased(rate_hz, analysis.power):
        yield Note(
            "speech",
            "aliasing",
            f"The real bandwidth was higher than {rate_hz} samples a second can hold: the sound "
            "was reduced without a filter and hisses; export it again from the original.",
        )


def _real_bandwidth_hz(rate_hz: int, analysis: _Analysis) -> float | None:
    """Bandwidth of a file that was resampled from a lower rate; None where nothing shows that.

    Two traces are looked for: nothing above a frequency, as a good resampler leaves it, and the
    spectrum mirrored above it, as repeating samples or joining them by lines leaves it.
    """
    assert analysis.power is not None
    for original_hz in (8_000, 11_025, 12_000):
        if original_hz < 0.95 * rate_hz and _is_mirrored(rate_hz, original_hz / 2, analysis):
            return original_hz / 2
    bin_hz = rate_hz / 2 / (len(analysis.power) - 1)
    level = _smoothed(analysis.power, bin_hz)
    end_hz = float(np.flatnonzero(level > level.max() * 10 ** (-_STOP_BAND_DB / 10))[-1]) * bin_hz
    # Less than 2 kHz is no voice but a test tone or a hum, about which this says nothing.
    if not 2_000 < end_hz < min(_NARROW_HZ, 0.9 * rate_hz / 2):
        return None
    # Filters end a little below the old limit, and slopes of resamplers a little above it.
    limits_hz = (4_000, 5_512.5, 6_000)
    return next((limit for limit in limits_hz if 0.93 < end_hz / limit < 1.18), end_hz)


def _smoothed(power: DoubleArray, bin_hz: float) -> DoubleArray:
    width = round(200 / bin_hz) | 1  # odd, to stay in place
    return np.convolve(power, np.ones(width) / width, "same")


def _is_mirrored(rate_hz: int, centre_hz: float, analysis: _Analysis) -> bool:
    """Tell whether the spectrum above a frequency repeats in time what lies as far below it."""
    power = np.concatenate(analysis.spectra)
    loudness = power.sum(axis=1)
    power = power[loudness >= np.median(loudness)]
    # The mirror need not lie on a bin, so single harmonics are blurred.
    blur = round(100 / (rate_hz / 2 / (power.shape[1] - 1))) | 1  # odd, to stay in place
    power = np.apply_along_axis(np.convolve, 1, power, np.ones(blur), "same")
    num_bins = power.shape[1]
    centre = centre_hz / (rate_hz / 2) * (num_bins - 1)
    distance = np.arange(max(3, int(0.1 * centre)), int(0.6 * centre))
    below = np.rint(centre - distance).astype(int)
    above = np.rint(centre + distance).astype(int)
    inside = above < 0.98 * num_bins
    if inside.sum() < 10 or len(power) < 10:
        return False
    level = 10 * np.log10(power + 1e-12)
    left, right = _residual(level[:, below[inside]]), _residual(level[:, above[inside]])
    norm = float(np.sqrt((left**2).sum() * (right**2).sum()))
    # Measured: at most 0.4 for honest speech, at least 0.95 for mirrored speech.
    return norm > 0 and float((left * right).sum()) / norm > 0.75


def _residual(level: DoubleArray) -> DoubleArray:
    """What neither the mean spectrum nor the mean loudness explains."""
    residual: DoubleArray = level - level.mean(axis=0)
    residual -= residual.mean(axis=1, keepdims=True)
    return residual


def _is_aliased(rate_hz: int, power: DoubleArray) -> bool:
    """Tell whether a file of a low rate is as strong at its upper limit as below it.

    Every filter against aliasing, and speech itself, falls there. Only a strong upper band counts,
    as faint noise may be flat.
    """
    if rate_hz > SAMPLE_RATE_HZ:
        return False
    smooth = _smoothed(power, rate_hz / 2 / (len(power) - 1))
    share = np.linspace(0, 1, len(power))
    top = power[(share >= 0.97) & (share < 0.998)].mean()
    below = power[(share >= 0.80) & (share < 0.92)].mean()
    return bool(top >= below and top > smooth.max() * 10**-3.5)
