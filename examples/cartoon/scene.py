"""The whole picture: backdrop, body, head, in drawing order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from examples.cartoon.acting import Acting, rest
from examples.cartoon.canvas import Canvas, larger, limited, lit, mix, ramp, smaller
from examples.cartoon.character import Backdrop, Character, Clothes
from examples.cartoon.face import (
    draw_beard,
    draw_eyes,
    draw_glasses,
    draw_head,
    draw_mouth,
    draw_nose,
    head_outline,
    shadow_of,
)
from examples.cartoon.hair import draw_hair_behind, draw_hair_front


def draw_portrait(person: Character, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Draw one person.

    Args:
        person: everything about the picture.
        size: width and height in pixels when they differ from `person.size`.

    Returns:
        RGB picture, (height, width, 3) uint8; the same input gives the same bytes.
    """
    pixels_THW3 = draw_frames(person, rest(person.mouth), size or person.size)
    return np.asarray((pixels_THW3[0] * 255 + 0.5).to(torch.uint8).numpy())


def draw_frames(person: Character, acting: Acting, size: tuple[int, int]) -> Tensor:
    """Draw one person in T frames, on the device of `acting`.

    Args:
        person: everything that stays.
        acting: everything that moves; its mouth takes the place of the person's own.
        size: width and height in pixels.

    Returns:
        RGB in [0, 1], (T, height, width, 3) float32.
    """
    picture = Canvas.blank(*size, acting.open.device)
    _draw_backdrop(picture, person.backdrop)
    picture = picture.repeated(acting.num_frames)
    body = picture.placed(person.at, person.scale, sway=acting.body_sway(person.scale))
    head = picture.placed(
        person.at, person.scale, person.roll, pivot=0.6, sway=acting.head_sway(person.scale)
    )
    features = head.placed((0.0, 0.0), 1.0, sway=acting.face_sway())
    draw_hair_behind(head, person)
    _draw_neck(body, person)
    _draw_clothes(body, person)
    draw_head(head, person, acting)
    draw_nose(features, person.face)
    draw_eyes(features, person, acting)
    draw_beard(features, person, acting)
    draw_mouth(features, person.face, acting.mouth)
    covered = person.hair.style in ("long", "bob")  # hair falls over the ends of the glasses
    if covered:
        draw_glasses(features, person)
    draw_hair_front(head, person)
    if not covered:
        draw_glasses(features, person)
    return picture.pixels.clamp(0, 1)


def _draw_backdrop(canvas: Canvas, backdrop: Backdrop) -> None:
    everywhere = torch.full_like(canvas.x, -9.0)
    rows = float(canvas.y.max())
    share = ramp(0.45 * canvas.x + 0.9 * canvas.y / rows, -1.2, 1.2)
    first, second = (canvas.tone(c) for c in (backdrop.first, backdrop.second))
    canvas.fill(everywhere, first + (second - first) * share[..., None])
    glow = torch.exp(-((canvas.x + 0.25) ** 2 + (canvas.y + 0.35) ** 2) / 0.75)
    canvas.fill(everywhere, lit(backdrop.first, 0.7), 0.35 * glow)
    light = backdrop.glow
    if backdrop.decor == "disc":
        canvas.fill(canvas.ellipse((0.0, -0.12), (0.84, 0.84)), light, 0.42)
        canvas.fill(canvas.ellipse((0.0, -0.12), (0.72, 0.72)), light, 0.25)
    elif backdrop.decor == "ring":
        canvas.fill(abs(canvas.ellipse((0.0, -0.12), (0.80, 0.80))) - 0.035, light, 0.50)
    elif backdrop.decor == "bokeh":
        for x, y, r in _BOKEH:
            spot = canvas.ellipse((x, y * rows), (r, r))
            canvas.fill(spot, light, 0.17, soft=0.05)
            canvas.fill(abs(spot) - 0.004, light, 0.12, soft=0.02)
    elif backdrop.decor == "arch":
        for grow, strength in ((0.14, 0.20), (0.0, 0.36)):
            arch = canvas.box((0.0, 1.3), (0.70 + grow, 2.10 + grow), 0.70 + grow)
            canvas.fill(arch, light, strength)
    far = torch.hypot(canvas.x, canvas.y / rows)
    canvas.fill(everywhere, lit(backdrop.second, -0.6), 0.22 * ramp(far, 0.75, 1.6))


_BOKEH = (
    (-0.82, -0.70, 0.19), (-0.55, -0.93, 0.11), (0.74, -0.82, 0.15), (0.92, -0.36, 0.22),
    (-0.95, -0.12, 0.14), (-0.72, 0.22, 0.09), (0.68, 0.10, 0.10), (0.35, -0.96, 0.08),
    (0.95, 0.30, 0.13), (-0.98, 0.52, 0.17),
)  # fmt: skip


