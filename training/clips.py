"""Training clips: random people who say random pieces of the corpus, drawn frame by frame.

Shapes: T video frames, F latent frames (T/4), N samples at 16 kHz, K cues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.cartoon.character import Character
from examples.cartoon.scene import draw_frames
from liveavatar.config import FPS, SPEECH_RATE_HZ
from training.mouth_targets import MouthTargets, mouth_targets, reference_level
from training.people import random_person
from training.performance import MOODS, NUM_CUES, act

SAMPLES_PER_FRAME = SPEECH_RATE_HZ // FPS
MARGIN_S = 0.44
"""Speech kept behind a clip, which the speech encoder looks ahead at."""
_SILENT_SHARE = 0.05
_RATES = (0.87, 0.94, 1.0, 1.07, 1.15)


@dataclass(frozen=True)
class Clip:
    """One clip on the training device.

    Attributes:
        frames_THWC: uint8; the first is the portrait at rest.
        sound_N: float32, clip and margin.
        targets_T3: mouth opening, width and hiss.
        cues_FK: numbers behind blinks, gaze and head motion.
        mood: index into `MOODS`.
        focus_42: mouth, left eye, right eye and face centre in pixels (x, y).
    """

    frames_THWC: Tensor
    sound_N: Tensor
    targets_T3: Tensor
    cues_FK: Tensor
    mood: int
    focus_42: Tensor


class Corpus:
    """The speech corpus at several speeds, with the mouth targets of each.

    Args:
        path: file of `training.speech_corpus`.
        device: where the sound is measured.
    """

    def __init__(self, path: Path, device: torch.device | str) -> None:
        samples = torch.from_numpy(np.load(path)["samples"]).float() / 32768
        self.sounds: list[Tensor] = []
        self.targets: list[MouthTargets] = []
        for rate in _RATES:
            length = int(len(samples) / rate)
            stretched = torch.nn.functional.interpolate(
                samples[None, None].to(device), size=length, mode="linear", align_corners=True
            )[0, 0]
            whole = stretched[: length // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
            level = reference_level(whole[: 60 * SPEECH_RATE_HZ])
            targets = mouth_targets(whole, level)
            self.sounds.append(whole.cpu())
            self.targets.append(
                MouthTargets(*(getattr(targets, name).cpu() for name in targets.__annotations__))
            )

    def excerpt(self, random: np.random.Generator, num_frames: int) -> tuple[Tensor, MouthTargets]:
        """Cut a random piece of speech, its margin behind it, and its targets; now and then none.

        Silence is what a microphone hears in a quiet room.
        """
        margin = int(MARGIN_S * SPEECH_RATE_HZ)
        if random.random() < _SILENT_SHARE:
            noise = random.normal(0, 10 ** random.uniform(-4, -2.5), num_frames * 640 + margin)
            nothing = torch.zeros(num_frames)
            return torch.from_numpy(noise).float(), MouthTargets(*[nothing] * 4)
        version = int(random.integers(len(self.sounds)))
        sound, targets = self.sounds[version], self.targets[version]
        last = len(sound) // SAMPLES_PER_FRAME - num_frames - int(MARGIN_S * FPS) - 1
        start = int(random.integers(last))
        piece = sound[start * 640 : (start + num_frames) * 640 + margin]
        cut = slice(start, start + num_frames)
        return piece, MouthTargets(
            targets.open[cut], targets.wide[cut], targets.sibilant[cut], targets.loud[cut]
        )


def draw_clip(
    random: np.random.Generator,
    corpus: Corpus,
    num_frames: int,
    size: tuple[int, int],
    device: torch.device | str,
) -> Clip:
    """Draw one clip of a person who has never been seen before.

    Args:
        random: decides everything.
        corpus: what is said.
        num_frames: T, a multiple of 4.
        size: width and height in pixels.
        device: where it is drawn.
    """
    person = random_person(random, size)
    sound, targets = corpus.excerpt(random, num_frames)
    cues = torch.from_numpy(random.standard_normal((num_frames // 4, NUM_CUES))).float()
    mood = int(random.choice(len(MOODS), p=(0.4, 0.22, 0.22, 0.16)))
    smile = float(person.mouth.smile)
    acting = act(targets, cues, MOODS[mood], smile).to(device)
    return Clip(
        _bytes(draw_frames(person, acting, size)),
        sound,
        torch.stack([targets.open, targets.wide, targets.sibilant], dim=1),
        cues,
        mood,
        focus_points(person, size),
    )


def focus_points(person: Character, size: tuple[int, int]) -> Tensor:
    """Where mouth, left eye, right eye and face of a person are at rest, pixels, (4, 2)."""
    half = min(size) / 2
    places = (
        (0.0, person.face.mouth_y), (-person.eyes.x, person.eyes.y), (person.eyes.x, person.eyes.y),
        (0.0, 0.05),
    )  # fmt: skip
    points = [
        (
            size[0] / 2 + half * (person.at[0] + person.scale * x),
            size[1] / 2 + half * (person.at[1] + person.scale * y),
        )
        for x, y in places
    ]
    return torch.tensor(points)


def focus_weights(focus_B42: Tensor, scale: float, size: tuple[int, int]) -> Tensor:
    """Weight of every pixel, (B, H, W), mean 1: mouth and eyes count more.

    Args:
        focus_B42: of `focus_points`.
        scale: pixels of the wanted map per pixel of the picture, 1/8 for latents.
        size: width and height of the map.
    """
    device = focus_B42.device
    x = (torch.arange(size[0], device=device) + 0.5) / scale
    y = (torch.arange(size[1], device=device) + 0.5) / scale
    unit = min(size) / scale / 2

    def bump(point: int, half_x: float, half_y: float) -> Tensor:
        across = (x - focus_B42[:, point, :1]) / (half_x * unit)
        down = (y - focus_B42[:, point, 1:]) / (half_y * unit)
        return torch.exp(-0.5 * (across[:, None, :] ** 2 + down[:, :, None] ** 2))

    weights = 0.8 + 9 * bump(0, 0.17, 0.13) + 3.5 * (bump(1, 0.12, 0.13) + bump(2, 0.12, 0.13))
    weights = weights + 0.6 * bump(3, 0.5, 0.6)
    return weights / weights.mean((1, 2), keepdim=True)


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255 + 0.5).to(torch.uint8)
