"""What a cartoon person is made of: frozen parameters, nothing about pixels.

Lengths are in head units: y down, origin in the middle of the face, the head about 1.1 high. The
ranges in brackets give pleasant people; any value inside them can be combined with any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from examples.cartoon.canvas import Colour, Number, limited

HairStyle: TypeAlias = Literal["bald", "short", "side part", "long", "bob", "bun", "curly"]
Collar: TypeAlias = Literal["crew", "v", "turtle", "shirt", "blazer", "hoodie"]
Decor: TypeAlias = Literal["plain", "disc", "ring", "bokeh", "arch"]


def rgb(code: str) -> Colour:
    """Read a colour such as '#f2c4a5' into sRGB floats in [0, 1]."""
    red, green, blue = bytes.fromhex(code.removeprefix("#"))
    return red / 255, green / 255, blue / 255


@dataclass(frozen=True)
class Mouth:
    """One mouth position, or one per frame. The defaults are a closed mouth with a light smile.

    Attributes:
        open: jaw opening, 0 to 1.
        wide: -1 rounded ("oo") to 1 spread ("ee").
        sibilant: teeth shown as in "s", 0 to 1.
        smile: lifted corners, -0.2 to 1.
    """

    open: Number = 0.0
    wide: Number = 0.0
    sibilant: Number = 0.0
    smile: Number = 0.35


@dataclass(frozen=True)
class MouthShape:
    """Lengths of a mouth in head units, from `mouth_shape`."""

    centre_y: float
    half_width: Number
    above: Number
    below: Number
    corner_lift: Number
    teeth: Number
    lower_teeth: Number
    tongue: Number


@dataclass(frozen=True)
class Face:
    """Outline and features that do not move."""

    skin: Colour
    half_width: float = 0.43  # [0.40, 0.48]
    half_height: float = 0.54  # [0.50, 0.58]
    jaw: float = 0.80  # [0.66, 0.92] width of the jaw against the cheeks
    chin: float = 0.57  # [0.52, 0.62] y of the chin
    nose_width: float = 0.062  # [0.045, 0.085]
    nose_y: float = 0.165  # [0.13, 0.19]
    mouth_y: float = 0.325  # [0.285, 0.335]
    mouth_half_width: float = 0.14  # [0.125, 0.165]
    lip: float = 0.022  # [0.010, 0.026] thickness of the upper lip
    lip_colour: Colour = (0.75, 0.36, 0.36)
    blush: float = 0.35  # [0, 0.6]
    freckles: bool = False
    age: float = 0.0  # [0, 1] strength of the lines around eyes and mouth
    neck: float = 0.175  # [0.15, 0.23] half width


@dataclass(frozen=True)
class Eyes:
    """Eyes and brows; both sides mirror each other."""

    iris: Colour
    brow: Colour
    x: float = 0.185  # [0.17, 0.205]
    y: float = -0.015  # [-0.06, 0.02]
    half_width: float = 0.088  # [0.072, 0.098]
    half_height: float = 0.064  # [0.055, 0.085]
    iris_ratio: float = 0.80  # [0.62, 0.86] iris radius against the eye's half height
    lashes: float = 0.4  # [0, 1]
    fold: float = 0.5  # [0, 1] strength of the lid crease
    brow_height: float = 0.145  # [0.125, 0.165] above the eye
    brow_thickness: float = 0.018  # [0.012, 0.026]
    brow_tilt: float = 0.0  # [-0.18, 0.22] positive lifts the outer ends


@dataclass(frozen=True)
class Hair:
    """Hair on the head."""

    style: HairStyle
    colour: Colour
    volume: float = 0.07  # [0.045, 0.20]
    line: float = -0.27  # [-0.34, -0.16] y of the hair line
    part: float = 0.12  # [-0.22, 0.22] x of the parting
    length: float = 0.95  # y of the tips, for "long" and "bob"
    fringe: bool = False


@dataclass(frozen=True)
class Extras:
    """Things some people have."""

    beard: Colour | None = None
    moustache: Colour | None = None
    glasses: Literal["none", "round", "square"] = "none"
    glasses_colour: Colour = (0.15, 0.13, 0.16)
    earrings: Colour | None = None


@dataclass(frozen=True)
class Clothes:
    """What is worn on the shoulders."""

    collar: Collar
    colour: Colour
    second: Colour  # shirt below a blazer, trim of a neckline
    shoulders: float = 0.92  # [0.80, 1.05] half width


@dataclass(frozen=True)
class Backdrop:
    """A gradient from the upper left to the lower right, with an optional soft figure."""

    first: Colour
    second: Colour
    decor: Decor = "plain"
    glow: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Character:
    """One person in one picture; `draw_portrait` needs nothing else.

    Attributes:
        name: file name without its ending.
        size: width and height of the full picture in pixels.
        at: where the middle of the face lies; the shorter side of the picture spans [-1, 1].
        scale: size of one head unit against half the shorter side, 1.0 to 1.3.
        roll: tilt of the head in radians, -0.05 to 0.05.
    """

    name: str
    size: tuple[int, int]
    face: Face
    eyes: Eyes
    hair: Hair
    clothes: Clothes
    backdrop: Backdrop
    extras: Extras = Extras()
    mouth: Mouth = Mouth()
    at: tuple[float, float] = (0.0, -0.06)
    scale: float = 1.12
    roll: float = 0.0


def mouth_shape(face: Face, mouth: Mouth) -> MouthShape:
    """Work out the lengths of a mouth from how far it is open, wide, hissing and smiling."""
    spread, rounded = limited(mouth.wide, 0.0, 1.0), limited(-mouth.wide, 0.0, 1.0)
    stretch = 0.2 * mouth.wide * (0.5 + 0.5 * mouth.open) + 0.14 * mouth.smile
    stretch = stretch - 0.1 * mouth.open * (1 - spread) - 0.22 * rounded
    gap = 0.135 * mouth.open + 0.022 * mouth.sibilant * (1 - mouth.open)
    return MouthShape(
        centre_y=face.mouth_y,
        half_width=face.mouth_half_width * (1 + stretch),
        above=0.38 * gap,
        below=0.62 * gap,
        corner_lift=0.072 * mouth.smile - 0.015 * mouth.open,
        teeth=0.020 + 0.022 * mouth.open + 0.012 * mouth.sibilant,
        lower_teeth=0.012 * mouth.sibilant,
        tongue=mouth.open,
    )


def jaw_drop(mouth: Mouth) -> Number:
    """How far the chin sinks for a mouth position, in head units."""
    return 0.055 * mouth.open
