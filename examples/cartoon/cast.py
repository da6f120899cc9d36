"""The six people whose portraits come with the project."""

from __future__ import annotations

from examples.cartoon.character import (
    Backdrop,
    Character,
    Clothes,
    Extras,
    Eyes,
    Face,
    Hair,
    Mouth,
    rgb,
)

MAYA = Character(
    name="maya",
    size=(768, 768),
    face=Face(
        skin=rgb("#f3c6a6"), half_width=0.415, half_height=0.53, jaw=0.80, chin=0.555,
        lip=0.024, lip_colour=rgb("#c9575c"), blush=0.45, nose_width=0.052, neck=0.16,
    ),
    eyes=Eyes(
        iris=rgb("#4f8a5b"), brow=rgb("#6b3a22"), half_height=0.066, iris_ratio=0.86, lashes=0.8,
        brow_thickness=0.015, brow_tilt=0.05,
    ),
    hair=Hair("long", rgb("#8a4a26"), volume=0.085, line=-0.29, part=-0.07, length=1.02),
    clothes=Clothes("v", rgb("#2f6f8f"), rgb("#2a5f7c"), shoulders=0.84),
    backdrop=Backdrop(rgb("#fbe3c8"), rgb("#f0b48c"), "disc", rgb("#fff4e4")),
    mouth=Mouth(smile=0.6),
)  # fmt: skip

OLIVER = Character(
    name="oliver",
    size=(672, 896),
    face=Face(
        skin=rgb("#eebf9f"), half_width=0.435, half_height=0.545, jaw=0.84, chin=0.585,
        lip=0.015, lip_colour=rgb("#b9665c"), blush=0.25, nose_width=0.062, neck=0.205,
    ),
    eyes=Eyes(
        iris=rgb("#4a7fb5"), brow=rgb("#4a2c1b"), half_height=0.062, lashes=0.0,
        brow_thickness=0.021, brow_height=0.150,
    ),
    hair=Hair("side part", rgb("#5a3520"), volume=0.085, line=-0.30, part=0.17),
    clothes=Clothes("blazer", rgb("#33415c"), rgb("#f2f2ee"), shoulders=1.0),
    backdrop=Backdrop(rgb("#cfe3ea"), rgb("#7fa6b8"), "arch", rgb("#f3fafc")),
    extras=Extras(glasses="square", glasses_colour=rgb("#2b2226")),
    at=(0.0, -0.16), scale=1.24,
)  # fmt: skip

AMARA = Character(
    name="amara",
    size=(648, 1152),
    face=Face(
        skin=rgb("#8d5a3c"), half_width=0.42, half_height=0.53, jaw=0.78, chin=0.565,
        lip=0.026, lip_colour=rgb("#a3444a"), blush=0.30, nose_width=0.070, neck=0.165,
    ),
    eyes=Eyes(
        iris=rgb("#5b3218"), brow=rgb("#21130f"), half_height=0.066, iris_ratio=0.86, lashes=0.9,
        brow_thickness=0.016, brow_tilt=0.08,
    ),
    hair=Hair("curly", rgb("#3b241d"), volume=0.155, line=-0.28),
    clothes=Clothes("crew", rgb("#e9a23b"), rgb("#c97f22"), shoulders=0.84),
    backdrop=Backdrop(rgb("#bfe6d8"), rgb("#4fa08c"), "bokeh", rgb("#f4fff2")),
    extras=Extras(earrings=rgb("#f3cf63")),
    mouth=Mouth(smile=0.65),
    at=(0.0, -0.26), scale=1.30,
)  # fmt: skip

LIN = Character(
    name="lin",
    size=(768, 768),
    face=Face(
        skin=rgb("#f6d2b3"), half_width=0.42, half_height=0.525, jaw=0.80, chin=0.545,
        lip=0.022, lip_colour=rgb("#cf6068"), blush=0.50, nose_width=0.050, neck=0.155,
    ),
    eyes=Eyes(
        iris=rgb("#4b2c1a"), brow=rgb("#2a1d1e"), half_height=0.064, lashes=0.6, fold=0.35,
        brow_thickness=0.015, brow_tilt=0.02,
    ),
    hair=Hair("bob", rgb("#262029"), volume=0.085, line=-0.175, length=0.50, fringe=True),
    clothes=Clothes("turtle", rgb("#b9586b"), rgb("#c4677a"), shoulders=0.82),
    backdrop=Backdrop(rgb("#e3ddf6"), rgb("#a99fd6"), "ring", rgb("#ffffff")),
    extras=Extras(glasses="round", glasses_colour=rgb("#8c5a3a")),
    mouth=Mouth(smile=0.5),
)  # fmt: skip

WALTER = Character(
    name="walter",
    size=(672, 896),
    face=Face(
        skin=rgb("#e6b493"), half_width=0.445, half_height=0.55, jaw=0.86, chin=0.59,
        lip=0.014, lip_colour=rgb("#b56a60"), blush=0.40, nose_width=0.072, neck=0.21, age=0.9,
    ),
    eyes=Eyes(
        iris=rgb("#5d86a3"), brow=rgb("#b9b4ae"), half_height=0.058, lashes=0.0,
        brow_thickness=0.024, brow_tilt=-0.04,
    ),
    hair=Hair("bald", rgb("#d8d6d2")),
    clothes=Clothes("shirt", rgb("#5c7f5a"), rgb("#e9e2cf"), shoulders=1.0),
    backdrop=Backdrop(rgb("#f4ead6"), rgb("#c9a878"), "arch", rgb("#fffaf0")),
    extras=Extras(beard=rgb("#d9d5cf")),
    mouth=Mouth(smile=0.45),
    at=(0.0, -0.16), scale=1.24,
)  # fmt: skip

RAVI = Character(
    name="ravi",
    size=(768, 768),
    face=Face(
        skin=rgb("#b97f56"), half_width=0.418, half_height=0.53, jaw=0.85, chin=0.575,
        lip=0.018, lip_colour=rgb("#9c5048"), blush=0.22, nose_width=0.066, neck=0.20,
    ),
    eyes=Eyes(
        iris=rgb("#4a2a16"), brow=rgb("#1f1716"), half_height=0.064, lashes=0.1,
        brow_thickness=0.022,
    ),
    hair=Hair("short", rgb("#241c20"), volume=0.075, line=-0.31),
    clothes=Clothes("hoodie", rgb("#d9624a"), rgb("#f4e9dc"), shoulders=0.98),
    backdrop=Backdrop(rgb("#d5ecf7"), rgb("#6fb0d8"), "disc", rgb("#f2fbff")),
    mouth=Mouth(smile=0.5),
)  # fmt: skip

CAST = (MAYA, OLIVER, AMARA, LIN, WALTER, RAVI)
