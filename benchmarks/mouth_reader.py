"""Reads how far a drawn person's mouth and lids are open, off the pixels of frames.

A linear reader per person, fitted to drawings of that person whose mouth and lids are known. It
sees the averages of 2x2 pixels, so that it does not depend on the finest lines, which an
autoencoder softens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from examples.cartoon.acting import Acting
from examples.cartoon.character import Character
from examples.cartoon.scene import draw_frames
from training.clips import focus_points
from training.mouth_targets import mouth_targets
from training.performance import NUM_CUES, act

Frames = npt.NDArray[np.uint8]
Track = npt.NDArray[np.float64]

_FITTED_FRAMES, _RIDGE, _HELD, _SEED = 480, 0.1, 6, 90_000


def drawn_frames(person: Character, acting: Acting, size: tuple[int, int]) -> Frames:
    """Draw acting as uint8 frames, (T, H, W, 3)."""
    return np.asarray((draw_frames(person, acting, size) * 255 + 0.5).to(torch.uint8).numpy())


class Reader:
    """Reads mouth opening and lids off frames of one person.

    Args:
        person: who is seen.
        size: width and height of the frames in pixels.
    """

    def __init__(self, person: Character, size: tuple[int, int]) -> None:
        points = focus_points(person, size)
        mouth, eyes = points[0], (points[1] + points[2]) / 2
        self.boxes = {"open": _box(mouth, 24, 18), "lids": _box(eyes, 30, 12)}
        shown = _everything(person)
        drawn = drawn_frames(person, shown, size)
        self.fits = {
            name: self._fit(drawn, getattr(shown, name).flatten().double().numpy(), name)
            for name in self.boxes
        }

    def read(self, frames: Frames, name: str) -> Track:
        """Values of every frame, "open" or "lids"."""
        return np.asarray(self._features(frames, name) @ self.fits[name])

    def _features(self, frames: Frames, name: str) -> Track:
        rows, columns = self.boxes[name]
        box = frames[:, rows, columns] / 255.0
        box = box[:, : box.shape[1] // 2 * 2, : box.shape[2] // 2 * 2]
        fours = box.reshape(len(box), box.shape[1] // 2, 2, box.shape[2] // 2, 2, 3).mean((2, 4))
        return np.concatenate([fours.reshape(len(box), -1), np.ones((len(box), 1))], axis=1)

    def _fit(self, frames: Frames, values: npt.NDArray[np.float64], name: str) -> Track:
        features = self._features(frames, name)
        gram = features @ features.T + _RIDGE * np.eye(len(features))
        return np.asarray(features.T @ np.linalg.solve(gram, values))


def _everything(person: Character) -> Acting:
    """Acting with all positions of mouth and lids, none of which goes along with another."""
    random = np.random.default_rng(_SEED)
    cues = torch.from_numpy(random.standard_normal((_FITTED_FRAMES // 4, NUM_CUES))).float()
    targets = mouth_targets(torch.zeros(_FITTED_FRAMES * 640))
    acting = act(targets, cues, "plain", float(person.mouth.smile))
    drawn = torch.from_numpy(random.random((5, _FITTED_FRAMES // _HELD))).float()
    opening, wide, spoken, lids, hiss = (
        track.repeat_interleave(_HELD)[:, None, None] for track in drawn
    )
    speaks = spoken > 0.3
    return Acting(
        **{
            **{name: getattr(acting, name) for name in Acting.__annotations__},
            "open": opening**1.5 * speaks,
            "wide": (wide * 1.4 - 0.7) * speaks,
            "sibilant": (hiss - 0.6).clamp(min=0) * speaks,
            "lids": (lids * 1.5).clamp(0, 1),
        }
    )


def _box(centre: torch.Tensor, half_width: int, half_height: int) -> tuple[slice, slice]:
    x, y = int(centre[0]), int(centre[1])
    rows = slice(max(0, y - half_height), y + half_height)
    return rows, slice(max(0, x - half_width), x + half_width)