def _draw_neck(canvas: Canvas, person: Character) -> None:
    face = person.face
    if person.clothes.collar == "hoodie":
        hood = canvas.ellipse((0.0, 0.76), (face.neck + 0.24, 0.22))
        canvas.fill(hood, lit(person.clothes.colour, -0.35))
        canvas.fill(hood + 0.04, lit(person.clothes.colour, -0.6), soft=0.06)
    flare = ramp(canvas.y, 0.60, 1.02)
    half = face.neck * (1.10 - 0.10 * ramp(canvas.y, 0.35, 0.55)) + 0.42 * flare**2
    neck = larger(canvas.distance(abs(canvas.x) - half), 0.2 - canvas.y)
    light = limited(0.45 - 1.6 * canvas.x, 0, 1)[..., None]
    dark, base = (canvas.tone(shadow_of(face.skin, k)) for k in (0.38, 0.10))
    canvas.fill(neck, dark + (base - dark) * light)
    cast = head_outline(canvas.placed((0.015, 0.115), 1.0), face)
    canvas.fill(cast, shadow_of(face.skin, 0.72), 0.62, soft=0.10, within=neck)
    for side in (-1.0, 1.0):
        cord = canvas.stroke((side * 0.115, 0.66), (side * 0.045, 0.90), 0.004, 0.006)
        canvas.fill(cord, shadow_of(face.skin, 0.55), 0.25, soft=0.025, within=neck)


def _shoulders(canvas: Canvas, clothes: Clothes) -> Tensor:
    middle, height = 1.95, 1.22
    down = smaller(canvas.y - middle, 0) / height
    implicit = (abs(canvas.x) / clothes.shoulders) ** 2.7 + abs(down) ** 2.7 - 1
    return canvas.distance(implicit)


def _draw_clothes(canvas: Canvas, person: Character) -> None:
    clothes, neck = person.clothes, person.face.neck
    body = _shoulders(canvas, clothes)
    hole = _neckline(canvas, clothes, neck)
    cloth = larger(body, -hole)
    if clothes.collar == "blazer":
        _fill_cloth(canvas, cloth, person, second=True)
        lapel = abs(canvas.x) - 0.10 - 0.46 * larger(1.36 - canvas.y, 0) ** 1.1
        jacket = larger(body, canvas.distance(0.04 - lapel - 0.10))
        _fill_cloth(canvas, jacket, person)
        _draw_lapels(canvas, person, body)
    else:
        _fill_cloth(canvas, cloth, person)
    _draw_trim(canvas, person, hole, body)


def _neckline(canvas: Canvas, clothes: Clothes, neck: float) -> Tensor:
    if clothes.collar == "v":
        slope = abs(canvas.x) - (neck + 0.10) * (1 - ramp(canvas.y, 0.60, 1.22) ** 0.9)
        return canvas.distance(larger(slope, canvas.y - 1.20))
    if clothes.collar in ("shirt", "blazer"):
        slope = abs(canvas.x) - (neck + 0.012) * (1 - ramp(canvas.y, 0.62, 1.06))
        return canvas.distance(larger(slope, canvas.y - 1.03))
    if clothes.collar == "turtle":
        return canvas.box((0.0, 0.70), (neck, 0.10), 0.04)
    return canvas.ellipse((0.0, 0.73), (neck + 0.075, 0.175))


def _fill_cloth(canvas: Canvas, field: Tensor, person: Character, *, second: bool = False) -> None:
    colour = person.clothes.second if second else person.clothes.colour
    light = 0.10 - 0.42 * canvas.x - 0.10 * (canvas.y - 1.0)
    base, bright, dark = (canvas.tone(c) for c in (colour, lit(colour, 0.22), lit(colour, -0.40)))
    rise, sink = limited(light, 0, 1)[..., None], limited(-light, 0, 1)[..., None]
    canvas.fill(field, base + (bright - base) * rise * 1.6 + (dark - base) * sink * 1.3)
    for side in (-1.0, 1.0):
        fold = canvas.stroke((side * 0.60, 1.12), (side * 0.50, 1.75), 0.02, 0.05)
        canvas.fill(fold, lit(colour, -0.5), 0.26, soft=0.16, within=field)
    cast = head_outline(canvas.placed((0.02, 0.20), 1.04), person.face)
    canvas.fill(cast, lit(colour, -0.7), 0.34, soft=0.16, within=field)


