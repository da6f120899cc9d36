"""A painter of signed-distance shapes with analytic anti-aliasing.

A *field* is a float32 array over the canvas: negative inside a shape, positive outside, about the
distance to the outline in frame units near it. Coverage follows from the field and the size of a
pixel alone, so nothing is drawn larger and scaled down. Frame coordinates have x to the right and
y down; the shorter side of an image spans [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Colour: TypeAlias = tuple[float, float, float]
Point: TypeAlias = tuple[float, float]


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours; a share of 0 is the first, 1 the second."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def lit(colour: Colour, amount: float) -> Colour:
    """Move a colour towards warm white (positive amount) or deep violet (negative)."""
    return mix(colour, (1.0, 0.98, 0.93), amount) if amount > 0 else mix(colour, DEEP, -amount)


DEEP: Colour = (0.10, 0.04, 0.10)


@dataclass(frozen=True)
class Canvas:
    """Pixels together with the coordinates they have in one frame.

    Attributes:
        pixels: (H, W, 3) float32 sRGB in [0, 1]; painted in place, shared by all frames.
        x: (H, W) float32 frame coordinate of each pixel centre, to the right.
        y: (H, W) float32, down.
        pixel: size of a pixel in frame units.
    """

    pixels: Array
    x: Array
    y: Array
    pixel: float

    @classmethod
    def blank(cls, width: int, height: int) -> Canvas:
        """Make a black canvas of `width` by `height` pixels, centred on (0, 0)."""
        pixel = 2.0 / min(width, height)
        columns = (np.arange(width, dtype=np.float32) - (width - 1) / 2) * np.float32(pixel)
        rows = (np.arange(height, dtype=np.float32) - (height - 1) / 2) * np.float32(pixel)
        x, y = np.meshgrid(columns, rows)
        return cls(np.zeros((height, width, 3), np.float32), x, y, pixel)

    def placed(self, at: Point, scale: float, roll: float = 0.0, pivot: float = 0.0) -> Canvas:
        """Return the same pixels in a frame moved to `at`, enlarged and rolled.

        Args:
            at: where the new origin lies in this frame.
            scale: size of one new unit in units of this frame.
            roll: rotation in radians, positive clockwise on screen.
            pivot: y of the point, in the new frame, about which it rolls.
        """
        x, y = (self.x - at[0]) / scale, (self.y - at[1]) / scale - pivot
        cos, sin = np.float32(np.cos(roll)), np.float32(np.sin(roll))
        return Canvas(self.pixels, cos * x + sin * y, cos * y - sin * x + pivot, self.pixel / scale)

    def window(self, centre: Point, half: Point) -> Canvas:
        """Return a view of the pixels within `half` of `centre`: small parts paint faster there."""
        near = (abs(self.x - centre[0]) <= half[0]) & (abs(self.y - centre[1]) <= half[1])
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if not rows.size:
            return Canvas(self.pixels[:0, :0], self.x[:0, :0], self.y[:0, :0], self.pixel)
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return Canvas(self.pixels[box], self.x[box], self.y[box], self.pixel)

    def distance(self, implicit: Array) -> Array:
        """Turn any function that is zero on an outline into a field, by its own slope."""
        if min(implicit.shape) < 2:
            return implicit
        down, right = np.gradient(implicit, np.float32(self.pixel))
        return np.asarray(implicit / np.maximum(np.hypot(down, right), 1e-3), np.float32)

    def cover(self, field: Array, soft: float = 0.0) -> Array:
        """Coverage in [0, 1]; `soft` widens the edge to that many frame units, S-shaped."""
        share = np.clip(0.5 - field / (self.pixel + soft), 0.0, 1.0)
        return share * share * (3 - 2 * share) if soft else share

    def fill(
        self,
        field: Array,
        colour: Colour | Array,
        opacity: float | Array = 1.0,
        soft: float = 0.0,
        within: Array | None = None,
    ) -> None:
        """Paint a shape over what is there.

        Args:
            field: the shape, (H, W).
            colour: one colour, or (H, W, 3) colours.
            opacity: strength in [0, 1], one value or (H, W).
            soft: width of a blurred edge in frame units; 0 is a crisp edge of one pixel.
            within: a second shape with a crisp edge that limits the first.
        """
        share = self.cover(field, soft) * np.float32(1) * opacity
        if within is not None:
            share = share * self.cover(within)
        target = np.asarray(colour, np.float32)
        self.pixels[...] += (target - self.pixels) * share[..., None].astype(np.float32)

    def ellipse(self, centre: Point, half: Point) -> Array:
        """Field of an ellipse, exact on its outline and nearly so around it."""
        u, v = (self.x - centre[0]) / half[0], (self.y - centre[1]) / half[1]
        reach = np.hypot(u, v)
        slope = np.hypot(u / half[0], v / half[1])
        return np.asarray(reach * (reach - 1) / np.maximum(slope, 1e-6), np.float32)

    def box(self, centre: Point, half: Point, corner: float) -> Array:
        """Field of a rectangle with round corners of radius `corner`."""
        u = abs(self.x - centre[0]) - half[0] + corner
        v = abs(self.y - centre[1]) - half[1] + corner
        outside = np.hypot(np.maximum(u, 0), np.maximum(v, 0))
        return np.asarray(outside + np.minimum(np.maximum(u, v), 0) - corner, np.float32)

    def stroke(self, start: Point, end: Point, first: float, last: float) -> Array:
        """Field of a line whose half thickness goes from `first` to `last`, with round ends."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        along = ((self.x - start[0]) * dx + (self.y - start[1]) * dy) / (dx * dx + dy * dy)
        along = np.clip(along, 0.0, 1.0)
        away = np.hypot(self.x - start[0] - along * dx, self.y - start[1] - along * dy)
        return np.asarray(away - first - (last - first) * along, np.float32)


def merged(first: Array, second: Array, round_: float) -> Array:
    """Union of two fields with a fillet of about `round_` frame units where they meet."""
    share = np.clip(0.5 + (second - first) / (2 * round_), 0, 1)
    return np.asarray(
        second + (first - second) * share - round_ * share * (1 - share), dtype=np.float32
    )


def ramp(value: Array, low: float, high: float) -> Array:
    """Smooth step: 0 below `low`, 1 above `high`."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share), np.float32)


def strands(across: Array, fineness: float) -> Array:
    """Smooth repeatable noise in about [-1, 1] over a coordinate that runs across hair."""
    waves = ((1.0, 0.3, 0.42), (2.3, 1.9, 0.3), (4.1, 4.4, 0.22), (7.7, 0.8, 0.16))
    total = sum(amount * np.sin(across * fineness * k + phase) for k, phase, amount in waves)
    return np.asarray(total, np.float32)
