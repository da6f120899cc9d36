"""What is whole in a live file: reads the fragmented MP4 that `fmp4.py` writes, while it grows.

A live file may end in a half-written fragment: it is being written at this moment, or the writer
was killed. A segment counts as whole when both of its boxes (`ftyp moov` or `moof mdat`) lie inside
the file.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from liveavatar.errors import MediaError
from liveavatar.media.fmp4 import KEY_SAMPLE, SampleRun, Track, codecs_string

_PARTNER = {b"ftyp": b"moov", b"moof": b"mdat"}
_DAMAGE = (KeyError, ValueError, struct.error)


@dataclass(frozen=True)
class Fragment:
    """One whole fragment of a live file.

    Attributes:
        sequence_number: its `mfhd` number, from 1.
        payload_offset: byte offset in the file of its first sample byte.
        end: byte offset in the file just after it.
        runs: track number (1 video, 2 audio) to its samples, in the order of their bytes.
    """

    sequence_number: int
    payload_offset: int
    end: int
    runs: dict[int, SampleRun]


@dataclass(frozen=True)
class LiveExtent:
    """How far a live file reaches, half-written rests left out.

    Attributes:
        num_bytes: byte length of the init segment and all whole fragments.
        num_fragments: whole fragments.
        num_frames: video frames in them.
        num_audio_packets: AAC frames in them, the one of priming included.
        codecs: `codecs` parameter of the MIME type "video/mp4".
    """

    num_bytes: int
    num_fragments: int
    num_frames: int
    num_audio_packets: int
    codecs: str


def complete_length(path: Path, start: int = 0) -> int:
    """Return how many bytes from the start of a live file are whole segments.

    A reader that follows the growing file may send up to this length and no further: what comes
    after it is still being written, or was left by a killed writer and will be cut off.

    Args:
        path: the live file.
        start: an earlier result for the same file, so that only what is new is looked at.

    Returns:
        Byte length; 0 when not even the init segment is whole.

    Raises:
        MediaError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            while (boxes := _segment_at(file, start, size)) is not None:
                start = boxes[1]
    except OSError as error:
        raise MediaError(f"cannot read live video {path.name}: {error.strerror}") from error
    return start


def measure_live_file(path: Path) -> LiveExtent:
    """Count what a live file holds; what a resumed writer finds there.

    Raises:
        MediaError: the file cannot be read, or holds no whole init segment.
    """
    try:
        with path.open("rb") as file:
            tracks, end = read_tracks(file)
            counts = {1: 0, 2: 0}
            num_fragments = 0
            for fragment in iter_fragments(file, end):
                num_fragments += 1
                end = fragment.end
                for number, run in fragment.runs.items():
                    counts[number] += len(run.sizes)
    except OSError as error:
        raise MediaError(f"cannot read live video {path.name}: {error.strerror}") from error
    return LiveExtent(end, num_fragments, counts[1], counts[2], codecs_string(tracks))


def read_tracks(file: BinaryIO) -> tuple[tuple[Track, ...], int]:
    """Read the init segment of a live file.

    Returns:
        The tracks, video first, and the byte length of the init segment.

    Raises:
        MediaError: there is no whole init segment, or not one that `fmp4.py` wrote.
    """
    boxes = _segment_at(file, 0, file.seek(0, os.SEEK_END))
    file.seek(4)
    if boxes is None or file.read(4) != b"ftyp":
        raise MediaError(
            "live video expected to begin with a whole init segment, found none: "
            "nothing in it can be played, generate it again"
        )
    movie_at, end = boxes
    try:
        tracks = _parse_movie(_bytes_at(file, movie_at + 8, end))
    except _DAMAGE as error:
        raise MediaError("live video has a damaged init segment; generate it again") from error
    return tracks, end


def iter_fragments(file: BinaryIO, start: int) -> Iterator[Fragment]:
    """Yield every whole fragment from byte `start`, where a fragment must begin.

    Stops without an error at the end of the file and at a half-written fragment.

    Raises:
        MediaError: a fragment is whole and cannot be understood.
    """
    size = file.seek(0, os.SEEK_END)
    while (boxes := _segment_at(file, start, size)) is not None:
        data_at, end = boxes
        try:
            yield _parse_fragment(_bytes_at(file, start + 8, data_at), data_at + 8, end)
        except _DAMAGE as error:
            raise MediaError(
                f"live video has a damaged fragment at byte {start}; generate it again"
            ) from error
        start = end


