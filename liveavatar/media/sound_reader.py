"""Any common sound file, or the sound of a video, to batches of float32 samples at its own rate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from liveavatar.errors import MediaError
from liveavatar.media.upload import open_upload, shown_name

# Only these demuxers see a user's bytes: none of them opens further files or addresses.
_DEMUXERS = "wav,w64,aiff,au,caf,mp3,flac,ogg,mov,matroska,aac,ac3,amr,asf,avi,wv"

# What the decoders raise on damaged files, beside FFmpeg's own errors.
DECODER_ERRORS = (
    av.FFmpegError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
)

# Zero and full scale of FFmpeg's integer samples; 24-bit files arrive as s32.
_INTEGER_SCALES = {
    "u8": (128.0, 2.0**7),
    "s16": (0.0, 2.0**15),
    "s32": (0.0, 2.0**31),
    "s64": (0.0, 2.0**63),
}

_BATCH_SAMPLES = 32_768

# Float files may hold integers unscaled, up to 2**31; more is no sound.
_ABSURD_LEVEL = 1e10

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SpeechLimits:
    """What a speech file may be.

    Attributes:
        max_bytes: largest file, bytes.
        min_seconds: shortest speech, seconds.
        max_seconds: longest speech, seconds.
        min_rate_hz: lowest sample rate.
        max_rate_hz: highest sample rate.
        max_channels: most channels.
    """

    max_bytes: int = 1_000_000_000
    min_seconds: float = 0.2
    max_seconds: float = 3600.0
    min_rate_hz: int = 4_000
    max_rate_hz: int = 384_000
    max_channels: int = 16


@dataclass(frozen=True)
class SoundFile:
    """An open file that is to be read as speech.

    Attributes:
        file: the bytes; every reader starts again at the first. Closed with this.
        shown: the file as messages name it.
        limits: what it may be.
    """

    file: BinaryIO
    shown: str
    limits: SpeechLimits

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def unreadable(self) -> MediaError:
        """Make the error for a file that no decoder gets through."""
        return MediaError(
            f"{self.shown} is cut off, damaged or not a sound file this program reads; "
            "export it again as WAV, MP3, FLAC, OGG or M4A"
        )


def open_sound(path: str | os.PathLike[str], limits: SpeechLimits | None) -> SoundFile:
    """Open a user's sound file; the defaults of `SpeechLimits` hold when `limits` is None.

    Raises:
        MediaError: the file cannot be opened, is empty or too large.
    """
    limits = limits or SpeechLimits()
    file = open_upload(path, "speech", limits.max_bytes)
    return SoundFile(file, f"speech '{shown_name(path)}'", limits)


class SoundReader:
    """One pass over the sound of a file, in constant memory.

    Damaged packets are left out, and a damaged container ends the sound; `num_bad_packets` counts
    both. Every pass over the same file gives the same samples.

    Args:
        source: the file; one reader at a time may use it.

    Raises:
        MediaError: the file holds no sound, or sound of a codec without a decoder.
        DECODER_ERRORS: the container cannot be read; also from `batches`, where a decoder fails in
            an unforeseen way.
    """

    def __init__(self, source: SoundFile) -> None:
        self._limits = source.limits
        self._shown = source.shown
        source.file.seek(0)
        self._container: Any = av.open(
            source.file,
            mode="r",
            metadata_errors="replace",
            # Nor could one of them open anything, if it tried: no protocol has this name.
            options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"},
        )
        streams = self._container.streams.audio
        if not streams:
            self._container.close()
            raise MediaError(f"{self._shown} holds no sound; give a recording of the speech")
        self._stream: Any = streams[0]
        # PyAV hands out streams it has no decoder for, and decoding those kills the process.
        if getattr(self._stream, "codec_context", None) is None:
            self._container.close()
            raise MediaError(
                f"{self._shown} uses a codec this program cannot read; "
                "export it again as WAV or MP3"
            )
        self.num_bad_packets = 0
        self.rate_hz = 0
        self.channels = 0

    def __enter__(self) -> SoundReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the decoder; the file stays open."""
        self._container.close()

    @property
    def declared_s(self) -> float | None:
        """Length the container tells, seconds; None where it is unknown."""
        stream = self._stream
        if stream.duration is None or stream.time_base is None:
            return None
        return float(stream.duration * stream.time_base)

    def batches(self) -> Iterator[FloatArray]:
        """Yield the samples in order, float32, (channels, n), full scale 1.

        `rate_hz` and `channels` hold from the first batch on.

        Raises:
            MediaError: rate, channels or length are over a limit, change midway, or a sample is not
                a number.
        """
        pending: list[FloatArray] = []
        num_pending = num_samples = 0
        for frame in self._frames():
            if not self.channels:
                self._start(frame)
            elif (frame.sample_rate, frame.layout.nb_channels) != (self.rate_hz, self.channels):
                raise MediaError(
                    f"{self._shown} changes its sample rate or channels midway; export it again"
                )
            num_samples += frame.samples
            if num_samples > self._limits.max_seconds * self.rate_hz:
                raise MediaError(self._too_long())
            pending.append(_as_float(frame, self.channels))
            num_pending += frame.samples
            if num_pending >= _BATCH_SAMPLES:
                yield self._checked(pending)
                pending, num_pending = [], 0
        if pending:
            yield self._checked(pending)

    def _start(self, frame: Any) -> None:
        limits, shown = self._limits, self._shown
        self.rate_hz, self.channels = frame.sample_rate, frame.layout.nb_channels
        if not limits.min_rate_hz <= self.rate_hz <= limits.max_rate_hz:
            raise MediaError(
                f"{shown} has {self.rate_hz} samples a second; expected {limits.min_rate_hz} "
                f"to {limits.max_rate_hz}, so export it again at 16 or 48 kHz"
            )
        if not 1 <= self.channels <= limits.max_channels:
            raise MediaError(
                f"{shown} has {self.channels} channels; expected 1 to {limits.max_channels}, "
                "so mix it down to mono"
            )
        # A header may lie a little, so only a clear case is refused before counting.
        if (self.declared_s or 0) > 2 * limits.max_seconds:
            raise MediaError(self._too_long())

    def _too_long(self) -> str:
        return (
            f"{self._shown} lasts more than {self._limits.max_seconds:g} s, the longest accepted; "
            "cut it into parts"
        )

    def _checked(self, pending: list[FloatArray]) -> FloatArray:
        batch = np.concatenate(pending, axis=1)
        if not np.isfinite(batch).all():
            raise MediaError(
                f"{self._shown} holds samples that are not numbers (NaN or infinity); "
                "export it again as 16-bit WAV"
            )
        if float(np.abs(batch).max()) > _ABSURD_LEVEL:
            raise MediaError(
                f"{self._shown} holds absurd levels, as files of another kind do; "
                "export it again as 16-bit WAV"
            )
        return batch

    def _frames(self) -> Iterator[Any]:
        """Decode packet by packet, so that one damaged packet costs only itself."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except DECODER_ERRORS:
                self.num_bad_packets += 1
                return  # the container itself is damaged from here on
            try:
                frames = packet.decode()
            except DECODER_ERRORS:
                self.num_bad_packets += 1
                continue
            yield from (frame for frame in frames if frame.samples)


def _as_float(frame: Any, channels: int) -> FloatArray:
    """Samples of one decoded frame, float32, (channels, n), full scale 1."""
    values: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    zero, scale = _INTEGER_SCALES.get(frame.format.name.removesuffix("p"), (0.0, 1.0))
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, refused later
        samples: FloatArray = ((values.astype(np.float64) - zero) / scale).astype(np.float32)
    return samples
