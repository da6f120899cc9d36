"""The first look at an uploaded file, the same for all kinds.

An upload is opened here, so that a missing file, a folder, a pipe or a file of the wrong kind ends
in one clear line and never in a hang.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO, Literal

from liveavatar.errors import MediaError
from liveavatar.media.notes import Field

Family = Literal["picture", "sound", "video", "other"]

# Bytes of a file's head that `sniff` wants to see.
HEAD_BYTES = 512

_MAX_SHOWN_NAME = 60

# Second bytes of frames of MPEG 1, 2 and 2.5 layer 3, and of ADTS.
_MP3_FRAMES = (0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2)
_AAC_FRAMES = (0xF1, 0xF0, 0xF9, 0xF8)

_SIGNATURES: tuple[tuple[int, bytes, Family, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "picture", "a PNG picture"),
    (0, b"\xff\xd8\xff", "picture", "a JPEG picture"),
    (0, b"GIF8", "picture", "a GIF picture"),
    (8, b"WEBP", "picture", "a WebP picture"),
    (0, b"II*\x00", "picture", "a TIFF picture"),
    (0, b"MM\x00*", "picture", "a TIFF picture"),
    (0, b"BM", "picture", "a BMP picture"),
    (0, b"8BPS", "other", "a Photoshop document"),
    (0, b"%PDF", "other", "a PDF document"),
    (0, b"%!PS", "other", "a PostScript document"),
    (8, b"WAVE", "sound", "a WAV sound"),
    (8, b"AIFF", "sound", "an AIFF sound"),
    (8, b"AIFC", "sound", "an AIFF sound"),
    (8, b"AVI ", "video", "an AVI video"),
    (0, b"fLaC", "sound", "a FLAC sound"),
    (0, b"OggS", "sound", "an Ogg sound"),
    (0, b"ID3", "sound", "an MP3 sound"),
    *((0, bytes((0xFF, second)), "sound", "an MP3 sound") for second in _MP3_FRAMES),
    *((0, bytes((0xFF, second)), "sound", "an AAC sound") for second in _AAC_FRAMES),
    (0, b"#!AMR", "sound", "an AMR sound"),
    (0, b".snd", "sound", "an AU sound"),
    (0, b"caff", "sound", "a CAF sound"),
    (0, b"wvpk", "sound", "a WV sound"),
    (0, b"\x0b\x77", "sound", "an AC3 sound"),
    (0, b"riff\x2e\x91\xcf\x11", "sound", "a W64 sound"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video", "an ASF video"),
    (0, b"\x1aE\xdf\xa3", "video", "a Matroska or WebM video"),
    (4, b"ftypheic", "other", "a HEIC picture"),
    (4, b"ftypheix", "other", "a HEIC picture"),
    (4, b"ftypmif1", "other", "a HEIC picture"),
    (4, b"ftypavif", "other", "an AVIF picture"),
    (4, b"ftypM4A", "sound", "an M4A sound"),
    (4, b"ftyp", "video", "an MP4 video"),
    (0, b"MZ", "other", "a Windows program"),
    (0, b"\x7fELF", "other", "a Linux program"),
    (0, b"PK\x03\x04", "other", "a ZIP archive or office document"),
    (0, b"\x1f\x8b", "other", "a gzip archive"),
    (0, b"Rar!", "other", "a RAR archive"),
    (0, b"7z\xbc\xaf", "other", "a 7z archive"),
)


@dataclass(frozen=True)
class FileKind:
    """What the first bytes of a file say it is.

    Attributes:
        family: "picture" and "sound" hold only kinds that this project reads.
        label: the kind with its article, such as "a PNG picture".
    """

    family: Family
    label: str

    @property
    def suffix(self) -> str:
        """Usual ending of such files, without its dot; "bin" where there is none."""
        word = re.search(r"[A-Za-z0-9]+(?= (picture|sound|video)| or )", self.label)
        return word[0].lower() if word else "bin"


def sniff(head: bytes) -> FileKind | None:
    """Name the kind of a file from its first `HEAD_BYTES` bytes; None where they say nothing."""
    for offset, magic, family, label in _SIGNATURES:
        if head[offset : offset + len(magic)] == magic:
            return FileKind(family, label)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<") and b"<svg" in start:
        return FileKind("other", "an SVG drawing")
    if start.startswith((b"<!doctype html", b"<html")):
        return FileKind("other", "a web page")
    if head and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        try:
            head[: -4 if len(head) >= HEAD_BYTES else None].decode("utf-8")
        except UnicodeDecodeError:
            return None
        return FileKind("other", "a text file")
    return None


def shown_name(path: str | os.PathLike[str]) -> str:
    """File name for a message: last part only, printable, at most 60 characters."""
    text = os.fspath(path)
    name = os.path.basename(text.rstrip("/")) or text
    name = "".join(char if char.isprintable() else "?" for char in name)
    if len(name) > _MAX_SHOWN_NAME:
        name = f"{name[: _MAX_SHOWN_NAME - 16]}...{name[-13:]}"
    return name


def open_upload(path: str | os.PathLike[str], field: Field, max_bytes: int) -> BinaryIO:
    """Open a user's file for reading; only a regular file of 1 to `max_bytes` bytes is opened.

    Args:
        path: where the file lies.
        field: which input it is, for messages.
        max_bytes: largest size accepted, bytes.

    Returns:
        The file, buffered, at its start. The caller closes it.

    Raises:
        MediaError: missing, a folder, a pipe or device, unreadable, empty or too large.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise MediaError(f"{field}: expected the path of a file, got {type(path).__name__}")
    if not os.fspath(path):
        raise MediaError(f"{field}: no file was given; choose one")
    shown = f"{field} '{shown_name(path)}'"
    try:
        # The kind is checked before opening, as opening a device can act on it, and again after,
        # as the name may point elsewhere by then. O_NONBLOCK keeps a pipe from blocking the open.
        _require_regular(os.stat(path), shown, max_bytes)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        reason = "is a link to nothing" if os.path.islink(path) else "does not exist"
        raise MediaError(f"{shown} {reason}; upload the file again or correct the path") from None
    except PermissionError:
        raise MediaError(f"{shown} may not be read; check the file's permissions") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "its path is not valid"
        raise MediaError(f"{shown} cannot be opened: {str(reason).lower()}") from None
    try:
        _require_regular(os.fstat(file.fileno()), shown, max_bytes)
    except MediaError:
        file.close()
        raise
    return file