def _draw_lapels(canvas: Canvas, person: Character, body: Tensor) -> None:
    colour = person.clothes.colour
    for side in (-1.0, 1.0):
        x = canvas.x * side
        inner = 0.06 + 0.46 * larger(1.36 - canvas.y, 0) ** 1.1
        outer = (
            inner
            + 0.155 * (1 - ramp(canvas.y, 0.98, 1.50))
            - 0.10 * (1 - ramp(canvas.y, 0.80, 0.98))
        )
        lapel = larger(larger(inner - x, x - outer), body)
        field = canvas.distance(lapel)
        canvas.fill(field + 0.0, lit(colour, -0.5), 0.35, soft=0.05)
        canvas.fill(field, lit(colour, 0.10 if side < 0 else -0.06))
        canvas.fill(abs(field) - 0.003, lit(colour, -0.45), 0.5, soft=0.006, within=body)


def _draw_trim(canvas: Canvas, person: Character, hole: Tensor, body: Tensor) -> None:
    clothes, neck = person.clothes, person.face.neck
    second = clothes.second
    if clothes.collar in ("crew", "v"):
        band = larger(abs(hole - 0.022) - 0.022, 0.72 - canvas.y)
        canvas.fill(larger(band, body - 0.02), mix(second, lit(second, -0.3), 0.1))
        canvas.fill(larger(abs(hole - 0.046) - 0.003, body), lit(clothes.colour, -0.5), 0.4)
    elif clothes.collar == "turtle":
        roll = canvas.box((0.0, 0.735), (neck + 0.045, 0.115), 0.055)
        light = limited(0.5 - 1.3 * canvas.x, 0, 1)[..., None]
        dark, base = canvas.tone(lit(second, -0.3)), canvas.tone(lit(second, 0.12))
        canvas.fill(roll, (dark + (base - dark) * light))
        ribs = torch.sin(canvas.x * 120) * 0.5 + 0.5
        canvas.fill(roll, lit(second, -0.45), (0.14 * ribs))
        cast = head_outline(canvas.placed((0.015, 0.105), 1.0), person.face)
        canvas.fill(cast, lit(second, -0.75), 0.42, soft=0.09, within=roll)
        canvas.fill(abs(roll) - 0.003, lit(second, -0.5), 0.35, soft=0.006)
    elif clothes.collar == "hoodie":
        for side in (-1.0, 1.0):
            edge = canvas.stroke((side * (neck + 0.085), 0.70), (side * 0.045, 0.985), 0.085, 0.060)
            edge = larger(edge, -0.004 - side * canvas.x)
            canvas.fill(edge, lit(clothes.colour, -0.6), 0.35, soft=0.06)
            canvas.fill(edge, lit(clothes.colour, 0.14 if side < 0 else 0.02))
            canvas.fill(edge + 0.03, lit(clothes.colour, 0.25), 0.35, soft=0.05)
            canvas.fill(abs(edge) - 0.003, lit(clothes.colour, -0.5), 0.35, soft=0.008)
        for side in (-1.0, 1.0):
            cord = canvas.stroke((side * 0.115, 1.00), (side * 0.135, 1.24), 0.010, 0.010)
            canvas.fill(cord, second)
            canvas.fill(cord + 0.004, lit(second, 0.4), 0.4)
    else:
        _draw_shirt_collar(canvas, person)


def _draw_shirt_collar(canvas: Canvas, person: Character) -> None:
    clothes, neck = person.clothes, person.face.neck
    colour = clothes.second if clothes.collar == "blazer" else clothes.colour
    for side in (-1.0, 1.0):
        x = canvas.x * side
        edge = (neck + 0.004) * (1 - ramp(canvas.y, 0.62, 1.08))
        outer = edge + 0.030 + 0.125 * ramp(canvas.y, 0.62, 0.90)
        tip = canvas.y - 1.06 + 0.55 * (x - 0.05)
        top = 0.665 + 0.35 * (x - edge) - canvas.y
        flap = larger(larger(edge - x, x - outer), larger(tip, top))
        field = canvas.distance(flap)
        canvas.fill(field, lit(colour, -0.7), 0.30, soft=0.05)
        canvas.fill(field, lit(colour, 0.22 if side < 0 else 0.02))
        canvas.fill(abs(field) - 0.003, lit(colour, -0.4), 0.45, soft=0.006)
    if clothes.collar == "shirt":
        seam = larger(abs(canvas.x) - 0.003, 1.03 - canvas.y)
        canvas.fill(seam, lit(colour, -0.4), 0.5, soft=0.006)
        for y in (1.16, 1.42, 1.68, 1.94):
            canvas.fill(canvas.ellipse((0.0, y), (0.020, 0.020)), clothes.second)
