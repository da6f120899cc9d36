"""Fragmented MP4, the container alone: samples in, bytes out. `live_file.py` reads it back.

A live file is one init segment (`ftyp moov`) followed by fragments (`moof mdat`), only ever
appended to. ffmpeg's own muxer holds a frame back until the next one comes, or damages AAC
timestamps when told not to; a fragment built here is complete once its frames are encoded.

Sources: ISO/IEC 14496-12 (boxes, numbers below are its clauses), 14496-15 5.3 (`avc1`, `avcC`),
14496-14 5.6 and 14496-1 7.2.6 (`mp4a`, `esds`).

    ftyp 4.3   moov 8.2.1  mvhd 8.2.2  trak 8.3.1  tkhd 8.3.2  edts/elst 8.6.5, 8.6.6
    mdia 8.4.1 mdhd 8.4.2  hdlr 8.4.3  minf 8.4.4  stbl 8.5.1  stsd 8.5.2   colr 12.1.5
    mvex 8.8.1 trex 8.8.3  moof 8.8.4  mfhd 8.8.5  traf 8.8.6  tfhd 8.8.7   trun 8.8.8  tfdt 8.8.12
"""

import struct
from dataclasses import dataclass

MOVIE_TIMESCALE = 1000
"""Ticks per second of `mvhd`, `tkhd` and `elst` durations: 32 bits hold 49 days."""

_IDENTITY_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
KEY_SAMPLE = 0x02000000  # sample_depends_on = 2: no other sample is needed
DELTA_SAMPLE = 0x01010000  # depends on others, is not a sync sample


@dataclass(frozen=True)
class Track:
    """What a player must know of one track before its first sample.

    Attributes:
        handler: "vide" or "soun".
        timescale: ticks per second of decode times and durations.
        sample_duration: ticks of every sample: all samples of a track last equally long.
        sample_entry: the whole `avc1` or `mp4a` box.
        width: picture width in pixels, 0 for sound.
        height: picture height in pixels, 0 for sound.
        priming: ticks at the start that are decoded and not presented (AAC encoder delay).
    """

    handler: str
    timescale: int
    sample_duration: int
    sample_entry: bytes
    width: int = 0
    height: int = 0
    priming: int = 0


@dataclass(frozen=True)
class SampleRun:
    """Consecutive samples of one track inside one fragment.

    Attributes:
        decode_time: decode time of the first sample, in ticks of the track.
        sizes: bytes of each sample.
        is_key: for each sample, whether decoding can start at it.
    """

    decode_time: int
    sizes: tuple[int, ...]
    is_key: tuple[bool, ...]


def box(kind: str, *payload: bytes) -> bytes:
    """Wrap the joined payload in a box of the four-letter `kind` (4.2)."""
    body = b"".join(payload)
    return struct.pack(">I4s", 8 + len(body), kind.encode("ascii")) + body


def full_box(kind: str, version: int, flags: int, *payload: bytes) -> bytes:
    """Wrap the joined payload in a box with version and flags (4.2)."""
    return box(kind, struct.pack(">I", version << 24 | flags), *payload)


def video_track(width: int, height: int, fps: int, avcc: bytes) -> Track:
    """Describe an H.264 track in BT.709 limited range.

    Args:
        width: coded and shown width in pixels, even.
        height: coded and shown height in pixels, even.
        fps: frames per second, a whole number.
        avcc: AVCDecoderConfigurationRecord, the payload of `avcC`.
    """
    entry = box(
        "avc1",
        struct.pack(">6xH16x2H2I4xH32xHh", 1, width, height, 72 << 16, 72 << 16, 1, 24, -1),
        box("avcC", avcc),
        # Primaries, transfer and matrix BT.709, limited range: for players that read no VUI.
        box("colr", struct.pack(">4s3HB", b"nclx", 1, 1, 1, 0)),
        box("pasp", struct.pack(">2I", 1, 1)),
    )
    return Track("vide", 512 * fps, 512, entry, width, height)


def audio_track(sample_rate_hz: int, asc: bytes, *, priming: int, bit_rate: int) -> Track:
    """Describe a mono AAC-LC track with 1024 samples per AAC frame.

    Args:
        sample_rate_hz: samples per second, below 65536.
        asc: AudioSpecificConfig (14496-3 1.6.2.1).
        priming: samples the encoder puts before the first real one.
        bit_rate: average bits per second.
    """
    decoder = struct.pack(">2B3x2I", 0x40, 0x15, bit_rate, bit_rate) + _descriptor(5, asc)
    stream = struct.pack(">Hx", 0) + _descriptor(4, decoder) + _descriptor(6, b"\x02")
    entry = box(
        "mp4a",
        struct.pack(">6xH8x2H4xI", 1, 1, 16, sample_rate_hz << 16),
        full_box("esds", 0, 0, _descriptor(3, stream)),
    )
    return Track("soun", sample_rate_hz, 1024, entry, priming=priming)


def _descriptor(tag: int, payload: bytes) -> bytes:
    return struct.pack(">2B", tag, len(payload)) + payload


