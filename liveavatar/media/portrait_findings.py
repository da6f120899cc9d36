"""What a portrait lacks, found in its pixels: a face, fine detail, size, a background."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from liveavatar.media.notes import Note

# Grey levels by which a step at the 8x8 grid exceeds the steps beside it. Measured: photographs
# never saved as JPEG stay under 0.15, quality 95 under 0.37; quality 80 and less exceed 0.48.
_BLOCK_STEP_LEVELS = 0.45

# Below this a portrait is enlarged in every tier and looks soft.
_SOFT_SIDE = 256

# A face narrower than this share of the short side has too few pixels for its mouth to be animated.
_FACE_SHARE = 1 / 7

# One pass each: long side in pixels, inverted, local contrast, cascade, neighbours asked for.
# Chosen on photographs and drawn faces of light and dark skin; none fires on noise or landscapes.
_FACE_PASSES = (
    (320, False, False, "frontalface_alt2", 3),
    (240, False, True, "frontalface_alt2", 3),
    (240, False, True, "frontalface_default", 5),
    (720, False, False, "frontalface_alt2", 3),
    (240, False, True, "profileface", 5),
    (240, True, True, "frontalface_alt2", 3),
    (240, True, False, "frontalface_alt2", 3),
)

# A cascade takes longer to load than to run, and keeps its state inside while it runs.
_CASCADES_LOCK = threading.Lock()

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


def portrait_notes(rgb: UInt8Array, *, animated: bool, filled_share: float) -> Iterator[Note]:
    """Yield what can be said about a decoded portrait.

    Args:
        rgb: uint8, (height, width, 3).
        animated: whether the file has more frames than this one.
        filled_share: share of the pixels that were transparent, 0 to 1.
    """
    height, width = rgb.shape[:2]
    if animated:
        yield Note(
            "portrait", "animated", "The portrait is an animation; only its first frame is used."
        )
    if filled_share > 0.005:
        yield Note(
            "portrait",
            "transparent",
            "The portrait has transparent parts, which were filled with light grey; "
            "give a picture with a background to choose it yourself.",
        )
    if min(height, width) < _SOFT_SIDE:
        yield Note(
            "portrait",
            "small_portrait",
            f"The portrait has only {width}x{height} pixels and will look soft; "
            f"use one of at least {_SOFT_SIDE} pixels on each side.",
        )
    if has_jpeg_artefacts(rgb):
        yield Note(
            "portrait",
            "jpeg_artefacts",
            "The portrait shows JPEG block artefacts, which the video repeats and enlarges; "
            "use the original as PNG or TIFF.",
        )
    if has_face(rgb) is False:
        yield Note(
            "portrait",
            "no_face",
            "No face-like region big enough was found in the portrait; "
            "use a picture where one face looks at the camera and fills a good part of it.",
        )


def has_jpeg_artefacts(rgb: UInt8Array) -> bool:
    """Tell whether a picture shows the 8x8 grid of strong JPEG compression.

    The grid is looked for in the pixels, at every offset, so a PNG made from a bad JPEG or a crop
    of one is noticed too. It counts only where it stands out in both directions.

    Args:
        rgb: uint8, (height, width, 3). At most the middle 2048x2048 pixels are looked at.
    """
    height, width = rgb.shape[:2]
    top, left = max(0, (height - 2048) // 2), max(0, (width - 2048) // 2)
    middle = rgb[top : top + 2048, left : left + 2048].astype(np.float32)
    luma = middle @ np.array([0.299, 0.587, 0.114], np.float32)
    return _grid_step(luma) > _BLOCK_STEP_LEVELS and _grid_step(luma.T) > _BLOCK_STEP_LEVELS


def _grid_step(luma: FloatArray) -> float:
    """Extra step between columns at the strongest of 8 grid offsets, in levels; 0 if by chance."""
    step = np.abs(np.diff(luma, axis=1))
    across, beside = step[:, 1:-1], (step[:, :-2] + step[:, 2:]) / 2
    # Edges of the picture's own drown the grid and flat ground cannot show it.
    useful = (across < 24) & (beside < 16) & (across + beside > 0.05)
    extra = np.where(useful, (across - beside).clip(-8, 8), 0)
    count = np.array([useful[:, phase::8].sum() for phase in range(8)], dtype=np.float64)
    if count.min() < 100 or count.sum() < 0.02 * useful.size:
        return 0.0
    mean = np.array([extra[:, phase::8].sum(dtype=np.float64) for phase in range(8)]) / count
    best = int(mean.argmax())
    excess = float(mean[best] - np.median(np.delete(mean, best)))
    spread = float(np.sqrt((extra**2).sum(dtype=np.float64) / count.sum()))
    return excess if excess > 6 * spread / math.sqrt(count[best]) else 0.0


def has_face(rgb: UInt8Array) -> bool | None:
    """Tell whether a picture has a face-like region big enough to animate.

    Several weak detectors look at several sizes, also with light and dark exchanged, which is how
    drawn dark faces with white eyes resemble photographs. One hit is enough: a missed face bothers
    its owner more than a face seen in a cloud.

    Args:
        rgb: uint8, (height, width, 3).

    Returns:
        None where OpenCV, or its detectors, are not installed, so that nothing can be said.
    """
    try:
        import cv2
    except ImportError:
        return None
    for side, inverted, local_contrast, name, min_neighbours in _FACE_PASSES:
        cascade = _cascade(name)
        if cascade is None:
            return None
        scale = side / max(rgb.shape[:2])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        grey = cv2.resize(
            cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), None, fx=scale, fy=scale, interpolation=way
        )
        if inverted:
            grey = 255 - grey
        contrast = cv2.createCLAHE(2.0, (8, 8)).apply if local_contrast else cv2.equalizeHist
        smallest = max(20, int(min(grey.shape) * _FACE_SHARE))
        with _CASCADES_LOCK:
            found = cascade.detectMultiScale(
                contrast(grey), 1.1, min_neighbours, minSize=(smallest, smallest)
            )
        if len(found):
            return True
    return False


@functools.cache
def _cascade(name: str) -> Any:
    """One of OpenCV 4's own detectors; None where an installation has none, as OpenCV 5."""
    import cv2

    try:
        import cv2.data

        path = os.path.join(cv2.data.haarcascades, f"haarcascade_{name}.xml")
        cascade = cv2.CascadeClassifier(path)
    except (ImportError, AttributeError):
        return None
    return None if cascade.empty() else cascade
