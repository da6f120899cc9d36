"""Small pictures: of a video its first frame that shows something, of a portrait all of it."""

from __future__ import annotations

import io
from itertools import islice
from pathlib import Path

import av
import numpy as np
from PIL import Image

from liveavatar.errors import MediaError
from liveavatar.media.portrait import UInt8Array

_LONGEST_SIDE = 320
_FRAMES_LOOKED_AT = 30
_LEAST_DEVIATION = 8.0
_JPEG_QUALITY = 85


def write_thumbnail(video_path: Path, jpeg_path: Path) -> None:
    """Write the first frame that is no plain colour, or else the first, as a JPEG.

    Args:
        video_path: a growing or finished video with at least one frame.
        jpeg_path: file to make or replace; it appears whole.

    Raises:
        MediaError: the video has no frame yet, or a file cannot be read or written.
    """
    temporary = jpeg_path.with_name(f".{jpeg_path.name}.part")
    try:
        with av.open(str(video_path)) as container:
            image = _first_good_frame(container).to_image()
        temporary.write_bytes(_small_jpeg(image))
        temporary.replace(jpeg_path)
    except (av.FFmpegError, OSError, IndexError) as error:
        temporary.unlink(missing_ok=True)
        raise MediaError(f"no thumbnail of {video_path.name} can be made: {error}") from None


def poster_of(rgb: UInt8Array) -> bytes:
    """A JPEG of a portrait, for where its video is not there yet.

    Args:
        rgb: sRGB, uint8, (height, width, 3).
    """
    return _small_jpeg(Image.fromarray(rgb))


def _small_jpeg(image: Image.Image) -> bytes:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=_JPEG_QUALITY)
    return data.getvalue()


def _first_good_frame(container: av.container.InputContainer) -> av.VideoFrame:
    first = None
    for frame in islice(container.decode(video=0), _FRAMES_LOOKED_AT):
        first = first or frame
        if np.std(frame.to_ndarray(format="gray")) >= _LEAST_DEVIATION:
            return frame
    if first is None:
        raise IndexError("it has no frame yet")
    return first