def _require_regular(status: os.stat_result, shown: str, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{shown} is a folder; give a file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{shown} is a pipe or a device; give an ordinary file")
    if status.st_size == 0:
        raise MediaError(f"{shown} is empty (0 bytes); upload the file again")
    if status.st_size > max_bytes:
        raise MediaError(
            f"{shown} has {status.st_size / 1e6:.2f} MB; at most {max_bytes / 1e6:g} MB are "
            "accepted, so shorten or compress it"
        )


def riff_missing_factor(file: BinaryIO) -> float:
    """Bytes a WAV header promises over bytes there are, at least 1; 1 for other kinds.

    FFmpeg takes the length of a WAV file from what is there, so a cut one looks whole to it.
    """
    actual = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(12)
    promised = int.from_bytes(head[4:8], "little") + 8
    # Programs that write to a pipe leave the largest size in the header, near 2 or 4 GiB.
    if head[:4] != b"RIFF" or head[8:] != b"WAVE" or promised > 2**31 - 2**20:
        return 1.0
    return max(1.0, promised / actual)


def riff_lists_fit(file: BinaryIO) -> bool:
    """Tell whether the text chunks of a RIFF file stay inside it; true for other kinds.

    FFmpeg reserves what such a chunk claims, up to 2 GiB, before it reads.
    """
    actual = os.fstat(file.fileno()).st_size
    file.seek(0)
    if file.read(12)[:4] != b"RIFF":
        return True
    for _ in range(1000):
        chunk = file.read(8)
        if len(chunk) < 8:
            return True
        name, size = struct.unpack("<4sI", chunk)
        if name == b"LIST" and file.tell() + size > actual:
            return False
        file.seek(size + size % 2, os.SEEK_CUR)
    return False
