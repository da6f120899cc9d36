"""Head, eyes, brows, nose, mouth and what sits on them."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.cartoon.acting import Acting
from examples.cartoon.canvas import (
    Canvas,
    Colour,
    Number,
    larger,
    limited,
    lit,
    mix,
    ramp,
    smaller,
    strands,
)
from examples.cartoon.character import (
    Character,
    Extras,
    Eyes,
    Face,
    Mouth,
    MouthShape,
    jaw_drop,
    mouth_shape,
)


def head_outline(canvas: Canvas, face: Face, drop: Number = 0.0) -> Tensor:
    """Field of the head without ears: an ellipse above, a tapering jaw below.

    Args:
        canvas: where it is drawn, in the frame of the head.
        face: the measures.
        drop: how far the chin sinks, from `jaw_drop`.
    """
    chin = face.chin + drop
    reach = torch.where(canvas.y < 0, face.half_height, chin)
    share = limited(canvas.y / chin, 0, 1.3)
    taper = 1 - (1 - face.jaw) * share * share * (3 - 2 * smaller(share, 1))
    power = 2 + 0.5 * ramp(canvas.y, 0.0, 0.25)
    across, along = abs(canvas.x) / (face.half_width * taper), abs(canvas.y) / reach
    return canvas.distance(across**power + along**power - 1)


def shadow_of(skin: Colour, depth: float) -> Colour:
    """Skin in shade: darker and a little redder, as light inside skin makes it."""
    red, green, blue = skin
    return red * (1 - 0.42 * depth), green * (1 - 0.62 * depth), blue * (1 - 0.60 * depth)


def draw_head(canvas: Canvas, person: Character, acting: Acting) -> None:
    """Paint ears and the skin of the face with its light and shade."""
    face, skin = person.face, person.face.skin
    for side in (-1.0, 1.0):
        _draw_ear(canvas, face, side, person.extras.earrings)
    head = head_outline(canvas, face, jaw_drop(acting.mouth))
    light = 0.10 - 0.16 * canvas.x - 0.10 * canvas.y
    tone = canvas.tone(lit(skin, 0.30)), canvas.tone(shadow_of(skin, 0.35))
    base = canvas.tone(skin)
    up, down = limited(light, 0, 1)[..., None], limited(-light * 1.6, 0, 1)[..., None]
    canvas.fill(head, base + (tone[0] - base) * up * 1.6 + (tone[1] - base) * down)
    # The far side turns away from the light: shade grows towards the outline there.
    turn = larger(head + 0.13, 0) / 0.13 * ramp(canvas.x, -0.05, 0.4)
    canvas.fill(head, shadow_of(skin, 0.40), 0.55 * limited(turn, 0, 1) ** 1.6)
    chin = ramp(canvas.y, 0.36, 0.62) * ramp(head, -0.12, 0.0)
    canvas.fill(head, shadow_of(skin, 0.38), 0.45 * chin)
    glow = canvas.ellipse((-0.09, -0.27), (0.20, 0.12))
    canvas.fill(glow, lit(skin, 0.45), 0.22, soft=0.30, within=head)
    for side in (-1.0, 1.0):
        cheek = canvas.ellipse((side * 0.245, 0.165), (0.105, 0.075))
        warm = mix(shadow_of(skin, 0.2), (0.93, 0.36, 0.34), 0.55)
        canvas.fill(cheek, warm, face.blush * 0.55, soft=0.14, within=head)
        socket = canvas.ellipse((side * person.eyes.x, person.eyes.y - 0.01), (0.11, 0.075))
        canvas.fill(socket, shadow_of(skin, 0.38), 0.26, soft=0.11, within=head)
    if face.freckles:
        _draw_freckles(canvas, face)
    if face.age:
        _draw_lines(canvas, person)


def _draw_ear(canvas: Canvas, face: Face, side: float, earring: Colour | None) -> None:
    part = canvas.window((side * face.half_width, 0.07), (0.16, 0.30))
    centre = (side * (face.half_width + 0.012), 0.035)
    part.fill(part.ellipse(centre, (0.062, 0.105)), lit(face.skin, 0.06 if side < 0 else -0.04))
    inner = part.ellipse((centre[0] + side * 0.008, centre[1] - 0.004), (0.036, 0.070))
    part.fill(inner, shadow_of(face.skin, 0.42), 0.75, soft=0.03)
    rim = part.ellipse((centre[0] - side * 0.012, centre[1] + 0.012), (0.026, 0.046))
    part.fill(rim, shadow_of(face.skin, 0.1), 0.9, soft=0.02)
    if earring is not None:
        spot = (centre[0] + side * 0.004, centre[1] + 0.125)
        part.fill(part.ellipse(spot, (0.026, 0.026)), lit(earring, -0.15))
        part.fill(part.ellipse((spot[0] - 0.004, spot[1] - 0.004), (0.019, 0.019)), earring)
        part.fill(part.ellipse((spot[0] - 0.009, spot[1] - 0.009), (0.007, 0.007)), (1, 1, 1), 0.85)


def _draw_freckles(canvas: Canvas, face: Face) -> None:
    spots = (
        (0.17, 0.115),
        (0.21, 0.15),
        (0.255, 0.125),
        (0.285, 0.165),
        (0.225, 0.195),
        (0.15, 0.165),
    )
    for index, (x, y) in enumerate(spots):
        for side in (-1.0, 1.0):
            part = canvas.window((side * x, y), (0.03, 0.03))
            dot = part.ellipse((side * x + 0.006 * (index % 2), y), (0.008, 0.007))
            part.fill(dot, shadow_of(face.skin, 0.62), 0.42, soft=0.008)


def _draw_lines(canvas: Canvas, person: Character) -> None:
    dark, age = shadow_of(person.face.skin, 0.62), person.face.age
    eyes, face = person.eyes, person.face
    for side in (-1.0, 1.0):
        fold = canvas.stroke((side * 0.115, 0.185), (side * 0.195, 0.305), 0.004, 0.003)
        canvas.fill(fold, dark, 0.50 * age, soft=0.018)
        corner = side * (eyes.x + eyes.half_width + 0.028)
        for rise in (-0.022, 0.012, 0.044):
            end = (corner + side * 0.046, eyes.y + rise * 1.9)
            wrinkle = canvas.stroke((corner, eyes.y + rise * 0.8), end, 0.0028, 0.0012)
            canvas.fill(wrinkle, dark, 0.42 * age, soft=0.008)
        bag = canvas.ellipse((side * eyes.x, eyes.y + 0.078), (0.080, 0.026))
        under = larger(abs(bag) - 0.003, eyes.y + 0.085 - canvas.y)
        canvas.fill(under, dark, 0.36 * age, soft=0.014)
    for y, half in ((-0.285, 0.17), (-0.335, 0.14)):
        bend = y + face.half_height * 0.10 * (canvas.x / 0.3) ** 2
        crease = larger(abs(canvas.y - bend) - 0.003, abs(canvas.x) - half)
        canvas.fill(crease, dark, 0.26 * age, soft=0.014)


def draw_eyes(canvas: Canvas, person: Character, acting: Acting) -> None:
    """Paint both eyes with their brows, mirrored up to where they look."""
    for side in (-1.0, 1.0):
        eyes = person.eyes
        part = canvas.window((side * eyes.x, eyes.y - 0.05), (0.20, 0.25))
        # x grows towards the ear on both sides, so one drawing serves the left and the right.
        outward = part.placed((side * eyes.x, eyes.y), 1.0).mirrored(side)
        _draw_eye(outward, person, acting, side)
        _draw_brow(outward, eyes, acting)


def _lids(eye: Canvas, eyes: Eyes, acting: Acting) -> tuple[Tensor, Tensor]:
    """Edges of the upper and the lower lid; shut, they meet a little above the lower."""
    u = (eye.x / eyes.half_width).clamp(-1.25, 1.25)
    tilt = -0.010 * u
    upper = tilt - eyes.half_height * (1 - abs(u - 0.06) ** 2.2)
    lower = tilt + 0.80 * eyes.half_height * (1 - abs(u - 0.10) ** 2.4)
    raised = lower - (1 - acting.lids.clamp(0, 1)) * 0.25 * eyes.half_height * (1 - u * u)
    return raised + (upper - raised) * acting.lids, raised


def _draw_eye(eye: Canvas, person: Character, acting: Acting, side: float) -> None:
    eyes, skin = person.eyes, person.face.skin
    upper, lower = _lids(eye, eyes, acting)
    white = eye.distance(larger(upper - eye.y, eye.y - lower))
    shade = 1 - ramp(eye.y, -eyes.half_height, 0.1 * eyes.half_height)
    ball = eye.tone((0.985, 0.98, 0.97)) - shade[..., None] * eye.tone((0.24, 0.25, 0.22))
    eye.fill(white, ball)
    _draw_iris(eye, eyes, white, (side * acting.gaze_x, acting.gaze_y, side))
    dark = mix(shadow_of(skin, 0.9), (0.09, 0.05, 0.06), 0.75)
    inside = limited((eye.x / eyes.half_width + 1) / 2, 0, 1)
    thick = 0.0065 + (0.006 + 0.005 * eyes.lashes) * inside
    thick = thick * torch.sqrt(larger(1 - abs(eye.x / eyes.half_width) ** 8, 0))
    reach = eye.x - eyes.half_width * 1.02
    lash_line = larger(abs(eye.y - upper + 0.3 * thick) - thick, abs(eye.x) - eyes.half_width)
    eye.fill(eye.distance(lash_line), dark)
    if eyes.lashes > 0:
        # The outer lashes sink with the lid.
        sink = (1 - acting.lids) * 0.75 * eyes.half_height
        start = (eyes.half_width * 0.84, -0.0084 - 0.40 * eyes.half_height + sink)
        end = (start[0] + 0.034 * (0.4 + eyes.lashes), start[1] - 0.010 - 0.012 * eyes.lashes)
        eye.fill(eye.stroke(start, end, 0.0100, 0.0010), dark, min(1.0, 2 * eyes.lashes))
    u = (eye.x / eyes.half_width).clamp(-1.25, 1.25)
    open_lid = -0.010 * u - eyes.half_height * (1 - abs(u - 0.06) ** 2.2)
    crease = larger(abs(eye.y - open_lid * 1.28 + 0.012) - 0.0032, abs(reach + 0.075) - 0.088)
    eye.fill(crease, shadow_of(skin, 0.72), 0.55 * eyes.fold, soft=0.008)
    rim = larger(abs(eye.y - lower) - 0.0022, abs(eye.x - 0.012) - 0.80 * eyes.half_width)
    eye.fill(rim, shadow_of(skin, 0.75), 0.55, soft=0.004)


def _draw_iris(eye: Canvas, eyes: Eyes, white: Tensor, looks: tuple[Tensor, Tensor, float]) -> None:
    outward, down, side = looks
    radius = eyes.iris_ratio * eyes.half_height
    centre = (
        -0.004 + 0.28 * eyes.half_width * outward,
        -0.10 * eyes.half_height + 0.25 * eyes.half_height * down,
    )
    ring = eye.ellipse(centre, (radius, radius))
    eye.fill(ring, lit(eyes.iris, -0.62), within=white)
    eye.fill(ring + 0.14 * radius, eyes.iris, soft=0.10 * radius, within=white)
    low = eye.ellipse((centre[0], centre[1] + 0.46 * radius), (0.62 * radius, 0.40 * radius))
    eye.fill(low, lit(eyes.iris, 0.48), 0.75, soft=0.5 * radius, within=white)
    pupil = eye.ellipse(centre, (0.47 * radius, 0.47 * radius))
    eye.fill(pupil, (0.04, 0.03, 0.05), soft=0.004, within=white)
    lid = 1 - ramp(eye.y, -eyes.half_height, -0.1 * eyes.half_height)
    eye.fill(ring, (0.04, 0.02, 0.05), 0.50 * lid, within=white)
    # Highlights sit on the lit side of the picture in both eyes, so they are not mirrored.
    glint = (centre[0] - side * 0.34 * radius, centre[1] - 0.36 * radius)
    eye.fill(eye.ellipse(glint, (0.24 * radius, 0.27 * radius)), (1, 1, 1), 0.97, within=white)
    spark = (centre[0] + side * 0.36 * radius, centre[1] + 0.36 * radius)
    eye.fill(eye.ellipse(spark, (0.11 * radius, 0.11 * radius)), (1, 1, 1), 0.75, within=white)


def _draw_brow(eye: Canvas, eyes: Eyes, acting: Acting) -> None:
    u = limited((eye.x + 0.010) / 0.122, -1, 1)
    lifted = eyes.brow_height + 0.060 * acting.brow_raise
    middle = -lifted + 0.028 * u * u + (0.012 - 0.10 * eyes.brow_tilt) * u
    thick = eyes.brow_thickness * (0.92 - 0.50 * larger(u + 0.15, 0) ** 1.5)
    ends = torch.sqrt(larger(1 - u.abs() ** 5, 0))
    brow = larger(abs(eye.y - middle) - thick * ends, abs(eye.x + 0.010) - 0.122)
    field = eye.distance(brow)
    hairs = strands(eye.x * 1.0 + eye.y * 0.9, 150.0)
    base = eye.tone(eyes.brow)
    eye.fill(field, base * (1 + 0.05 * hairs[..., None]), soft=0.006)


def draw_nose(canvas: Canvas, face: Face) -> None:
    """Paint the nose: a lit bridge and tip, shaded side, wings and nostrils."""
    part = canvas.window((0.0, face.nose_y - 0.06), (0.2, 0.24))
    skin, wide, tip = face.skin, face.nose_width, face.nose_y
    bridge = part.stroke((0.045, tip - 0.19), (0.55 * wide, tip - 0.03), 0.010, 0.018)
    part.fill(bridge, shadow_of(skin, 0.42), 0.34, soft=0.05)
    shine = part.stroke((-0.008, tip - 0.19), (-0.010, tip - 0.05), 0.008, 0.012)
    part.fill(shine, lit(skin, 0.55), 0.30, soft=0.035)
    under = part.ellipse((0.006, tip + 0.040), (wide * 0.95, 0.020))
    part.fill(under, shadow_of(skin, 0.55), 0.50, soft=0.035)
    ball = part.ellipse((0, tip), (wide * 0.62, 0.040))
    part.fill(ball, lit(skin, 0.10), 0.75, soft=0.05)
    for side in (-1.0, 1.0):
        wing = part.ellipse((side * wide * 0.78, tip + 0.008), (wide * 0.36, 0.030))
        part.fill(wing, mix(skin, shadow_of(skin, 0.3), 0.6 if side > 0 else 0.3), 0.50, soft=0.04)
        edge = larger(abs(wing) - 0.0024, 0.80 * wide - side * part.x)
        part.fill(edge, shadow_of(skin, 0.60), 0.30, soft=0.018)
        hole = part.ellipse((side * wide * 0.42, tip + 0.027), (wide * 0.24, 0.0085))
        part.fill(hole, shadow_of(skin, 1.05), 0.66, soft=0.009)
    spot = part.ellipse((-0.014, tip - 0.012), (0.016, 0.012))
    part.fill(spot, lit(skin, 0.75), 0.55, soft=0.018)


def draw_mouth(canvas: Canvas, face: Face, mouth: Mouth) -> None:
    """Paint the mouth in the given position: cavity, tongue, teeth, lips."""
    shape = mouth_shape(face, mouth)
    part = canvas.window((0.0, shape.centre_y + 0.03), (0.27, 0.20))
    u = limited(part.x / shape.half_width, -1, 1)
    round_ = torch.sqrt(larger(1 - u * u, 0))
    profile = 0.5 * (1 - u * u) + 0.5 * round_
    line = shape.centre_y + shape.corner_lift * (0.35 - u * u)
    top, bottom = line - shape.above * profile, line + shape.below * profile
    beyond = abs(part.x) - shape.half_width
    gap = part.distance(larger(larger(top - part.y, part.y - bottom), beyond))
    # Lips that hardly part show a seam, not a hole.
    parted = limited((shape.above + shape.below - 0.008) / 0.008, 0.0, 1.0)
    _draw_cavity(part, shape, gap - 4 * part.pixel * (parted - 1), (top, bottom))
    _draw_lips(part, face, shape, (top, bottom))
    seam = abs(part.y - line) - 0.0062 * (0.45 + 0.55 * round_)
    seam = larger(seam, abs(part.x) - shape.half_width * 1.03)
    part.fill(seam, mix(face.lip_colour, (0.16, 0.03, 0.05), 0.70), 0.95 * (1 - parted))
    for side in (-1.0, 1.0):
        y = shape.centre_y - 0.65 * shape.corner_lift
        dimple = part.ellipse((side * shape.half_width * 1.05, y), (0.012, 0.016))
        part.fill(dimple, shadow_of(face.skin, 0.60), 0.42, soft=0.024)


def _draw_cavity(
    part: Canvas, shape: MouthShape, gap: Tensor, edges: tuple[Tensor, Tensor]
) -> None:
    top, bottom = edges
    part.fill(gap, (0.26, 0.06, 0.09))
    depth = shape.above + shape.below
    tongue = part.ellipse(
        (0.0, shape.centre_y + shape.below * 1.05),
        (0.66 * shape.half_width, limited(0.46 * depth, 1e-3, 1.0)),
    )
    part.fill(
        tongue, (0.80, 0.36, 0.38), limited(1.6 * shape.tongue, 0.0, 1.0), soft=0.012, within=gap
    )
    upper = larger(part.y - top - shape.teeth, abs(part.x) - 0.90 * shape.half_width)
    part.fill(upper, (0.97, 0.96, 0.94), within=gap)
    lower = larger(bottom - shape.lower_teeth - part.y, abs(part.x) - 0.7 * shape.half_width)
    shown = limited(shape.lower_teeth / 0.002, 0.0, 1.0)
    part.fill(lower, (0.93, 0.92, 0.90), shown, within=gap)
    part.fill(larger(gap, part.y - top - 0.012), (0.2, 0.05, 0.08), 0.35, soft=0.014, within=gap)


def _draw_lips(part: Canvas, face: Face, shape: MouthShape, edges: tuple[Tensor, Tensor]) -> None:
    top, bottom = edges
    u = part.x / shape.half_width
    body = larger(1 - abs(u) ** 2.2, 0)
    bow = (
        1
        - 0.30 * torch.exp(-((u / 0.13) ** 2))
        + 0.10 * torch.exp(-(((abs(u) - 0.26) / 0.16) ** 2))
    )
    high = top - face.lip * 1.15 * bow * body**0.8 - 0.001
    low = bottom + face.lip * 1.65 * body**0.75 + 0.001
    beyond = abs(part.x) - shape.half_width
    upper = part.distance(larger(larger(high - part.y, part.y - top), beyond))
    lower = part.distance(larger(larger(bottom - part.y, part.y - low), beyond))
    shade = part.ellipse((0.0, shape.centre_y + shape.below + face.lip * 2.6), (0.085, 0.014))
    part.fill(shade, shadow_of(face.skin, 0.5), 0.42, soft=0.035)
    part.fill(upper, mix(face.lip_colour, (0.32, 0.06, 0.10), 0.22), soft=0.003)
    part.fill(lower, face.lip_colour, soft=0.003)
    shine = part.ellipse(
        (-0.02, shape.centre_y + shape.below + 0.35 * shape.corner_lift + face.lip * 0.78),
        (shape.half_width * 0.34, face.lip * 0.28),
    )
    part.fill(shine, lit(face.lip_colour, 0.60), 0.50, soft=0.018, within=lower)


def draw_beard(canvas: Canvas, person: Character, acting: Acting) -> None:
    """Paint a full beard or a moustache, below the mouth in drawing order."""
    face, extras = person.face, person.extras
    if extras.beard is not None:
        _draw_full_beard(canvas, person, acting, extras.beard)
    colour = extras.moustache or extras.beard
    if colour is None:
        return
    shape = mouth_shape(face, acting.mouth)
    part = canvas.window((0.0, face.mouth_y - 0.05), (0.3, 0.14))
    u = limited(abs(part.x) / 0.185, 0, 1)
    middle = shape.centre_y - shape.above - face.lip - 0.022 + 0.062 * u**1.8
    thick = (0.037 - 0.004 * torch.exp(-((part.x / 0.016) ** 2))) * torch.sqrt(1 - u**2.4)
    field = part.distance(abs(part.y - middle) - thick)
    field = larger(field, abs(part.x) - 0.185)
    hairs = strands(part.x + 0.25 * part.y * torch.sign(part.x), 110.0)[..., None]
    base = canvas.tone(colour)
    part.fill(field, base * (1.02 + 0.07 * hairs), soft=0.010)


def _draw_full_beard(canvas: Canvas, person: Character, acting: Acting, colour: Colour) -> None:
    face = person.face
    hull = head_outline(canvas, face, jaw_drop(acting.mouth))
    hull = hull - 0.034 * ramp(canvas.y, 0.02, 0.35)
    share = abs(canvas.x) / face.half_width
    edge = 0.245 - 0.27 * limited(share - 0.30, 0, 1) ** 1.5 / 0.58
    top = canvas.distance(edge - canvas.y)
    soul = canvas.ellipse((0.0, face.mouth_y + 0.015), (0.160, 0.046 + jaw_drop(acting.mouth)))
    area = larger(larger(hull, top), -soul)
    hairs = strands(canvas.x * (1.5 - 0.8 * canvas.y) + 0.008 * torch.sin(canvas.y * 23), 95.0)
    light = 1.02 - 0.30 * canvas.x - 0.16 * ramp(canvas.y, 0.35, 0.68) + 0.06 * hairs
    tone = canvas.tone(colour) * light[..., None]
    canvas.fill(area, limited(tone, 0, 1), 0.97, soft=0.020)


def draw_glasses(canvas: Canvas, person: Character) -> None:
    """Paint frames, bridge, temples and a faint glare; nothing when there are no glasses."""
    extras: Extras = person.extras
    if extras.glasses == "none":
        return
    eyes, colour = person.eyes, extras.glasses_colour
    y = eyes.y + 0.012
    for side in (-1.0, 1.0):
        part = canvas.window((side * (eyes.x + 0.08), y), (0.27, 0.21))
        at = (side * (eyes.x + 0.004), y)
        if extras.glasses == "round":
            lens = part.ellipse(at, (0.138, 0.132))
        else:
            lens = part.box(at, (0.143, 0.108), 0.045)
        part.fill(abs(lens + 0.004) - 0.016, shadow_of(person.face.skin, 0.5), 0.28, soft=0.03)
        glare = larger(abs(part.x - at[0] + 0.5 * (part.y - y) + 0.075) - 0.022, lens)
        part.fill(glare, (1, 1, 1), 0.13, soft=0.01)
        rim = abs(lens) - 0.0105
        part.fill(rim, colour)
        part.fill(larger(rim + 0.006, part.y - y + 0.03), lit(colour, 0.5), 0.45, soft=0.004)
        hinge = (side * (eyes.x + 0.140), y - 0.03)
        ear = (side * (person.face.half_width + 0.01), y - 0.045)
        part.fill(part.stroke(hinge, ear, 0.011, 0.010), lit(colour, -0.1))
    bridge = canvas.window((0.0, y), (0.1, 0.1))
    arc = abs(bridge.ellipse((0.0, y + 0.012), (eyes.x - 0.118, 0.040))) - 0.0095
    bridge.fill(larger(arc, bridge.y - y - 0.004), colour)
