"""Live file to progressive MP4: the same samples, one index in front, nothing encoded again."""

import os
import struct
import sys
from array import array
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import av

from liveavatar.errors import MediaError
from liveavatar.media.fmp4 import MOVIE_TIMESCALE, Track, box, full_box, movie_header, track_box
from liveavatar.media.live_file import iter_fragments, read_tracks

_COPY_BYTES = 1 << 20


@dataclass
class _Index:
    """Where the samples of one track lie: 4 bytes a sample, 40 bytes a fragment."""

    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    keys: "array[int]" = field(default_factory=lambda: array("I"))  # sample numbers from 1
    chunk_counts: "array[int]" = field(default_factory=lambda: array("I"))
    chunk_offsets: "array[int]" = field(
        default_factory=lambda: array("Q")
    )  # in the joined payloads


def remux_to_progressive(live_path: Path, final_path: Path) -> int:
    """Write the whole fragments of a live file as an MP4 whose index stands in front (faststart).

    Sample bytes, colour tags and the edit that skips the AAC priming are taken over; the sound is
    cut to end with the picture. A half-written fragment at the end is left out. The result appears
    under its name at once: written beside it, flushed to the disk, renamed.

    Args:
        live_path: a file of `LiveVideoWriter`, finished or not; not changed.
        final_path: the file to make or replace.

    Returns:
        Number of video frames in the final file.

    Raises:
        MediaError: there is no whole fragment with video frames, or reading or writing failed.
    """
    temporary = final_path.with_name(f".{final_path.name}.{os.getpid()}.part")
    try:
        with live_path.open("rb") as live:
            tracks, indices, payloads = _read_index(live, live_path.name)
            try:
                with temporary.open("xb") as final:
                    _write_progressive(live, final, tracks, indices, payloads)
                    final.flush()
                    os.fsync(final.fileno())
                temporary.replace(final_path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        _flush_directory(final_path.parent)
    except OSError as error:
        raise MediaError(
            f"cannot remux {live_path.name} to {final_path.name}: {error.strerror}"
        ) from error
    except struct.error as error:
        raise MediaError(f"live video {live_path.name} has impossible durations") from error
    return len(indices[0].sizes)


def count_frames(path: Path) -> int:
    """Frames of a finished video as its index tells; 0 where there is no such file."""
    try:
        with av.open(str(path)) as container:
            return int(container.streams.video[0].frames) if container.streams.video else 0
    except (av.FFmpegError, OSError, ValueError):
        return 0


def _read_index(
    live: BinaryIO, name: str
) -> tuple[tuple[Track, ...], list[_Index], list[tuple[int, int]]]:
    """Return tracks, their indices, and (start, end) in the file of each fragment's payload."""
    tracks, end = read_tracks(live)
    indices = [_Index() for _ in tracks]
    payloads = []
    position = 0
    for fragment in iter_fragments(live, end):
        payloads.append((fragment.payload_offset, fragment.end))
        offset = position
        for number, run in fragment.runs.items():
            index = indices[number - 1]
            first = len(index.sizes) + 1
            index.keys.extend(first + i for i, is_key in enumerate(run.is_key) if is_key)
            index.sizes.extend(run.sizes)
            index.chunk_counts.append(len(run.sizes))
            index.chunk_offsets.append(offset)
            offset += sum(run.sizes)
        position += fragment.end - fragment.payload_offset
    if not indices[0].sizes:
        raise MediaError(
            f"live video {name} expected at least one whole fragment, found none: "
            "no picture was finished, generate it again"
        )
    return tracks, indices, payloads


def _write_progressive(
    live: BinaryIO,
    final: BinaryIO,
    tracks: tuple[Track, ...],
    indices: list[_Index],
    payloads: list[tuple[int, int]],
) -> None:
    """Write `ftyp moov mdat`."""
    kind = box("ftyp", b"isom", struct.pack(">I", 0x200), b"isomiso2avc1mp41")
    payload_bytes = sum(end - start for start, end in payloads)
    head = len(kind) + len(_movie(tracks, indices, 0)) + 16  # offsets change no length
    movie = _movie(tracks, indices, head)
    final.write(kind + movie + struct.pack(">I4sQ", 1, b"mdat", 16 + payload_bytes))
    for start, end in payloads:
        live.seek(start)
        while start < end:
            data = live.read(min(_COPY_BYTES, end - start))
            if not data:
                raise MediaError("live video became shorter while it was read; try again")
            final.write(data)
            start += len(data)


def _movie(tracks: tuple[Track, ...], indices: list[_Index], payload_offset: int) -> bytes:
    """Build `moov` with all sample tables."""
    shown = _ticks(len(indices[0].sizes) * tracks[0].sample_duration, tracks[0].timescale)
    traks = []
    for number, (track, index) in enumerate(zip(tracks, indices, strict=True), 1):
        if not index.sizes:
            continue
        duration = len(index.sizes) * track.sample_duration
        own = min(shown, _ticks(duration - track.priming, track.timescale))
        tables = _sample_tables(track, index, payload_offset)
        traks.append(track_box(track, number, tables, media_duration=duration, shown=own))
    return box("moov", movie_header(shown, len(tracks)), *traks)


def _ticks(duration: int, timescale: int) -> int:
    return round(duration * MOVIE_TIMESCALE / timescale)


def _sample_tables(track: Track, index: _Index, payload_offset: int) -> bytes:
    """Build `stts` 8.6.1.2, `stss` 8.6.2, `stsc` 8.7.4, `stsz` 8.7.3.2 and `co64` 8.7.5."""
    times = struct.pack(">3I", 1, len(index.sizes), track.sample_duration)
    sync = b""
    if len(index.keys) < len(index.sizes):
        sync = full_box("stss", 0, 0, struct.pack(">I", len(index.keys)), _big_endian(index.keys))
    chunks = array("I")
    number = 1
    for count, equal in groupby(index.chunk_counts):
        chunks.extend((number, count, 1))
        number += sum(1 for _ in equal)
    offsets = array("Q", (payload_offset + offset for offset in index.chunk_offsets))
    return b"".join(
        (
            full_box("stts", 0, 0, times),
            sync,
            full_box("stsc", 0, 0, struct.pack(">I", len(chunks) // 3), _big_endian(chunks)),
            full_box(
                "stsz", 0, 0, struct.pack(">2I", 0, len(index.sizes)), _big_endian(index.sizes)
            ),
            full_box("co64", 0, 0, struct.pack(">I", len(offsets)), _big_endian(offsets)),
        )
    )


def _big_endian(values: "array[int]") -> bytes:
    swapped = values[:]
    if sys.byteorder == "little":
        swapped.byteswap()
    return swapped.tobytes()


def _flush_directory(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
