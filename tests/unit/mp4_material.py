"""Frames, sound and files for the tests of the growing video, and a reader of boxes.

The reader shares nothing with the product.
"""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from liveavatar.media.encoder import EncoderSettings
from liveavatar.media.live_writer import LiveVideoWriter

Array = np.ndarray[Any, Any]
QUICK = EncoderSettings(preset="ultrafast", num_threads=1)
SILENCE = np.zeros(0, np.float32)


def parse(data: bytes) -> list[tuple[str, bytes]]:
    found = []
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            body = at + 16
        assert at + size <= len(data), f"{kind!r} reaches past the end"
        found.append((kind.decode(), data[body : at + size]))
        at += size
    return found


def find(data: bytes, path: str, which: int = 0) -> bytes:
    """The payload at "moov/trak/mdia"; `which` picks among equal boxes at the first fork."""
    for kind in path.split("/"):
        equal = [payload for name, payload in parse(data) if name == kind]
        data = equal[which] if len(equal) > 1 else equal[0]
    return data


def moving(num_frames: int, width: int = 64, height: int = 48, first: int = 0) -> Array:
    """Frames whose mean brightness tells their number: 8 levels apart, modulo 24."""
    levels = (np.arange(first, first + num_frames) % 24 * 8 + 30).astype(np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()
    frames[:, : height // 2, : width // 2, 0] += 20
    return frames


def tone(num_samples: int, rate: int = 16_000, first: int = 0) -> Array:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(first, first + num_samples) / rate)).astype(
        np.float32
    )


def write(target: Path | BinaryIO, blocks: list[int], **options: Any) -> LiveVideoWriter:
    """Write blocks of so many frames, with as much sound, and close."""
    with LiveVideoWriter(target, width=64, height=48, settings=QUICK, **options) as writer:
        for num_frames in blocks:
            frames = moving(num_frames, first=writer.num_frames)
            writer.append(frames, tone(num_frames * 640, first=writer.num_samples))
    return writer


def decode_video(source: Path | io.BytesIO) -> list[av.VideoFrame]:
    opened = io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else str(source)
    with av.open(opened) as container:
        return list(container.decode(video=0))


def decode_audio(source: Path) -> Array:
    """Samples at 48 kHz, index 0 at time 0; what precedes time 0 is left out."""
    with av.open(str(source)) as container:
        stream = container.streams.audio[0]
        blocks = [(frame.pts, frame.to_ndarray()[0]) for frame in container.decode(stream)]
        assert stream.time_base == Fraction(1, 48_000)
    samples = np.zeros(max(pts + len(block) for pts, block in blocks), np.float32)
    for pts, block in blocks:
        skipped = max(0, -pts)
        samples[pts + skipped : pts + len(block)] = block[skipped:]
    return samples


def frame_numbers(frames: list[av.VideoFrame]) -> list[int]:
    """Read back what `moving` put in, from the lower right quarter."""
    lumas = [frame.to_ndarray()[24:48, 32:64].mean() for frame in frames]
    return [round(((luma - 16) * 255 / 219 - 30) / 8) for luma in lumas]
