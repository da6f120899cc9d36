"""Reads mouth, lids, smile and brows of a drawn person off the pixels of frames.

A linear reader per person, fitted to drawings of that person in which all of them are known. It
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

_FITTED_FRAMES, _RIDGE, _HELD, _SEED = 600, 0.1, 4, 90_000
READ = {"open": "open", "smile": "smile", "lids": "lids", "brow": "brow_raise"}
"""What is read, and the field of `Acting` that it is."""


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
        unit = min(size) / 128
        mouth = _box(points[0], 24 * unit, 18 * unit)
        eyes = _box((points[1] + points[2]) / 2, 30 * unit, 12 * unit)
        brows = _box((points[1] + points[2]) / 2, 30 * unit, 22 * unit)
        self.boxes = {"open": mouth, "smile": mouth, "lids": eyes, "brow": brows}
        shown = _everything(person)
        drawn = drawn_frames(person, shown, size)
        self.fits = {
            name: self._fit(drawn, getattr(shown, field).flatten().double().numpy(), name)
            for name, field in READ.items()
        }

    def read(self, frames: Frames, name: str) -> Track:
        """Values of every frame of one of `READ`."""
        parts = range(0, len(frames), 250)  # a long video's features would not fit in memory
        read = [self._features(frames[i : i + 250], name) @ self.fits[name] for i in parts]
        return np.concatenate(read)

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
    """Acting with all positions of mouth, lids and brows, independent of each other."""
    random = np.random.default_rng(_SEED)
    cues = torch.from_numpy(random.standard_normal((_FITTED_FRAMES // 4, NUM_CUES))).float()
    targets = mouth_targets(torch.zeros(_FITTED_FRAMES * 640))
    acting = act(targets, cues, "plain", float(person.mouth.smile))
    drawn = torch.from_numpy(random.random((7, _FITTED_FRAMES // _HELD))).float()
    opening, wide, spoken, lids, hiss, smile, brow = (
        track.repeat_interleave(_HELD)[:, None, None] for track in drawn
    )
    speaks = spoken > 0.3
    return Acting(
        **{
            **{name: getattr(acting, name) for name in Acting.__annotations__},
            "open": opening**1.5 * speaks,
            "wide": (wide * 1.4 - 0.7) * speaks,
            "sibilant": (hiss - 0.6).clamp(min=0) * speaks,
            "smile": smile * 3.0 - 1.0,
            "lids": lids * 1.5,
            "brow_raise": brow * 2.7 - 1.0,
        }
    )


def _box(centre: torch.Tensor, half_width: float, half_height: float) -> tuple[slice, slice]:
    x, y, across, down = int(centre[0]), int(centre[1]), int(half_width), int(half_height)
    return slice(max(0, y - down), y + down), slice(max(0, x - across), x + across)
