"""Pictures for the tests of portraits: valid files of any kind, and PNGs with any header."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw


@functools.cache
def picture_bytes(kind: str, **options: object) -> bytes:
    """A valid 160x120 picture with some texture."""
    rng = np.random.default_rng(3)
    ramp = np.add.outer(np.arange(120), np.arange(160)) % 256
    pixels = (ramp[..., None] // 2 + rng.integers(0, 64, (120, 160, 3))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_bytes(
    width: int, height: int, body: bytes, *, bit_depth: int = 8, colour: int = 2, extra: bytes = b""
) -> bytes:
    """A PNG with any header, true or not, and the given unpacked body."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", zlib.compress(body, 9))
        + png_chunk(b"IEND", b"")
    )


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def smooth_pixels(height: int = 64, width: int = 320) -> np.ndarray:
    """A picture with a different colour in each corner, so that a turn or flip shows."""
    y, x = np.mgrid[:height, :width]
    red, green = 20 + 200 * x / width, 30 + 190 * y / height
    return np.stack([red, green, np.full_like(red, 90)], -1).astype(np.uint8)


@functools.cache
def photograph(seed: int = 0, side: int = 400) -> Image.Image:
    """Noise with the spectrum of photographs, in colour."""
    noise = np.random.default_rng(seed).normal(size=(side, side, 3))
    frequency = np.fft.fftfreq(side)
    radius = np.hypot(frequency[:, None], frequency[None])[..., None]
    shaped = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / (radius + 0.002) ** 1.2, axes=(0, 1))
    values = shaped.real
    values = (values - values.min()) / np.ptp(values) * 255
    return Image.fromarray(values.astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def drawn_face(skin: tuple[int, int, int], size: tuple[int, int] = (384, 640)) -> np.ndarray:
    """A plain cartoon portrait."""
    image = Image.new("RGB", (384, 640), (190, 210, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((64, 460, 320, 640), fill=(40, 60, 120))
    draw.ellipse((75, 120, 309, 400), fill=(60, 40, 20))
    draw.ellipse((92, 160, 292, 430), fill=skin)
    draw.pieslice((85, 130, 299, 340), 180, 360, fill=(60, 40, 20))
    for x in (150, 234):
        draw.ellipse((x - 24, 268, x + 24, 302), fill="white")
        draw.ellipse((x - 12, 272, x + 12, 298), fill=(50, 80, 60))
        draw.ellipse((x - 6, 278, x + 6, 292), fill="black")
        draw.arc((x - 32, 238, x + 32, 280), 200, 340, fill=(60, 40, 20), width=8)
    draw.line((192, 300, 184, 345, 200, 348), fill=tuple(c * 7 // 10 for c in skin), width=4)
    draw.chord((152, 362, 232, 402), 0, 180, fill=(150, 40, 40))
    return np.array(image.resize(size))
