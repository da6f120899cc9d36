"""Random people for the painter of the example portraits; none of them is in its cast."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeVar, cast

import numpy as np

from examples.cartoon.canvas import Colour
from examples.cartoon.character import (
    Backdrop,
    Character,
    Clothes,
    Collar,
    Decor,
    Extras,
    Eyes,
    Face,
    Hair,
    HairStyle,
    Mouth,
    rgb,
)

Choice = TypeVar("Choice")

SKINS = (
    "#f6d9c2", "#f3c6a6", "#eebf9f", "#e0ac86", "#d09a6e", "#b97f56", "#9c6644",
    "#7d4f35", "#5e3a28",
)  # fmt: skip
HAIRS = (
    "#1f1a1c", "#2c2122", "#4a2c1b", "#5a3520", "#8a4a26", "#b0622d", "#c98f4e",
    "#e2bf78", "#a33b26", "#8d8a88", "#d8d6d2", "#3b2a4a",
)  # fmt: skip
CLOTHS = (
    "#2f6f8f", "#33415c", "#e9a23b", "#b9586b", "#5c7f5a", "#d9624a", "#6b4f8a",
    "#f0efe9", "#2a2a30", "#4fa08c", "#b03a3a", "#8fa7c9",
)  # fmt: skip
BACKS = (
    "#fbe3c8", "#cfe3ea", "#bfe6d8", "#e3ddf6", "#f4ead6", "#d5ecf7", "#f6cfd6",
    "#d8e8b8", "#8fa3b8", "#4b5a70", "#e8e8ec",
)  # fmt: skip
IRISES = ("#4f8a5b", "#4a7fb5", "#5b3218", "#4b2c1a", "#5d86a3", "#7a6a3a")
LIPS = ("#c9575c", "#b9665c", "#a3444a", "#cf6068", "#9c5048")
STYLES: tuple[HairStyle, ...] = ("bald", "short", "side part", "long", "bob", "bun", "curly")
COLLARS: tuple[Collar, ...] = ("crew", "v", "turtle", "shirt", "blazer", "hoodie")
DECORS: tuple[Decor, ...] = ("plain", "disc", "ring", "bokeh", "arch")


def random_person(random: np.random.Generator, size: tuple[int, int] = (128, 128)) -> Character:
    """Draw the parameters of one person from the ranges of `examples.cartoon.character`.

    Args:
        random: decides everything.
        size: width and height of the picture; in one that is not square the face lies anywhere
            that leaves it whole.
    """
    skin = _colour(random, SKINS, 0.035)
    hair = _hair(random)
    beard, moustache = random.random() < 0.16, random.random() < 0.12
    hairy = hair.style in ("bald", "short", "side part", "curly")
    grown = _near(hair.colour if hair.style != "bald" else _colour(random, HAIRS, 0.03), random)
    face = Face(
        skin=skin,
        half_width=random.uniform(0.40, 0.47),
        half_height=random.uniform(0.50, 0.57),
        jaw=random.uniform(0.68, 0.90),
        chin=random.uniform(0.53, 0.61),
        nose_width=random.uniform(0.047, 0.080),
        nose_y=random.uniform(0.135, 0.185),
        mouth_y=random.uniform(0.290, 0.335),
        mouth_half_width=random.uniform(0.125, 0.165),
        lip=random.uniform(0.011, 0.026),
        lip_colour=_colour(random, LIPS, 0.04),
        blush=random.uniform(0.0, 0.6),
        freckles=random.random() < 0.1,
        age=random.uniform(0.3, 1.0) if random.random() < 0.15 else 0.0,
        neck=random.uniform(0.15, 0.22),
    )
    person = Character(
        name="somebody",
        size=size,
        face=face,
        eyes=_eyes(random, hair.colour),
        hair=hair,
        clothes=Clothes(
            _one(random, COLLARS), _colour(random, CLOTHS, 0.05), _colour(random, CLOTHS, 0.05),
            random.uniform(0.80, 1.04),
        ),
        backdrop=Backdrop(
            _colour(random, BACKS, 0.05), _colour(random, BACKS, 0.05), _one(random, DECORS),
            _near((0.97, 0.97, 0.97), random),
        ),
        extras=Extras(
            beard=grown if hairy and beard else None,
            moustache=grown if hairy and moustache else None,
            glasses=cast(
                Literal["none", "round", "square"],
                _one(random, ("none", "none", "none", "round", "square")),
            ),
            glasses_colour=_colour(random, ("#2b2226", "#8c5a3a", "#3a4a6a", "#6a2a30"), 0.04),
            earrings=_colour(random, ("#f3cf63", "#d8dde2"), 0.03)
            if random.random() < 0.2
            else None,
        ),
        mouth=Mouth(smile=random.uniform(0.0, 0.7)),
        at=(random.uniform(-0.06, 0.06), random.uniform(-0.24, 0.04)),
        scale=random.uniform(1.05, 1.32),
        roll=random.uniform(-0.04, 0.04),
    )  # fmt: skip
    width, height = size
    x, y = person.at
    if width > height:
        x += random.uniform(-0.4, 0.4)
    if width < height:
        y += random.uniform(-0.3, 0.15)
    return replace(person, at=(x, y))


def _hair(random: np.random.Generator) -> Hair:
    style = _one(random, STYLES)
    line = random.uniform(-0.33, -0.24)
    hair = Hair(
        style,
        _colour(random, HAIRS, 0.03),
        volume=random.uniform(0.05, 0.10),
        line=line,
        part=random.uniform(-0.2, 0.2),
        length=random.uniform(0.42, 0.58) if style == "bob" else random.uniform(0.75, 1.08),
    )
    if style == "curly":
        return replace(hair, volume=random.uniform(0.11, 0.17))
    if style in ("bob", "long", "short") and random.random() < 0.35:
        return replace(hair, fringe=style != "short", line=random.uniform(-0.24, -0.17))
    return hair


def _eyes(random: np.random.Generator, hair: Colour) -> Eyes:
    dark = tuple(0.72 * part for part in hair)
    return Eyes(
        iris=_colour(random, IRISES, 0.05),
        brow=_near(cast(Colour, dark), random),
        x=random.uniform(0.172, 0.203),
        y=random.uniform(-0.05, 0.015),
        half_width=random.uniform(0.078, 0.097),
        half_height=random.uniform(0.056, 0.078),
        iris_ratio=random.uniform(0.68, 0.86),
        lashes=random.uniform(0.0, 0.95),
        fold=random.uniform(0.1, 0.8),
        brow_height=random.uniform(0.130, 0.163),
        brow_thickness=random.uniform(0.013, 0.025),
        brow_tilt=random.uniform(-0.12, 0.16),
    )


def _one(random: np.random.Generator, choices: tuple[Choice, ...]) -> Choice:
    return choices[int(random.integers(len(choices)))]


def _colour(random: np.random.Generator, codes: tuple[str, ...], jitter: float) -> Colour:
    return _near(rgb(_one(random, codes)), random, jitter)


def _near(colour: Colour, random: np.random.Generator, jitter: float = 0.03) -> Colour:
    shade = random.normal(0, jitter)
    red, green, blue = (
        float(np.clip(part + shade + random.normal(0, jitter / 2), 0.02, 0.99)) for part in colour
    )
    return red, green, blue
