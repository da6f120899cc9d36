"""A painter of signed-distance shapes with analytic anti-aliasing, for one picture or many frames.

A *field* is a float32 tensor over the canvas: negative inside a shape, positive outside, about the
distance to the outline in frame units near it. Coverage follows from the field and the size of a
pixel alone, so nothing is drawn larger and scaled down. Frame coordinates have x to the right and
y down; the shorter side of an image spans [-1, 1].

Shapes: T frames (1 for a still), H rows, W columns. Whatever moves is a tensor (T, 1, 1), whatever
does not is a plain number; everything broadcasts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Colour: TypeAlias = tuple[float, float, float]
Number: TypeAlias = float | Tensor
Point: TypeAlias = tuple[Number, Number]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours; a share of 0 is the first, 1 the second."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def lit(colour: Colour, amount: float) -> Colour:
    """Move a colour towards warm white (positive amount) or deep violet (negative)."""
    return mix(colour, (1.0, 0.98, 0.93), amount) if amount > 0 else mix(colour, DEEP, -amount)


DEEP: Colour = (0.10, 0.04, 0.10)


@dataclass(frozen=True)
class Sway:
    """A small movement of a frame about its place at rest, (T, 1, 1) each.

    Attributes:
        x, y: shift in units of the outer frame.
        roll: added rotation in radians.
        reach: no point of interest moves farther than this, in units of the outer frame.
    """

    x: Tensor
    y: Tensor
    roll: Tensor
    reach: float


@dataclass(frozen=True)
class Canvas:
    """Pixels together with the coordinates they have in one frame.

    Attributes:
        pixels: (T, H, W, 3) float32 sRGB in [0, 1]; painted in place, shared by all frames.
        x: (T or 1, H, W) float32 frame coordinate of each pixel centre, to the right.
        y: (T or 1, H, W) float32, down.
        pixel: size of a pixel in frame units.
        rest_x, rest_y: (H, W) on the host, the coordinates without any movement.
        slack: how far movement carries a point from its place at rest, in frame units.
    """

    pixels: Tensor
    x: Tensor
    y: Tensor
    pixel: float
    rest_x: npt.NDArray[np.float32]
    rest_y: npt.NDArray[np.float32]
    slack: float = 0.0

    @classmethod
    def blank(cls, width: int, height: int, device: torch.device | str = "cpu") -> Canvas:
        """Make one black frame of `width` by `height` pixels, centred on (0, 0)."""
        pixel = 2.0 / min(width, height)
        columns = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * np.float32(pixel)
        rows = (np.arange(height, dtype=np.float32) - (height - 1) / 2) * np.float32(pixel)
        x, y = np.meshgrid(columns, rows)
        pixels = torch.zeros(1, height, width, 3, device=device)
        across, down = (torch.from_numpy(axis)[None].to(device) for axis in (x, y))
        return cls(pixels, across, down, pixel, x, y)

    def repeated(self, num_frames: int) -> Canvas:
        """Return a copy of a still, `num_frames` times."""
        return replace(self, pixels=self.pixels.repeat(num_frames, 1, 1, 1))

    def placed(
        self, at: tuple[float, float], scale: float, roll: float = 0.0, pivot: float = 0.0,
        sway: Sway | None = None,
    ) -> Canvas:  # fmt: skip
        """Return the same pixels in a frame moved to `at`, enlarged and rolled.

        Args:
            at: where the new origin lies in this frame.
            scale: size of one new unit in units of this frame.
            roll: rotation in radians, positive clockwise on screen.
            pivot: y of the point, in the new frame, about which it rolls.
            sway: movement on top of it.
        """
        rest_x, rest_y = _turned(
            (self.rest_x - at[0]) / scale, (self.rest_y - at[1]) / scale - pivot,
            (np.float32(np.cos(roll)), np.float32(np.sin(roll))),
        )  # fmt: skip
        x, y, slack = self.x - at[0], self.y - at[1], self.slack
        angle = torch.tensor(roll)
        if sway is not None:
            x, y, slack, angle = x - sway.x, y - sway.y, slack + sway.reach, sway.roll + roll
        turn = torch.cos(angle), torch.sin(angle)
        x, y = _turned(x / scale, y / scale - pivot, turn)
        return replace(
            self, x=x, y=y + pivot, pixel=self.pixel / scale, rest_x=rest_x,
            rest_y=rest_y + np.float32(pivot), slack=slack / scale,
        )  # fmt: skip

    def mirrored(self, side: float) -> Canvas:
        """Return the same pixels with x growing towards `side`, 1 or -1."""
        return replace(self, x=self.x * side, rest_x=self.rest_x * np.float32(side))

    def window(self, centre: tuple[float, float], half: tuple[float, float]) -> Canvas:
        """Return a view of the pixels within `half` of `centre`: small parts paint faster there."""
        near_x = abs(self.rest_x - np.float32(centre[0])) <= half[0] + self.slack
        near_y = abs(self.rest_y - np.float32(centre[1])) <= half[1] + self.slack
        near = near_x & near_y
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        box = slice(0, 0), slice(0, 0)
        if rows.size:
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return replace(
            self, pixels=self.pixels[:, box[0], box[1]], x=self.x[:, box[0], box[1]],
            y=self.y[:, box[0], box[1]], rest_x=self.rest_x[box], rest_y=self.rest_y[box],
        )  # fmt: skip

    def tone(self, colour: Colour) -> Tensor:
        """A colour as (3,) on the device of the pixels."""
        return torch.tensor(colour, dtype=torch.float32).to(self.x.device, non_blocking=True)

    def distance(self, implicit: Tensor) -> Tensor:
        """Turn any function that is zero on an outline into a field, by its own slope."""
        if min(implicit.shape[-2:]) < 2:
            return implicit
        down, right = torch.gradient(implicit, spacing=self.pixel, dim=(-2, -1))
        return implicit / torch.hypot(down, right).clamp(min=1e-3)

    def cover(self, field: Tensor, soft: float = 0.0) -> Tensor:
        """Coverage in [0, 1]; `soft` widens the edge to that many frame units, S-shaped."""
        share = (0.5 - field / (self.pixel + soft)).clamp(0.0, 1.0)
        return share * share * (3 - 2 * share) if soft else share

    def fill(
        self,
        field: Tensor,
        colour: Colour | Tensor,
        opacity: Number = 1.0,
        soft: float = 0.0,
        within: Tensor | None = None,
    ) -> None:
        """Paint a shape over what is there.

        Args:
            field: the shape, (T or 1, H, W).
            colour: one colour, or (T or 1, H, W, 3) colours.
            opacity: strength in [0, 1], one value, (T, 1, 1) or (T or 1, H, W).
            soft: width of a blurred edge in frame units; 0 is a crisp edge of one pixel.
            within: a second shape with a crisp edge that limits the first.
        """
        share = self.cover(field, soft) * opacity
        if within is not None:
            share = share * self.cover(within)
        target = self.tone(colour) if isinstance(colour, tuple) else colour
        self.pixels.lerp_(target.expand_as(self.pixels), share[..., None])

    def ellipse(self, centre: Point, half: Point) -> Tensor:
        """Field of an ellipse, exact on its outline and nearly so around it."""
        u, v = (self.x - centre[0]) / half[0], (self.y - centre[1]) / half[1]
        reach = torch.hypot(u, v)
        slope = torch.hypot(u / half[0], v / half[1])
        return reach * (reach - 1) / slope.clamp(min=1e-6)

    def box(self, centre: Point, half: Point, corner: float) -> Tensor:
        """Field of a rectangle with round corners of radius `corner`."""
        u = abs(self.x - centre[0]) - half[0] + corner
        v = abs(self.y - centre[1]) - half[1] + corner
        outside = torch.hypot(u.clamp(min=0), v.clamp(min=0))
        return outside + torch.maximum(u, v).clamp(max=0) - corner

    def stroke(self, start: Point, end: Point, first: float, last: float) -> Tensor:
        """Field of a line whose half thickness goes from `first` to `last`, with round ends."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        along = ((self.x - start[0]) * dx + (self.y - start[1]) * dy) / (dx * dx + dy * dy)
        along = along.clamp(0.0, 1.0)
        away = torch.hypot(self.x - start[0] - along * dx, self.y - start[1] - along * dy)
        return away - first - (last - first) * along