def _segment_at(file: BinaryIO, start: int, size: int) -> tuple[int, int] | None:
    """Return the offset of the second box and the end of the segment, None if it is not whole."""
    first = _box_at(file, start, size)
    if first is None or first[0] not in _PARTNER:
        return None
    second = _box_at(file, first[1], size)
    if second is None or second[0] != _PARTNER[first[0]]:
        return None
    return first[1], second[1]


def _box_at(file: BinaryIO, start: int, size: int) -> tuple[bytes, int] | None:
    """Return kind and end of the box at `start`, None if it does not lie inside the file."""
    file.seek(start)
    header = file.read(8)
    if len(header) < 8:
        return None
    length, kind = struct.unpack(">I4s", header)
    if length < 8 or start + length > size:
        return None
    return kind, start + length


def _bytes_at(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _children(data: bytes) -> dict[bytes, list[bytes]]:
    """Split the payload of a container box: kind to the payloads of that kind, in order."""
    found: dict[bytes, list[bytes]] = {}
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if length < 8 or at + length > len(data):
            raise ValueError("box reaches past its container")
        found.setdefault(kind, []).append(data[at + 8 : at + length])
        at += length
    return found


def _descend(data: bytes, *kinds: bytes) -> bytes:
    for kind in kinds:
        data = _children(data)[kind][0]
    return data


def _parse_movie(moov: bytes) -> tuple[Track, ...]:
    movie = _children(moov)
    defaults = _children(movie[b"mvex"][0])[b"trex"]
    durations = [struct.unpack_from(">12xI", trex)[0] for trex in defaults]
    tracks = tuple(map(_parse_track, movie[b"trak"], durations))
    if [track.handler for track in tracks] != ["vide", "soun"]:
        raise ValueError("expected a video and an audio track")
    if not all(track.timescale and track.sample_duration for track in tracks):
        raise ValueError("expected samples that last")
    codecs_string(tracks)  # fails on sample entries that are not H.264 and AAC
    return tracks


def _parse_track(trak: bytes, sample_duration: int) -> Track:
    media = _children(_descend(trak, b"mdia"))
    (timescale,) = struct.unpack_from(">20xI", media[b"mdhd"][0])
    (handler,) = struct.unpack_from(">8x4s", media[b"hdlr"][0])
    width, height = struct.unpack(">2I", _descend(trak, b"tkhd")[-8:])
    priming = 0
    if b"edts" in _children(trak):
        (priming,) = struct.unpack_from(">12xi", _descend(trak, b"edts", b"elst"))
    entry = _descend(media[b"minf"][0], b"stbl", b"stsd")[8:]
    return Track(
        handler.decode("ascii"),
        timescale,
        sample_duration,
        entry,
        width >> 16,
        height >> 16,
        priming,
    )


def _parse_fragment(moof: bytes, payload_offset: int, end: int) -> Fragment:
    boxes = _children(moof)
    (sequence_number,) = struct.unpack_from(">4xI", boxes[b"mfhd"][0])
    runs = {}
    for traf in boxes[b"traf"]:
        parts = _children(traf)
        (number,) = struct.unpack_from(">4xI", parts[b"tfhd"][0])
        (decode_time,) = struct.unpack_from(">4xQ", parts[b"tfdt"][0])
        (count,) = struct.unpack_from(">4xI", parts[b"trun"][0])
        rows = struct.unpack_from(f">{2 * count}I", parts[b"trun"][0], 12)
        is_key = tuple(flags == KEY_SAMPLE for flags in rows[1::2])
        runs[number] = SampleRun(decode_time, rows[::2], is_key)
    num_bytes = sum(sum(run.sizes) for run in runs.values())
    if not set(runs) <= {1, 2} or num_bytes != end - payload_offset:
        raise ValueError("samples do not fill the fragment")
    return Fragment(sequence_number, payload_offset, end, runs)
