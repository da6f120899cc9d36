"""Hair: what lies behind the head and what lies in front of it, by style."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from examples.cartoon.canvas import (
    Canvas,
    Colour,
    larger,
    limited,
    lit,
    merged,
    ramp,
    smaller,
    strands,
)
from examples.cartoon.character import Character, Face, Hair
from examples.cartoon.face import shadow_of


def draw_hair_behind(canvas: Canvas, person: Character) -> None:
    """Paint the mass behind neck and shoulders, and a bun."""
    hair, face = person.hair, person.face
    if hair.style == "bun":
        top = -face.half_height - hair.volume
        knot = canvas.ellipse((0.0, top - 0.075), (0.19, 0.155))
        _fill_hair(canvas, knot, hair, around=(0.0, top + 0.05), shine=top - 0.10)
        fold = abs(canvas.ellipse((0.02, top - 0.02), (0.13, 0.13))) - 0.006
        canvas.fill(larger(fold, knot), lit(hair.colour, -0.45), 0.6, soft=0.012)
    if hair.style in ("long", "bob"):
        back = _fall(canvas, face, hair)
        canvas.fill(back, lit(hair.colour, -0.38))
        streaks = strands(canvas.x + 0.03 * torch.sin(canvas.y * 5), 34.0)
        canvas.fill(back, lit(hair.colour, -0.12), limited(streaks, 0, 1) * 0.5)


def draw_hair_front(canvas: Canvas, person: Character) -> None:
    """Paint the hair over forehead, temples and, when long, over the shoulders."""
    hair, face = person.hair, person.face
    if hair.style == "bald":
        _draw_scalp(canvas, face)
        return
    if hair.style == "curly":
        _draw_curls(canvas, face, hair)
        return
    crown = _crown(canvas, face, hair)
    open_ = _window(canvas, face, hair)
    mass = larger(crown, -open_)
    if hair.style in ("long", "bob"):
        mass = smaller(mass, _locks(canvas, face, hair))
    else:
        side = canvas.distance(canvas.y - 0.085 + 5.0 * larger(abs(canvas.x) - face.half_width, 0))
        mass = larger(mass, side)
    head = canvas.ellipse((0.0, 0.0), (face.half_width, face.half_height + 0.1))
    fall = torch.roll(
        mass, (max(1, int(0.030 / canvas.pixel)), int(0.010 / canvas.pixel)), (-2, -1)
    )
    canvas.fill(fall, shadow_of(face.skin, 0.62), 0.50, soft=0.055, within=head)
    top = -face.half_height - hair.volume
    _fill_hair(canvas, mass, hair, around=(hair.part * 0.8, top - 0.05), shine=top + 0.20)
    if hair.style in ("side part", "long", "bob") and not hair.fringe:
        seam = canvas.stroke(
            (hair.part, hair.line - 0.02), (hair.part * 0.8, top + 0.03), 0.006, 0.002
        )
        canvas.fill(seam, lit(hair.colour, -0.6), 0.55, soft=0.014, within=mass)


def _crown(canvas: Canvas, face: Face, hair: Hair) -> Tensor:
    side = 0.35 if hair.style == "short" else 0.62
    half = (face.half_width + side * hair.volume, face.half_height + hair.volume - 0.05)
    crown = canvas.ellipse((0.0, -0.05), half)
    if hair.style == "side part":
        lean = -0.11 if hair.part > 0 else 0.11
        swell = canvas.ellipse((lean, -face.half_height + 0.12), (0.31, 0.16 + hair.volume))
        crown = merged(crown, swell, 0.09)
    if hair.style == "short":
        for x, y, wide in ((-0.17, 0.13, 0.20), (0.02, 0.10, 0.22), (0.20, 0.15, 0.17)):
            lock = canvas.ellipse((x, y - face.half_height), (wide, y + hair.volume + 0.02))
            crown = merged(crown, lock, 0.05)
    return crown


def _window(canvas: Canvas, face: Face, hair: Hair) -> Tensor:
    """Field of the skin that the front hair leaves free."""
    wide = face.half_width * (0.925 if hair.style in ("short", "side part", "bun") else 0.86)
    centre = 0.34
    parted = hair.style in ("side part", "long", "bob") and not hair.fringe
    height = centre - hair.line + (0.12 if parted else 0.0)
    power = 2.6 if hair.style == "bun" else 3.2
    base = (abs(canvas.x) / wide) ** power + abs((canvas.y - centre) / height) ** power - 1
    free = canvas.distance(base)
    if hair.style not in ("long", "bob"):  # side hair thins out in front of the ear
        burn = face.half_width * (0.775 + 0.225 * ramp(canvas.y, -0.16, 0.10))
        free = smaller(free, larger(abs(canvas.x) - burn, -0.16 - canvas.y))
    free = smaller(free, torch.where(canvas.y > centre, abs(canvas.x) - wide, 9))
    if hair.fringe:
        edge = (
            hair.line - 0.020 * abs(torch.sin(canvas.x * 15 + 0.4)) + 0.10 * (canvas.x / 0.4) ** 2
        )
        return larger(free, canvas.distance(edge - canvas.y))
    if parted:
        reach = torch.where(canvas.x < hair.part, hair.part + wide, wide - hair.part)
        share = limited(abs(canvas.x - hair.part) / reach, 0, 1.2)
        steep = 1.55 if hair.style == "side part" else 2.5
        drop = 0.27 if hair.style == "side part" else 0.46
        edge = hair.line - 0.05 + drop * share**steep
        return larger(free, canvas.distance(edge - canvas.y))
    if hair.style == "short":
        edge = hair.line - 0.022 * abs(torch.sin(canvas.x * 13 + 0.9)) + 0.05 * canvas.x
        return larger(free, canvas.distance(edge - canvas.y))
    return free


def _fall(canvas: Canvas, face: Face, hair: Hair) -> Tensor:
    """Field of the whole mass of long hair or a bob, front and back together."""
    crown = _crown(canvas, face, hair)
    middle, half = (hair.length - 0.10) / 2, (hair.length + 0.10) / 2
    flare = 0.055 if hair.style == "long" else 0.045
    wave = 0.012 * torch.sin(canvas.y * 9.0 + 1.2) if hair.style == "long" else 0.0
    width = face.half_width + 0.62 * hair.volume + flare
    sheet = canvas.box((0.0, middle), (width, half), 0.22)
    return merged(crown, (sheet + wave), 0.10)


def _locks(canvas: Canvas, face: Face, hair: Hair) -> Tensor:
    """Field of the strands that hang in front, beside the face."""
    fall = _fall(canvas, face, hair)
    inner = face.half_width * (0.87 + 0.13 * ramp(canvas.y, 0.02, 0.40))
    inner = inner - 0.05 * ramp(canvas.y, 0.45, 0.95)
    beside = canvas.distance(inner - abs(canvas.x))
    return larger(larger(fall, beside), -0.35 - canvas.y)


def _fill_hair(
    canvas: Canvas, mass: Tensor, hair: Hair, around: tuple[float, float], shine: float
) -> None:
    """Paint hair that flows away from a point, with strands and one band of shine."""
    dx, dy = canvas.x - around[0], canvas.y - around[1]
    angle = torch.atan2(dx, larger(dy, 0.02) + 0.25)
    low = ramp(canvas.y, 0.0, 0.45)
    across = angle * (1 - low) + low * (dx * 1.35 + 0.02 * torch.sin(canvas.y * 7))
    flow = strands(across, 30.0)
    light = 0.02 - 0.34 * canvas.x - 0.10 * canvas.y + 0.13 * flow
    base = canvas.tone(hair.colour)
    bright = canvas.tone(lit(hair.colour, 0.34))
    dark = canvas.tone(lit(hair.colour, -0.42))
    rise, sink = limited(light, 0, 1)[..., None], limited(-light, 0, 1)[..., None]
    canvas.fill(mass, base + (bright - base) * rise * 1.5 + (dark - base) * sink * 1.5)
    band = canvas.y - shine - 0.55 * (canvas.x + 0.06) ** 2 - 0.02 * flow
    glow = torch.exp(-((band / 0.052) ** 2)) * ramp(0.36 - abs(canvas.x + 0.08), 0.0, 0.25)
    canvas.fill(mass, lit(hair.colour, 0.62), 0.40 * glow * (0.75 + 0.35 * flow))
    canvas.fill(abs(mass + 0.012) - 0.012, lit(hair.colour, -0.5), 0.28, soft=0.03, within=mass)


def _draw_scalp(canvas: Canvas, face: Face) -> None:
    shine = canvas.ellipse((-0.13, -0.40), (0.105, 0.050))
    canvas.fill(shine, lit(face.skin, 0.65), 0.50, soft=0.09)


def _curl_places(face: Face, hair: Hair) -> list[tuple[float, float, float]]:
    """Centres and radii of curls: an outer ring from ear to ear, an inner one, the hair line."""
    places = []
    rings = ((0.62, 15, 0.87, 0.122), (0.25, 13, 0.80, 0.118), (0.0, 11, 0.70, 0.098))
    for ring, (out, count, sweep, size) in enumerate(rings):
        for index in range(count):
            turn = (index / (count - 1) - 0.5) * 2
            angle = turn * sweep * 1.86
            wobble = math.sin(index * 2.4 + ring * 1.7)
            rx = face.half_width + hair.volume * out - 0.02 + 0.012 * wobble
            ry = face.half_height + hair.volume * out - 0.05 + 0.016 * wobble
            x, y = math.sin(angle) * rx, -0.03 - math.cos(angle) * ry
            if ring == 2:
                y = y * 0.80 + 0.012 * wobble + 0.06 * (hair.line + 0.27)
            places.append(
                (float(x), float(y), size * (1 + 0.14 * wobble) * (0.6 + 3 * hair.volume))
            )
    return places


def _draw_curls(canvas: Canvas, face: Face, hair: Hair) -> None:
    outer = canvas.ellipse(
        (0.0, -0.05), (face.half_width + 0.5 * hair.volume, face.half_height + 0.8 * hair.volume)
    )
    free = canvas.ellipse((0.0, 0.30), (face.half_width * 0.90, 0.30 - hair.line))
    mass = larger(larger(outer, -free), canvas.y - 0.02)
    places = _curl_places(face, hair)
    nearest = torch.full_like(canvas.x, 9.0)
    swirl = torch.zeros_like(canvas.x)
    for x, y, radius in places:
        field = torch.hypot(canvas.x - x, canvas.y - y) - radius
        angle = torch.atan2(canvas.y - y, canvas.x - x)
        lean = -(canvas.x - x) * 0.7 - (canvas.y - y)
        ripple = 0.5 * torch.sin(angle + 26 * (field + radius))
        tone = 0.75 * lean / radius + 0.35 * ripple - 0.9 * (1 + field / radius) + 0.55
        swirl = torch.where(field < nearest, tone, swirl)
        nearest = smaller(nearest, field)
    mass = merged(mass, nearest, 0.025)
    skin_shadow = torch.roll(mass, max(1, int(0.032 / canvas.pixel)), -2)
    head = canvas.ellipse((0.0, 0.0), (face.half_width, face.half_height))
    canvas.fill(skin_shadow, shadow_of(face.skin, 0.62), 0.45, soft=0.05, within=head)
    _fill_curls(canvas, mass, hair.colour, swirl)


def _fill_curls(canvas: Canvas, mass: Tensor, colour: Colour, swirl: Tensor) -> None:
    light = 0.75 * swirl - 0.45 * canvas.x - 0.25 * (canvas.y + 0.4)
    canvas.fill(mass, colour)
    canvas.fill(mass, lit(colour, 0.30), 0.75 * limited(light, 0, 1))
    canvas.fill(mass, lit(colour, -0.45), 0.80 * limited(-light, 0, 1))
