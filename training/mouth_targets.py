"""What a mouth does while it says something, measured from the sound alone.

Shapes: N samples at 16 kHz, T video frames (25 Hz).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.config import FPS, SPEECH_RATE_HZ

_WINDOW, _HOP, _RATE_HZ = 400, 160, 100
_SMOOTHING_S = 0.026


@dataclass(frozen=True)
class MouthTargets:
    """Mouth position per video frame, (..., T) each; see `examples.cartoon.character.Mouth`.

    Attributes:
        open: 0 to 1.
        wide: -1 to 1.
        sibilant: 0 to 1.
        loud: loudness, 0 silent to about 1.
    """

    open: Tensor
    wide: Tensor
    sibilant: Tensor
    loud: Tensor


def mouth_targets(sound: Tensor, reference_db: Tensor | None = None) -> MouthTargets:
    """Measure loudness, formant regions and hiss of speech.

    Args:
        sound: (..., N) float32.
        reference_db: level of loud speech (...), by default the sound's own 93rd percentile.

    Returns:
        Targets at the centre of every whole video frame, T = N * 25 / 16000.
    """
    power = _power(sound)
    hertz = torch.fft.rfftfreq(_WINDOW, 1 / SPEECH_RATE_HZ).to(sound.device)

    def energy(low: float, high: float) -> Tensor:
        return power[..., (hertz >= low) & (hertz < high)].sum(-1) + 1e-10

    def centroid(low: float, high: float) -> Tensor:
        band = (hertz >= low) & (hertz < high)
        return (power[..., band] * hertz[band]).sum(-1) / (power[..., band].sum(-1) + 1e-10)

    voiced, hiss = 10 * energy(150, 3800).log10(), energy(3800, 8000)
    if reference_db is None:
        reference_db = voiced.quantile(0.93, dim=-1)
    level = reference_db[..., None]
    loud = ((voiced - level + 26) / 26).clamp(0, 1.1)
    first = ((centroid(200, 1100) - 320) / 300).clamp(0, 1)
    second = 2 * ((centroid(800, 3000) - 1100) / 800).clamp(0, 1) - 1
    sibilant = ((hiss / energy(150, 8000) - 0.25) / 0.4).clamp(0, 1)
    sibilant = sibilant * ((10 * hiss.log10() - level + 30) / 20).clamp(0, 1)
    opened = (1.15 * loud**1.4 * (0.42 + 0.75 * first) * (1 - 0.6 * sibilant)).clamp(0, 1)
    wide = second * loud.clamp(max=1) * (1 - sibilant) + 0.5 * sibilant
    num_frames = sound.shape[-1] * FPS // SPEECH_RATE_HZ
    return MouthTargets(*(_sampled(v, num_frames) for v in (opened, wide, sibilant, loud)))


def reference_level(sound: Tensor) -> Tensor:
    """Level in dB, (...), that `mouth_targets` takes as loud for a whole recording (..., N)."""
    hertz = torch.fft.rfftfreq(_WINDOW, 1 / SPEECH_RATE_HZ).to(sound.device)
    band = (hertz >= 150) & (hertz < 3800)
    return (10 * (_power(sound)[..., band].sum(-1) + 1e-10).log10()).quantile(0.93, dim=-1)


def _power(sound: Tensor) -> Tensor:
    padded = F.pad(sound, (_WINDOW // 2, _WINDOW))
    frames = padded.unfold(-1, _WINDOW, _HOP)
    return torch.fft.rfft(frames * torch.hann_window(_WINDOW, device=sound.device)).abs() ** 2


def _sampled(track: Tensor, num_frames: int) -> Tensor:
    """Smooth a 100 Hz track and read it at the centres of video frames."""
    reach = 8
    offsets = torch.arange(-reach, reach + 1, device=track.device) / _RATE_HZ
    kernel = torch.exp(-0.5 * (offsets / _SMOOTHING_S) ** 2)
    flat = F.pad(track.reshape(-1, 1, track.shape[-1]), (reach, reach), mode="replicate")
    smooth = F.conv1d(flat, (kernel / kernel.sum())[None, None]).reshape(track.shape)
    centres = (torch.arange(num_frames, device=track.device) * 4 + 2).clamp(max=track.shape[-1] - 1)
    return smooth[..., centres]
