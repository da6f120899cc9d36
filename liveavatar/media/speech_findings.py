"""What a recording lacks, found in its sound: a part of it, level, or bandwidth it claims."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.media.notes import Note
from liveavatar.media.sound_mix import Survey

_SILENT_DBFS, _QUIET_DBFS = -60.0, -40.0

# The model hears up to 8 kHz; a voice that ends well below it loses its consonants.
_NARROW_HZ = 7_000.0
# Long-term spectrum under its peak, dB: speech keeps 57 up to 8 kHz, a stop band lies under 80.
_STOP_BAND_DB = 68.0

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]


@dataclass
class Analysis:
    """What is collected at the file's own rate while the speech is decoded.

    Attributes:
        rate_hz: sample rate of the file.
        peaks: largest size in each channel used, float64, (channels,).
        num_flat: places where a channel stays at its peak.
        spectra: power of the first windows of the mono sum, one array for every batch.
        power: sum of the power of all windows; None before the first.
    """

    rate_hz: int
    peaks: DoubleArray
    num_flat: int = 0
    spectra: list[DoubleArray] = field(default_factory=list)
    power: DoubleArray | None = None

    def watch(self, batches: Iterable[FloatArray], weights: FloatArray) -> Iterator[FloatArray]:
        """Pass batches (channels, n) on and collect from them; `weights` make the mono sum."""
        for batch in batches:
            self._count_flat(batch[weights > 0])
            self._add_spectrum(weights @ batch)
            yield batch

    def _count_flat(self, channels: FloatArray) -> None:
        # A clipped wave stays at the peak for several samples; a clean one passes through it.
        flat = np.abs(channels) >= self.peaks[:, None] - 1e-5
        run = 3 + self.rate_hz // 16_000
        if flat.shape[1] > run:
            runs = np.lib.stride_tricks.sliding_window_view(flat, run, axis=1).all(axis=2)
            self.num_flat += int(runs.any(axis=0).sum())

    def _add_spectrum(self, mono: FloatArray) -> None:
        size = 1024 if self.rate_hz <= 24_000 else 2048 if self.rate_hz <= 48_000 else 4096
        count = len(mono) // size
        if not count:
            return
        windowed = mono[: count * size].reshape(count, size) * np.hanning(size)
        power = np.abs(np.fft.rfft(windowed, axis=1)).astype(np.float64) ** 2
        total = power.sum(axis=0)
        self.power = total if self.power is None else self.power + total
        if len(self.spectra) < 40:
            self.spectra.append(power)


def speech_notes(
    samples: FloatArray, survey: Survey, analysis: Analysis, *, cancelled: bool
) -> Iterator[Note]:
    """Yield what can be said about decoded speech.

    Args:
        samples: the speech at `SPEECH_RATE_HZ`, mono, float32, (n,).
        survey: what was measured in the file.
        analysis: what was collected while it was decoded.
        cancelled: whether the channels cancel each other in mono.
    """
    yield from _damage_notes(survey)
    if cancelled:
        yield Note(
            "speech",
            "antiphase",
            "The channels of the recording cancel each other in mono, so only the louder one is "
            "used; check the wiring or export one channel.",
        )
    level_notes = tuple(_level_notes(samples, survey, analysis))
    yield from level_notes
    if "silent" not in {note.code for note in level_notes}:
        yield from _spectrum_notes(survey.rate_hz, analysis)


def _damage_notes(survey: Survey) -> Iterator[Note]:
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


def _level_notes(samples: FloatArray, survey: Survey, analysis: Analysis) -> Iterator[Note]:
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
    size = SPEECH_RATE_HZ // 20
    count = len(samples) // size
    if not count:
        return
    windows = samples[: count * size].reshape(count, size)
    # A minute at a time: the sums are made in float64, which for an hour would be half a gigabyte.
    level = np.concatenate(
        [windows[i : i + 1200].std(axis=1, dtype=np.float64) for i in range(0, count, 1200)]
    )
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


def _spectrum_notes(rate_hz: int, analysis: Analysis) -> Iterator[Note]:
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


def _real_bandwidth_hz(rate_hz: int, analysis: Analysis) -> float | None:
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


def _is_mirrored(rate_hz: int, centre_hz: float, analysis: Analysis) -> bool:
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
    if rate_hz > SPEECH_RATE_HZ:
        return False
    smooth = _smoothed(power, rate_hz / 2 / (len(power) - 1))
    share = np.linspace(0, 1, len(power))
    top = power[(share >= 0.97) & (share < 0.998)].mean()
    below = power[(share >= 0.80) & (share < 0.92)].mean()
    return bool(top >= below and top > smooth.max() * 10**-3.5)
