"""From speech, mood and noise to what a person does: the acting that the network learns.

Head motion, gaze and blinks that speech does not explain are decided by a few numbers per latent
frame, standard normal and independent: the *cues*. In training the cues are written into the noise
that the network starts from (`set_cues`), along fixed directions; whatever is drawn, the noise
stays standard normal. So noise tells the network when to blink and where to turn, a sampler of few
steps need not invent it, and rare events are not averaged away.

Shapes: B clips, F latent frames, T = 4F video frames, K cues, latents (B, C, F, H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from examples.cartoon.acting import Acting
from liveavatar.config import FPS
from liveavatar.timeline import HELD_FRAMES
from training.mouth_targets import MouthTargets

BLINK, YAW, PITCH, GLANCE, GAZE = range(5)
NUM_CUES = 5

MOODS = ("plain", "happy", "surprised", "serious")
BLINK_THRESHOLD = 1.85
"""A blink cue above this blinks: 3.2 % of latent frames, 12 a minute."""
PHRASE_BLINK_THRESHOLD = 0.8
"""Where a phrase ends, a lower cue does: every fifth end of a phrase blinks, as people do.

Speech with many short phrases would blink forty times a minute otherwise."""
GLANCE_THRESHOLD = 1.2
_BLINK_PROFILE = (0.45, 0.05, 0.0, 0.25, 0.6, 0.9)
_BLINK_REST = 20
_TURN_DECAY = 0.80
_ONSET_S, _MOOD_S = 0.30, 0.35

# smile (None keeps the portrait's own), brow raise, lids, added mouth opening
MOOD_LOOKS: dict[str, tuple[float | None, float, float, float]] = {
    "plain": (None, 0.0, 1.0, 0.0),
    "happy": (1.9, 0.25, 0.72, 0.08),
    "surprised": (-0.1, 1.5, 1.45, 0.22),
    "serious": (-0.9, -0.9, 0.78, 0.0),
}


def read_cues(noise_BCFHW: Tensor) -> Tensor:
    """Cues (B, F, K) that are in a noise: normalised means of its first K channels."""
    area = math.sqrt(noise_BCFHW.shape[-2] * noise_BCFHW.shape[-1])
    return noise_BCFHW[:, :NUM_CUES].sum((-2, -1)).transpose(1, 2) / area


def set_cues(noise_BCFHW: Tensor, cues_BFK: Tensor) -> Tensor:
    """Return the noise with the given cues in the place of its own."""
    area = math.sqrt(noise_BCFHW.shape[-2] * noise_BCFHW.shape[-1])
    change = (cues_BFK - read_cues(noise_BCFHW)).transpose(1, 2)[..., None, None] / area
    return torch.cat([noise_BCFHW[:, :NUM_CUES] + change, noise_BCFHW[:, NUM_CUES:]], dim=1)


def act(mouth: MouthTargets, cues_FK: Tensor, mood: str, rest_smile: float) -> Acting:
    """Play one clip from its beginning, on the CPU.

    Args:
        mouth: targets of T frames, (T,) each.
        cues_FK: (F, K) with T = 4F.
        mood: one of `MOODS`.
        rest_smile: smile of the portrait, which the clip starts from.

    Returns:
        Acting of T frames; the first three are at rest.
    """
    num_frames = mouth.open.shape[0]
    moving = (torch.arange(num_frames) - HELD_FRAMES + 1).clamp(min=0) / FPS
    onset, mooded = 1 - torch.exp(-moving / _ONSET_S), 1 - torch.exp(-moving / _MOOD_S)
    smile, brow, lids, gape = MOOD_LOOKS[mood]
    spoken = (moving > 0).float()
    stress = _smoothed(mouth.loud, 3.0) - 0.45
    yaw, pitch = (_wander(cues_FK[:, cue]) for cue in (YAW, PITCH))
    yaw, pitch = 0.26 * yaw * onset, (0.14 * pitch + 0.45 * stress) * onset
    gaze_x, gaze_y = _gaze(cues_FK)
    opening = (mouth.open + gape * mooded * (1 - 0.6 * mouth.open)).clamp(0, 1) * spoken
    tracks = (
        opening,
        mouth.wide * spoken,
        mouth.sibilant * spoken,
        rest_smile + (0.0 if smile is None else smile - rest_smile) * mooded,
        (1 + (lids - 1) * mooded) * _blinks(cues_FK, mouth.loud),
        (gaze_x - 0.6 * yaw) * spoken,
        (gaze_y - 0.4 * pitch) * spoken,
        (brow * mooded + 0.25 * stress.clamp(min=0) * onset),
        yaw,
        pitch,
        0.05 * yaw,
        0.035 * yaw,
        0.02 * pitch,
    )
    return Acting(*(track.float()[:, None, None] for track in tracks))


def _wander(cue_F: Tensor) -> Tensor:
    """A random walk that returns to rest, one number per latent frame, smooth between them."""
    values = [torch.tensor(0.0)]
    for push in cue_F:
        values.append(_TURN_DECAY * values[-1] + math.sqrt(1 - _TURN_DECAY**2) * push)
    track = torch.stack(values)
    share = torch.tensor([0.25, 0.5, 0.75, 1.0])
    share = share * share * (3 - 2 * share)
    between = track[:-1, None] + (track[1:] - track[:-1])[:, None] * share
    return between.flatten().clamp(-2, 2)


def _gaze(cues_FK: Tensor) -> tuple[Tensor, Tensor]:
    """Glances: a high cue looks aside, a low one back at the camera; eyes move in two frames."""
    x, y, track = 0.0, 0.0, []
    for cues in cues_FK:
        if cues[GLANCE] > GLANCE_THRESHOLD:
            x, y = float(cues[GAZE].clamp(-1.5, 1.5)) * 0.6, 0.25 * math.sin(3 * float(cues[GAZE]))
        elif cues[GLANCE] < -0.7:
            x, y = 0.0, 0.0
        track.append((x, y))
    steps = torch.tensor(track).repeat_interleave(4, dim=0)
    smooth = (steps + torch.cat([steps[:1], steps[:-1]])) / 2
    return smooth[:, 0], smooth[:, 1]


def _blinks(cues_FK: Tensor, loud_T: Tensor) -> Tensor:
    """Share of the lids' opening, which falls where `_blink_starts` says."""
    num_frames = loud_T.shape[0]
    lids = torch.ones(num_frames)
    last = -_BLINK_REST
    for start in _blink_starts(cues_FK[:, BLINK], loud_T):
        if start < HELD_FRAMES or start - last < _BLINK_REST:
            continue
        last = start
        for index, opening in enumerate(_BLINK_PROFILE):
            if start + index < num_frames:
                lids[start + index] = opening
    return lids


def _blink_starts(cue_F: Tensor, loud_T: Tensor) -> list[int]:
    """Frames where a blink may begin: a high cue, or a phrase's end with a cue that is not low."""
    starts = [4 * frame for frame, cue in enumerate(cue_F) if cue > BLINK_THRESHOLD]
    slow = _smoothed(loud_T, 3.0)
    ends = torch.nonzero((slow[:-1] >= 0.35) & (slow[1:] < 0.35)).flatten() + 1
    starts += [int(end) for end in ends if cue_F[end // 4] > PHRASE_BLINK_THRESHOLD]
    return sorted(starts)


def _smoothed(track_T: Tensor, width: float) -> Tensor:
    """Gaussian average over a few frames to both sides."""
    reach = int(2 * width)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    padded = torch.nn.functional.pad(track_T[None, None], (reach, reach), mode="replicate")
    return torch.nn.functional.conv1d(padded, (kernel / kernel.sum())[None, None])[0, 0]
