"""Portraits: any common picture file to RGB uint8, the output size, and the crop to it.

A file is read in three steps, each of which may refuse it: its size in bytes, its size in pixels as
the header tells it, and only then the decoding. What a user should know about a picture that can be
used comes back as notes.
"""

from __future__ import annotations

import io
import math
import os
import struct
import threading
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (  # noqa: F401  the plugins are the decoders of `_FORMATS`; pillow has 40 more
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from liveavatar.errors import MediaError
from liveavatar.media.notes import Note
from liveavatar.media.portrait_findings import portrait_notes
from liveavatar.media.upload import HEAD_BYTES, open_upload, shown_name, sniff

# Only these decoders of pillow ever see a user's bytes. MPO, a JPEG with more pictures behind it,
# is opened by the JPEG one.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")

# Of these, more frames mean an animation; in MPO and TIFF they are previews and pages.
_ANIMATED = ("GIF", "WEBP", "PNG")

# Everything pillow's readers raise on damaged files. They are not documented; these were seen.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Fill for transparent parts. Cut-out portraits carry the light fringe of a studio backdrop, which
# shows on black; pure white leaves the video no headroom and glows around hair.
BACKGROUND_RGB = (232, 232, 232)

# A progressive JPEG may repeat tiny scans over a huge canvas to burn hours; cameras write about 10.
_MAX_JPEG_SCANS = 200

# pillow reports oddities through the warnings module, whose filters belong to the whole process.
_WARNINGS_LOCK = threading.Lock()

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PortraitLimits:
    """What a portrait file may be.

    Attributes:
        max_bytes: largest file, bytes.
        max_pixels: largest width times height, as the header tells it.
        min_side: shortest side accepted, pixels.
        max_aspect: longest side over shortest side.
    """

    max_bytes: int = 30_000_000
    max_pixels: int = 50_000_000
    min_side: int = 64
    max_aspect: float = 6.0


@dataclass(frozen=True, eq=False)
class Portrait:
    """A decoded portrait.

    Attributes:
        rgb: sRGB, uint8, (height, width, 3), upright.
        animated: whether the file has more frames than this one.
        filled_share: share of the pixels that were transparent, 0 to 1.
    """

    rgb: UInt8Array
    animated: bool
    filled_share: float

    @cached_property
    def notes(self) -> tuple[Note, ...]:
        """Findings, for the user; looked for when somebody asks, which takes longer than reading.

        Their codes are "jpeg_artefacts", "no_face", "small_portrait", "transparent", "animated".
        """
        found = portrait_notes(self.rgb, animated=self.animated, filled_share=self.filled_share)
        return tuple(found)


def load_portrait(path: str | os.PathLike[str], limits: PortraitLimits | None = None) -> Portrait:
    """Read a portrait from a PNG, JPEG, WebP, TIFF, GIF or BMP file.

    EXIF orientation and colour profiles are applied, transparent parts are filled with
    `BACKGROUND_RGB`, 16-bit and float pictures are scaled to 8 bits, and of an animation the first
    frame is taken.

    Args:
        path: the file.
        limits: sizes accepted; the defaults of `PortraitLimits` when None.

    Raises:
        MediaError: the file cannot be read, is no such picture, is damaged, or is over a limit.
    """
    limits = limits or PortraitLimits()
    with open_upload(path, "portrait", limits.max_bytes) as file:
        data = file.read(limits.max_bytes + 1)
    shown = f"portrait '{shown_name(path)}'"
    _require_picture(data, shown)
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _require_size(image.size, limits, shown)
                animated = image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
                image.load()
                rgb, filled_share = _decode_rgb(image, shown)
        except Image.DecompressionBombError:
            raise MediaError(_too_many_pixels(shown, limits)) from None
        except _DECODER_ERRORS:
            raise MediaError(
                f"{shown} is cut off, damaged or of a rare variant and cannot be read; "
                "export it again as PNG"
            ) from None
    return Portrait(rgb, animated, filled_share)


def _require_picture(data: bytes, shown: str) -> None:
    kind = sniff(data[:HEAD_BYTES])
    if kind is None or kind.family != "picture":
        what = kind.label if kind else "of an unknown kind"
        raise MediaError(
            f"{shown} is {what}; the portrait must be a PNG, JPEG, WebP, TIFF, GIF or BMP picture"
        )
    if kind.label == "a JPEG picture" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise MediaError(
            f"{shown} is a JPEG of more than {_MAX_JPEG_SCANS} scans, which no camera writes; "
            "export it again as PNG"
        )


def _require_size(size: tuple[int, int], limits: PortraitLimits, shown: str) -> None:
    """Check (width, height) from the header, before anything is decoded."""
    width, height = size
    if width * height > limits.max_pixels:
        raise MediaError(_too_many_pixels(shown, limits, size))
    if min(width, height) < limits.min_side:
        raise MediaError(
            f"{shown} has {width}x{height} pixels; each side needs at least {limits.min_side}, "
            "so give a larger picture"
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise MediaError(
            f"{shown} has {width}x{height} pixels, more than {limits.max_aspect:g} times as long "
            "as wide; crop it to the person"
        )


def _too_many_pixels(
    shown: str, limits: PortraitLimits, size: tuple[int, int] | None = None
) -> str:
    found = f"{size[0]}x{size[1]} pixels" if size else "far too many pixels"
    return (
        f"{shown} has {found}; at most {limits.max_pixels / 1e6:g} million are accepted, "
        "so scale it down"
    )


def _decode_rgb(image: Image.Image, shown: str) -> tuple[UInt8Array, float]:
    """Turn a loaded picture of any mode into upright RGB, and the share of it that was filled."""
    image = _upright(image)
    alpha: Image.Image | None = None
    if image.mode.startswith("I") or image.mode == "F":
        colour, alpha = _wide_grey(image, shown)
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        colour = _transformed(image, lab, srgb)
    elif image.has_transparency_data or image.mode == "La":
        image = image.convert("LA") if image.mode == "La" else image
        with_alpha = image.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        colour = _to_srgb(with_alpha.convert("RGB"), image.info.get("icc_profile"))
    else:
        flat = image if image.mode in ("RGB", "CMYK", "L") else image.convert("RGB")
        colour = _to_srgb(flat, image.info.get("icc_profile"))
    filled_share = 0.0
    if alpha is not None:
        filled_share = float(np.mean(np.asarray(alpha) < 250))
        backdrop = Image.new("RGB", colour.size, BACKGROUND_RGB)
        backdrop.paste(colour, mask=alpha)
        colour = backdrop
    return np.array(colour, dtype=np.uint8), filled_share


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block is as good as none."""
    try:
        return ImageOps.exif_transpose(image) or image
    except _DECODER_ERRORS:
        return image


def _wide_grey(image: Image.Image, shown: str) -> tuple[Image.Image, Image.Image | None]:
    """Scale grey of 16 or 32 bits, or float, to 8 bits; the file names no range, so values do."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise MediaError(f"{shown} holds values that are not numbers; export it again as PNG")
    low, high = float(values.min()), float(values.max())
    if image.mode == "F" and low >= 0 and high <= 1:
        scale, offset = 255.0, 0.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        scale, offset = 1.0, 0.0
    elif low >= 0 and high <= 65535:
        scale, offset = 1 / 257, 0.0
    else:
        scale, offset = 255 / max(high - low, 1e-12), low
    grey = np.rint((values.astype(np.float64) - offset) * scale).clip(0, 255).astype(np.uint8)
    alpha = None
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.fromarray(grey).convert("RGB"), alpha


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Convert to sRGB through the file's own colour profile; without a usable one, plainly."""
    if icc_profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            if "srgb" not in ImageCms.getProfileDescription(source).lower():
                return _transformed(image, source, ImageCms.createProfile("sRGB"))
        except (ImageCms.PyCMSError, *_DECODER_ERRORS):
            pass  # a broken profile must not cost the user a good picture
    return image.convert("RGB")


def _transformed(image: Image.Image, source: Any, target: Any) -> Image.Image:
    moved = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    if moved is None:
        raise ValueError("the colour transform gave no picture")
    return moved


def fit_size(image_hw: tuple[int, int], area: int) -> tuple[int, int]:
    """Choose the video size for a portrait: multiples of 64, its aspect, at most `area` pixels.

    Source: size rule of Alibaba-Quark/LiveAvatar at 9c2c38d, quirks included.

    Args:
        image_hw: portrait (height, width), pixels.
        area: product of the two numbers of the size flag, pixels.

    Returns:
        (height, width) of the video, pixels.

    Raises:
        MediaError: no size of at least 64x64 has this aspect and area.
    """
    height, width = image_hw
    pixels = height * width
    if pixels <= area:
        scale_low, scale_high = 0.1, 1.0
    else:
        # The reference solves a quadratic here with 2ac in place of 4ac.
        half_b, c = 63 * (height + width), 63**2 - area
        scale_high = math.sqrt(area / pixels)
        scale_low = (-half_b + math.sqrt(half_b**2 - 2 * pixels * c)) / (2 * pixels)
    for index in range(100):
        scale = scale_high - (scale_high - scale_low) * index / 100
        fit_h = -(-int(height * scale) // 64) * 64
        fit_w = -(-int(width * scale) // 64) * 64
        if fit_h * fit_w <= area:
            return _at_least_one_patch(fit_h, fit_w, image_hw, area)
    ratio = width / height
    fit_h, fit_w = int(math.sqrt(area / ratio) // 64 * 64), int(math.sqrt(area * ratio) // 64 * 64)
    if fit_w >= width or fit_h >= height:
        fit_h, fit_w = height // 64 * 64, width // 64 * 64
    return _at_least_one_patch(fit_h, fit_w, image_hw, area)


def _at_least_one_patch(
    fit_h: int, fit_w: int, image_hw: tuple[int, int], area: int
) -> tuple[int, int]:
    if min(fit_h, fit_w) < 64:
        raise MediaError(
            f"a portrait of {image_hw[1]}x{image_hw[0]} pixels has no video size within {area} "
            "pixels; crop it closer to the person or choose a larger size"
        )
    return fit_h, fit_w


def crop_to_size(rgb: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Scale a portrait so that its short side fits, then cut or pad it from the middle.

    Where the scaled picture is smaller than the target, black rows or columns are added.

    Source: portrait preparation of Alibaba-Quark/LiveAvatar at 9c2c38d.

    Args:
        rgb: uint8, (height, width, 3).
        size_hw: target (height, width), pixels.

    Returns:
        uint8, (*size_hw, 3).
    """
    short = min(size_hw)
    height, width = rgb.shape[:2]
    if width <= height:
        scaled_hw = (int(short * height / width), short)
    else:
        scaled_hw = (short, int(short * width / height))
    scaled = np.asarray(
        Image.fromarray(rgb).resize(scaled_hw[::-1], Image.Resampling.BILINEAR), dtype=np.uint8
    )
    for axis in (0, 1):
        missing = size_hw[axis] - scaled.shape[axis]
        if missing > 0:
            padding = [(0, 0)] * 3
            padding[axis] = (missing // 2, missing - missing // 2)
            scaled = np.pad(scaled, padding)
    top = round((scaled.shape[0] - size_hw[0]) / 2)
    left = round((scaled.shape[1] - size_hw[1]) / 2)
    return np.ascontiguousarray(scaled[top : top + size_hw[0], left : left + size_hw[1]])
