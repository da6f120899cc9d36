"""A catalogue of files that must be refused, made by code.

Each entry writes one file (or folder, pipe, link, nothing) into a folder and names the input it is
given as. Other tests use the catalogue too: whatever takes an upload must survive all of it.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tests.unit.picture_material import picture_bytes, png_bytes, png_chunk
from tests.unit.sound_material import RATE_HZ, silent_video_bytes, sound_bytes, wav_bytes


@dataclass(frozen=True)
class MalformedInput:
    """One thing that is no usable portrait or speech.

    Attributes:
        name: what it is, for test names.
        field: the input it is given as.
        file_name: the name it gets.
        write: makes it at a path.
    """

    name: str
    field: Literal["portrait", "speech"]
    file_name: str
    write: Callable[[Path], None]

    def make(self, folder: Path) -> Path:
        """Write it into a folder and return its path."""
        path = folder / self.file_name
        self.write(path)
        return path


def _noise(count: int, seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8).tobytes()


def _writes(data: Callable[[], bytes] | bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data() if callable(data) else data)

    return write


def _writes_nothing(path: Path) -> None:
    assert not path.exists()


def _patched(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def _jpeg_of_size(width: int, height: int) -> bytes:
    data = picture_bytes("JPEG")
    start = data.index(b"\xff\xc0") + 5
    return _patched(data, start, struct.pack(">HH", height, width))


def _gif_of_size(width: int, height: int) -> bytes:
    return _patched(picture_bytes("GIF"), 6, struct.pack("<HH", width, height))


def _bmp_of_size(width: int, height: int) -> bytes:
    return _patched(picture_bytes("BMP"), 18, struct.pack("<ii", width, height))


def _tiff_of_size(width: int, height: int) -> bytes:
    data = picture_bytes("TIFF")
    for tag, value in ((256, width), (257, height)):
        entry = data.index(struct.pack("<H", tag), 8)
        data = _patched(data, entry, struct.pack("<HHII", tag, 4, 1, value))
    return data


def _webp_of_largest_size() -> bytes:
    data = picture_bytes("WEBP", lossless=True)
    start = data.index(b"VP8L") + 9  # 14 bits each for width - 1 and height - 1
    flags = int.from_bytes(data[start : start + 4], "little") >> 28 << 28
    return _patched(data, start, struct.pack("<I", flags | (1 << 28) - 1))


def _many_scans() -> bytes:
    data = picture_bytes("JPEG", progressive=True)
    first = data.index(b"\xff\xda")
    scan_end = data.index(b"\xff\xda", first + 2)
    return data[:first] + data[first:scan_end] * 400 + data[scan_end:]


def _float_wav(*bad: float) -> bytes:
    samples = np.full(RATE_HZ, 0.1, np.float32)
    samples[8000 : 8000 + len(bad)] = bad
    return wav_bytes(samples.tobytes(), tag=3, bits=32)


def _wav_with_long_text() -> bytes:
    data = wav_bytes(bytes(RATE_HZ * 2))
    text = b"INFOISFT" + struct.pack("<I", 800_000_000)
    return data[:36] + b"LIST" + struct.pack("<I", 0xFF000000) + text + data[36:]


def _float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((80, 80), np.nan, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def _damaged(data: bytes) -> bytes:
    """Keep the head and overwrite the rest."""
    return data[:100] + _noise(len(data) - 100, 9)


PICTURES = {
    "png": ("PNG", {}),
    "jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
}


SOUNDS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"),
}


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(400)


FOREIGN = {
    "text.txt": b"This is not a picture and no sound either.\n" * 20,
    "page.html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "drawing.svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "paper.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(500),
    "layers.psd": b"8BPS\x00\x01" + bytes(500),
    "setup.exe": b"MZ\x90\x00\x03" + bytes(500),
    "program": b"\x7fELF\x02\x01\x01" + bytes(500),
    "photo.heic": HEIC,
    "photo.avif": HEIC.replace(b"heic", b"avif"),
    "letter.docx": b"PK\x03\x04\x14\x00" + bytes(500),
    "noise.bin": b"\x01\x02" + _noise(4000, 1),
    "zeros.bin": bytes(4000),
    "playlist.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
    "list.ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
}


def _everything_else() -> Iterator[MalformedInput]:
    for field in ("portrait", "speech"):
        yield MalformedInput(f"{field}-empty", field, "empty.png", _writes(b""))
        yield MalformedInput(f"{field}-one-byte", field, "one.wav", _writes(b"R"))
        yield MalformedInput(f"{field}-missing", field, "missing.png", _writes_nothing)
        yield MalformedInput(f"{field}-folder", field, "folder.png", Path.mkdir)
        yield MalformedInput(f"{field}-pipe", field, "pipe.wav", os.mkfifo)
        yield MalformedInput(
            f"{field}-link-to-nothing", field, "link.png", lambda path: path.symlink_to("nowhere")
        )
        yield MalformedInput(
            f"{field}-link-to-device", field, "zero.png", lambda path: path.symlink_to("/dev/zero")
        )
        yield MalformedInput(
            f"{field}-link-to-itself", field, "loop.png", lambda path: path.symlink_to(path)
        )
        yield MalformedInput(
            f"{field}-under-a-file",
            field,
            "file/portrait.png",
            lambda path: path.parent.write_bytes(b"x"),
        )
        for file_name, data in FOREIGN.items():
            yield MalformedInput(f"{field}-{file_name}", field, file_name, _writes(data))


def _bad_pictures() -> Iterator[MalformedInput]:
    def entry(name: str, file_name: str, data: Callable[[], bytes]) -> MalformedInput:
        return MalformedInput(name, "portrait", file_name, _writes(data))

    for suffix, (kind, options) in PICTURES.items():
        for percent in (1, 10, 50, 90):

            def cut(kind: str = kind, options: dict = options, percent: int = percent) -> bytes:
                data = picture_bytes(kind, **options)
                return data[: max(2, len(data) * percent // 100)]

            yield entry(f"{suffix}-cut-at-{percent}%", f"cut{percent}.{suffix}", cut)
    for suffix, magic in {
        "png": b"\x89PNG\r\n\x1a\n",
        "jpg": b"\xff\xd8\xff\xe0",
        "gif": b"GIF89a",
        "bmp": b"BM",
        "tiff": b"II*\x00\x08\x00\x00\x00",
        "webp": b"RIFF\x00\x10\x00\x00WEBPVP8 ",
    }.items():
        yield entry(
            f"{suffix}-noise", f"noise.{suffix}", lambda magic=magic: magic + _noise(3000, 2)
        )
    yield entry("png-damaged", "damaged.png", lambda: _damaged(picture_bytes("PNG")))
    bombs: dict[str, Callable[[], bytes]] = {
        "bomb.png": lambda: png_bytes(50_000, 50_000, bytes(1000)),
        "bomb-largest.png": lambda: png_bytes(2**31 - 1, 2**31 - 1, b""),
        "bomb-real-9000x9000.png": lambda: png_bytes(
            9000, 9000, bytes(9000 * 1126), bit_depth=1, colour=0
        ),
        "bomb-text.png": lambda: png_bytes(
            64, 64, b"", extra=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000), 1))
        ),
        "bomb.jpg": lambda: _jpeg_of_size(65_500, 65_500),
        "bomb.gif": lambda: _gif_of_size(65_535, 65_535),
        "bomb.bmp": lambda: _bmp_of_size(100_000, 100_000),
        "bomb.tiff": lambda: _tiff_of_size(200_000, 200_000),
        "bomb.webp": _webp_of_largest_size,
        "scans.jpg": _many_scans,
        "huge-file.png": lambda: picture_bytes("PNG") + bytes(30_000_000),
    }
    for file_name, data in bombs.items():
        yield entry(file_name, file_name, data)
    small = functools.partial(png_bytes, body=b"", bit_depth=8, colour=2)
    yield entry("1x1.png", "dot.png", lambda: small(1, 1))
    yield entry("0x0.png", "nothing.png", lambda: small(0, 0))
    yield entry("63x200.png", "narrow.png", lambda: small(63, 200))
    yield entry("4000x64.png", "banner.png", lambda: small(4000, 64))
    yield entry("no-pixels.png", "no-pixels.png", lambda: small(100, 100))
    yield entry(
        "bad-checksum.png", "crc.png", lambda: _patched(picture_bytes("PNG"), 29, b"\0\0\0\0")
    )
    yield entry("negative.bmp", "negative.bmp", lambda: _bmp_of_size(-100, 100))
    yield entry("nan.tiff", "nan.tiff", _float_tiff)
    for suffix, (container, codec) in SOUNDS.items():
        yield entry(
            f"{suffix}-as-portrait",
            f"speech.{suffix}",
            functools.partial(sound_bytes, container, codec),
        )
    yield entry("video-as-portrait", "clip.mp4", silent_video_bytes)


def _bad_sounds() -> Iterator[MalformedInput]:
    def entry(name: str, file_name: str, data: Callable[[], bytes]) -> MalformedInput:
        return MalformedInput(name, "speech", file_name, _writes(data))

    # Cut so early that less than half, or nothing, is left to hear.
    for suffix, (container, codec) in SOUNDS.items():
        for percent in (0.1, 1, 3):

            def cut(c: str = container, k: str = codec, percent: float = percent) -> bytes:
                data = sound_bytes(c, k)
                return data[: max(2, int(len(data) * percent / 100))]

            yield entry(f"{suffix}-cut-at-{percent}%", f"cut{percent}.{suffix}", cut)
    for suffix in ("wav", "flac", "m4a"):
        container, codec = SOUNDS[suffix]
        yield entry(
            f"{suffix}-cut-at-40%",
            f"cut40.{suffix}",
            lambda c=container, k=codec: sound_bytes(c, k)[: len(sound_bytes(c, k)) * 2 // 5],
        )
    for suffix, magic in {
        "wav": b"RIFF\x00\x10\x00\x00WAVEfmt ",
        "mp3": b"ID3\x03\x00\x00\x00\x00\x00\x00",
        "flac": b"fLaC",
        "ogg": b"OggS\x00\x02",
        "m4a": b"\x00\x00\x00\x20ftypM4A \x00\x00\x02\x00",
        "mkv": b"\x1aE\xdf\xa3",
    }.items():
        yield entry(
            f"{suffix}-noise", f"noise.{suffix}", lambda magic=magic: magic + _noise(3000, 4)
        )
    tone = bytes(RATE_HZ * 2)
    headers: dict[str, Callable[[], bytes]] = {
        "no-samples": lambda: wav_bytes(b""),
        "one-sample": lambda: wav_bytes(b"\x01\x00"),
        "short": lambda: wav_bytes(bytes(3200)),
        "no-channels": lambda: wav_bytes(tone, channels=0),
        "many-channels": lambda: wav_bytes(tone * 8, channels=200),
        "most-channels": lambda: wav_bytes(tone, channels=65_535),
        "rate-0": lambda: wav_bytes(tone, rate=0),
        "rate-1": lambda: wav_bytes(tone, rate=1),
        "rate-4-billion": lambda: wav_bytes(tone, rate=2**32 - 1),
        "0-bits": lambda: wav_bytes(tone, bits=0),
        "7000-bits": lambda: wav_bytes(tone, bits=7000),
        "unknown-codec": lambda: wav_bytes(tone, tag=0x7ABC),
        "claims-1-gigabyte": lambda: wav_bytes(tone, data_size=10**9),
        "claims-4-gigabytes-of-text": _wav_with_long_text,
        "header-only": lambda: wav_bytes(b"")[:36],
        "nan": lambda: _float_wav(float("nan")),
        "inf": lambda: _float_wav(float("inf")),
        "minus-inf": lambda: _float_wav(float("-inf")),
        "absurd-level": lambda: _float_wav(3e38),
        "double-beyond-float": lambda: wav_bytes(np.full(RATE_HZ, 1e300).tobytes(), tag=3, bits=64),
        "two-hours": lambda: wav_bytes(bytes(4000 * 7300), rate=4000, bits=8),
    }
    for name, data in headers.items():
        yield entry(f"wav-{name}", f"{name}.wav", data)
    yield entry("video-without-sound", "mute.mp4", silent_video_bytes)
    for suffix, (kind, options) in PICTURES.items():
        yield entry(
            f"{suffix}-as-speech",
            f"portrait.{suffix}",
            functools.partial(picture_bytes, kind, **options),
        )


CATALOGUE: tuple[MalformedInput, ...] = (
    *_everything_else(),
    *_bad_pictures(),
    *_bad_sounds(),
)