def movie_header(duration: int, num_tracks: int) -> bytes:
    """Build `mvhd`; `duration` in ticks of MOVIE_TIMESCALE, 0 where it is not known yet."""
    return full_box(
        "mvhd",
        0,
        0,
        struct.pack(">8x2IIH10x", MOVIE_TIMESCALE, duration, 0x10000, 0x0100),
        _IDENTITY_MATRIX,
        struct.pack(">24xI", num_tracks + 1),
    )


def track_box(
    track: Track, number: int, tables: bytes, *, media_duration: int = 0, shown: int = 0
) -> bytes:
    """Build `trak`.

    Args:
        track: what the track is.
        number: track number, from 1.
        tables: the boxes that follow `stsd` in `stbl`.
        media_duration: ticks of the track over all samples, 0 while it grows.
        shown: ticks of MOVIE_TIMESCALE that are presented, 0 while it grows.
    """
    is_video = track.handler == "vide"
    header = full_box(
        "tkhd",
        0,
        3,  # enabled, in the movie
        struct.pack(">8xI4xI8x2hH2x", number, shown, 0, 0, 0 if is_video else 0x0100),
        _IDENTITY_MATRIX,
        struct.pack(">2I", track.width << 16, track.height << 16),
    )
    edits = b""
    if track.priming:
        # Duration 0 in a fragmented file means "all that comes" (8.6.6.1).
        edit = struct.pack(">IIi2h", 1, shown, track.priming, 1, 0)
        edits = box("edts", full_box("elst", 0, 0, edit))
    # Version 1: 64-bit duration, because 48 kHz ticks outgrow 32 bits after 24 hours.
    media_header = full_box(
        "mdhd", 1, 0, struct.pack(">16xIQH2x", track.timescale, media_duration, 0x55C4)
    )
    name = b"Video\0" if is_video else b"Sound\0"
    handler = full_box("hdlr", 0, 0, struct.pack(">4x4s12x", track.handler.encode("ascii")), name)
    kind_header = full_box("vmhd", 0, 1, bytes(8)) if is_video else full_box("smhd", 0, 0, bytes(4))
    here = full_box("url ", 0, 1)  # the samples are in this very file
    information = box(
        "minf",
        kind_header,
        box("dinf", full_box("dref", 0, 0, struct.pack(">I", 1), here)),
        box("stbl", full_box("stsd", 0, 0, struct.pack(">I", 1), track.sample_entry), tables),
    )
    return box("trak", header, edits, box("mdia", media_header, handler, information))


def init_segment(tracks: tuple[Track, ...]) -> bytes:
    """Build the first bytes of a live file: `ftyp` and a `moov` without samples."""
    no_samples = (
        full_box("stts", 0, 0, bytes(4))
        + full_box("stsc", 0, 0, bytes(4))
        + full_box("stsz", 0, 0, bytes(8))
        + full_box("stco", 0, 0, bytes(4))
    )
    traks = [track_box(track, i, no_samples) for i, track in enumerate(tracks, 1)]
    defaults = [
        full_box("trex", 0, 0, struct.pack(">5I", i, 1, track.sample_duration, 0, KEY_SAMPLE))
        for i, track in enumerate(tracks, 1)
    ]
    return box("ftyp", b"iso6", bytes(4), b"iso6mp41") + box(
        "moov", movie_header(0, len(tracks)), *traks, box("mvex", *defaults)
    )


def fragment(sequence_number: int, runs: dict[int, SampleRun], payload: bytes) -> bytes:
    """Build one fragment.

    Args:
        sequence_number: from 1, one more for each fragment of the file.
        runs: track number to its samples; a track without samples is left out.
        payload: the bytes of all samples, tracks in the order of `runs`.
    """
    head = _movie_fragment(sequence_number, runs, 0)
    head = _movie_fragment(sequence_number, runs, len(head) + 8)
    return head + box("mdat", payload)


def _movie_fragment(sequence_number: int, runs: dict[int, SampleRun], payload_offset: int) -> bytes:
    """Build `moof`; `payload_offset` counts from its first byte."""
    parts = [full_box("mfhd", 0, 0, struct.pack(">I", sequence_number))]
    for number, run in runs.items():
        rows = [
            value
            for size, is_key in zip(run.sizes, run.is_key, strict=True)
            for value in (size, KEY_SAMPLE if is_key else DELTA_SAMPLE)
        ]
        parts.append(
            box(
                "traf",
                full_box("tfhd", 0, 0x020000, struct.pack(">I", number)),  # offsets count from moof
                full_box("tfdt", 1, 0, struct.pack(">Q", run.decode_time)),
                full_box(  # data offset, and for each sample size and flags
                    "trun",
                    0,
                    0x000601,
                    struct.pack(f">2I{len(rows)}I", len(run.sizes), payload_offset, *rows),
                ),
            )
        )
        payload_offset += sum(run.sizes)
    return box("moof", *parts)


def codecs_string(tracks: tuple[Track, ...]) -> str:
    """Return the `codecs` parameter of the MIME type (RFC 6381), as "avc1.64001e, mp4a.40.2"."""
    names = []
    for track in tracks:
        if track.handler == "vide":
            at = track.sample_entry.index(b"avcC") + 5  # profile, constraints, level
            names.append(f"avc1.{track.sample_entry[at : at + 3].hex()}")
        else:
            names.append("mp4a.40.2")
    return ", ".join(names)
