"""What a person does from frame to frame: expression and pose, one value per frame."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from examples.cartoon.canvas import Sway
from examples.cartoon.character import Mouth

# How far a face turned by one unit moves against the outline of its head, in head units.
YAW_PARALLAX, PITCH_PARALLAX = 0.085, 0.07
FACE_REACH = 0.09
HEAD_REACH = 0.13


@dataclass(frozen=True)
class Acting:
    """Expression and pose of T frames, (T, 1, 1) each; zero is at rest except for `lids`.

    Attributes:
        open, wide, sibilant, smile: of the mouth, see `Mouth`.
        lids: 1 the eyes as they are drawn at rest, 0 shut, above 1 wide.
        gaze_x, gaze_y: where the eyes look, -1 to 1, to the right and down.
        brow_raise: lifted brows, -0.5 to 1.
        yaw, pitch: turn of the head to the right and down, about -1 to 1.
        roll: tilt of the head in radians.
        shift_x, shift_y: movement of the head in head units.
    """

    open: Tensor
    wide: Tensor
    sibilant: Tensor
    smile: Tensor
    lids: Tensor
    gaze_x: Tensor
    gaze_y: Tensor
    brow_raise: Tensor
    yaw: Tensor
    pitch: Tensor
    roll: Tensor
    shift_x: Tensor
    shift_y: Tensor

    @property
    def num_frames(self) -> int:
        """Frames T."""
        return self.open.shape[0]

    @property
    def mouth(self) -> Mouth:
        """The mouth of all frames."""
        return Mouth(self.open, self.wide, self.sibilant, self.smile)

    def to(self, device: torch.device | str) -> Acting:
        """Return the same acting on a device."""
        return Acting(*(getattr(self, field.name).to(device) for field in fields(self)))

    def part(self, first: int, last: int) -> Acting:
        """Return the acting of frames `first` to `last`, the last one not included."""
        return Acting(*(getattr(self, field.name)[first:last] for field in fields(self)))

    def head_sway(self, scale: float) -> Sway:
        """Movement of the head, in units of a frame where a head unit is `scale` long."""
        return Sway(self.shift_x * scale, self.shift_y * scale, self.roll, HEAD_REACH * scale)

    def body_sway(self, scale: float) -> Sway:
        """Movement of the body, which follows the head half way."""
        half = 0.5 * scale
        return Sway(
            self.shift_x * half, self.shift_y * half, torch.zeros_like(self.roll), HEAD_REACH * half
        )

    def face_sway(self, share: float = 1.0) -> Sway:
        """Movement of eyes, nose and mouth against the outline of the head, in head units."""
        return Sway(
            self.yaw * YAW_PARALLAX * share,
            self.pitch * PITCH_PARALLAX * share,
            torch.zeros_like(self.roll),
            FACE_REACH * share,
        )


def rest(mouth: Mouth) -> Acting:
    """One frame at rest with the given mouth, looking at the camera."""

    def one(value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32).reshape(1, 1, 1)

    nothing = one(0.0)
    return Acting(
        one(mouth.open), one(mouth.wide), one(mouth.sibilant), one(mouth.smile), one(1.0),
        nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing,
    )  # fmt: skip