def merged(first: Tensor, second: Tensor, round_: float) -> Tensor:
    """Union of two fields with a fillet of about `round_` frame units where they meet."""
    share = (0.5 + (second - first) / (2 * round_)).clamp(0, 1)
    return second + (first - second) * share - round_ * share * (1 - share)


def ramp(value: Tensor, low: float, high: float) -> Tensor:
    """Smooth step: 0 below `low`, 1 above `high`."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def strands(across: Tensor, fineness: float) -> Tensor:
    """Smooth repeatable noise in about [-1, 1] over a coordinate that runs across hair."""
    waves = ((1.0, 0.3, 0.42), (2.3, 1.9, 0.3), (4.1, 4.4, 0.22), (7.7, 0.8, 0.16))
    total = torch.zeros_like(across)
    for factor, phase, amount in waves:
        total = total + amount * torch.sin(across * fineness * factor + phase)
    return total


def larger(first: Tensor, second: Number) -> Tensor:
    """The larger of two fields, or of a field and a number: the cut of two shapes."""
    if isinstance(second, Tensor):
        return torch.maximum(first, second)
    return first.clamp(min=second)


def smaller(first: Tensor, second: Number) -> Tensor:
    """The smaller of two fields, or of a field and a number: the union of two shapes."""
    if isinstance(second, Tensor):
        return torch.minimum(first, second)
    return first.clamp(max=second)


@overload
def limited(value: Tensor, low: float, high: float) -> Tensor: ...


@overload
def limited(value: float, low: float, high: float) -> float: ...


def limited(value: Number, low: float, high: float) -> Number:
    """Bring a number or a tensor into [low, high]."""
    return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)


def _turned(x: Any, y: Any, turn: tuple[Any, Any]) -> tuple[Any, Any]:
    """Rotate host or device coordinates by (cosine, sine)."""
    cos, sin = turn
    return cos * x + sin * y, cos * y - sin * x
