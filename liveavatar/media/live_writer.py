"""Frames and sound in, a growing MP4 file out: one whole fragment for every append."""

import errno
import io
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import av
import numpy as np

from liveavatar.errors import ConfigError, MediaError, StreamClosedError
from liveavatar.media.encoder import (
    AAC_FRAME_SAMPLES,
    AUDIO_RATE_HZ,
    DEFAULT_SETTINGS,
    AudioEncoder,
    EncoderSettings,
    VideoEncoder,
)
from liveavatar.media.fmp4 import SampleRun, codecs_string, fragment, init_segment
from liveavatar.media.live_file import measure_live_file

AUDIO_LEAD_S = 0.15
"""Sound handed in this much ahead of the frames reaches the end of every fragment's picture: the
resampler and the AAC encoder hold up to 0.1 s back."""


class LiveVideoWriter:
    """Append frames and sound to a fragmented MP4 that players may follow while it grows.

    The file is one init segment, written on construction, then one whole fragment per `append`.
    No frame is held back: x264 runs without look-ahead and without B-frames. Every append begins
    with a keyframe, unless the last one lies less than a quarter of a second back: for blocks of 12
    frames that costs a fifth more bytes than one keyframe a second, and lets a late viewer begin at
    the newest block and any fragment be played alone.

    Colours are converted with the BT.709 matrix to limited range and tagged so. An odd width or
    height is shown one pixel larger, with the last column or row repeated: 4:2:0 has no odd sizes.

    Not for concurrent use, yet bound to no thread. Memory does not grow with the video's length.

    Args:
        target: path of the file to create or replace, or a binary file, which stays open.
        width: width of the frames, 16 to 4096 pixels.
        height: height of the frames, 16 to 4096 pixels.
        fps: frames per second, 1 to 120.
        sample_rate_hz: rate of the samples handed in, 8000 to 192000.
        settings: how to encode.

    Raises:
        ConfigError: a size, fps or sample rate is out of range.
        MediaError: the file cannot be written.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        *,
        width: int,
        height: int,
        fps: int = 25,
        sample_rate_hz: int = 16_000,
        settings: EncoderSettings = DEFAULT_SETTINGS,
    ) -> None:
        self._prepare(width, height, fps, sample_rate_hz, settings)
        self._sink = _Sink.create(target)
        self._write(self.init_segment)

    @classmethod
    def resume(
        cls,
        path: Path,
        *,
        width: int,
        height: int,
        fps: int = 25,
        sample_rate_hz: int = 16_000,
        settings: EncoderSettings = DEFAULT_SETTINGS,
    ) -> "LiveVideoWriter":
        """Go on with a live file whose writer was killed, after its last whole fragment.

        A half-written fragment is cut off. Continue with frame `num_frames` and with sample
        `num_samples`, which lies a little before that frame, so that the sound runs on unbroken.
        Arguments are those the file was begun with.

        Raises:
            ConfigError: as the constructor.
            MediaError: the file cannot be read or written, holds no whole init segment, or was
                begun with other settings.
        """
        extent = measure_live_file(path)
        writer = cls.__new__(cls)
        writer._prepare(width, height, fps, sample_rate_hz, settings, extent.num_audio_packets)
        writer._sink = _Sink.reopen(path, writer.init_segment, extent.num_bytes)
        writer._num_fragments = extent.num_fragments
        writer._num_frames = extent.num_frames
        return writer

    def _prepare(
        self,
        width: int,
        height: int,
        fps: int,
        sample_rate_hz: int,
        settings: EncoderSettings,
        num_packets_written: int = 0,
    ) -> None:
        _check_range("width", width, 16, 4096)
        _check_range("height", height, 16, 4096)
        _check_range("fps", fps, 1, 120)
        _check_range("sample_rate_hz", sample_rate_hz, 8_000, 192_000)
        self._frame_shape = (height, width, 3)
        self._fps = fps
        self._sample_rate_hz = sample_rate_hz
        self._video = VideoEncoder(width, height, fps, settings)
        self._audio = AudioEncoder(sample_rate_hz, settings.audio_bit_rate, num_packets_written)
        self._tracks = (self._video.track, self._audio.track)
        self._num_fragments = 0
        self._num_frames = 0
        self._num_samples = self._audio.first_sample
        self._closed = False

    @property
    def init_segment(self) -> bytes:
        """The first bytes of the file, up to the first fragment."""
        return init_segment(self._tracks)

    @property
    def codecs(self) -> str:
        """`codecs` parameter of the MIME type "video/mp4", as "avc1.64001e, mp4a.40.2"."""
        return codecs_string(self._tracks)

    @property
    def num_frames(self) -> int:
        """Video frames in the file: the index of the next one to append."""
        return self._num_frames

    @property
    def num_samples(self) -> int:
        """Samples taken so far: the index, at the rate handed in, of the next one to append."""
        return self._num_samples

    def append(self, frames_THWC: "np.ndarray[Any, Any]", samples: "np.ndarray[Any, Any]") -> None:
        """Write one whole fragment with exactly these frames and the sound that belongs to them.

        The two may differ in length from call to call. Sound ahead of the picture waits, encoded,
        for its fragment; a fragment without enough sound is written with what there is. Without
        frames nothing is written.

        Args:
            frames_THWC: RGB, uint8 in 0..255, full range, (T, height, width, 3).
            samples: mono, float32 in -1..1, (n,), following those of the call before.

        Raises:
            StreamClosedError: the writer was closed, or an earlier write failed.
            MediaError: an array has another type or shape, or the file cannot be written.
        """
        self._require_open()
        self._check(frames_THWC, samples)
        try:
            self._audio.feed(samples)
            self._num_samples += len(samples)
            if len(frames_THWC):
                first = self._num_frames
                video = self._video.encode(frames_THWC, first)
                self._num_frames += len(frames_THWC)
                self._write_fragment(first, *video)
        except av.error.FFmpegError as error:
            self.abort()
            raise MediaError(f"cannot encode video: {error.strerror}") from error

    def close(self) -> None:
        """Write the rest of the sound in a last fragment and close the file.

        Missing sound is filled with silence, sound past the last frame is dropped: both tracks end
        within one AAC frame (21 ms) of each other. Does nothing on a closed writer.

        Raises:
            MediaError: the file cannot be written.
        """
        if self._closed:
            return
        try:
            if self._num_frames:
                self._fill_with_silence()
                self._audio.finish()
                self._write_fragment(self._num_frames, b"", [], [])
        except av.error.FFmpegError as error:
            raise MediaError(f"cannot encode sound: {error.strerror}") from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the file as it is, after the last fragment. Does nothing on a closed writer."""
        if not self._closed:
            self._closed = True
            self._sink.close()

    def __enter__(self) -> "LiveVideoWriter":
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _require_open(self) -> None:
        if self._closed:
            raise StreamClosedError("live video is closed: make a new writer to write more")

    def _check(self, frames: "np.ndarray[Any, Any]", samples: "np.ndarray[Any, Any]") -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._frame_shape:
            height, width, _ = self._frame_shape
            raise MediaError(
                f"frames expected uint8 (T, {height}, {width}, 3), "
                f"got {frames.dtype} {frames.shape}"
            )
        if samples.dtype != np.float32 or samples.ndim != 1:
            raise MediaError(f"samples expected float32 (n,), got {samples.dtype} {samples.shape}")
        if not np.isfinite(samples).all():
            raise MediaError("samples expected finite values in -1..1, got NaN or infinity")

    def _fill_with_silence(self) -> None:
        wanted = math.ceil(self._num_frames * self._sample_rate_hz / self._fps)
        while (missing := wanted - self._num_samples) > 0:
            silence = np.zeros(min(missing, self._sample_rate_hz), np.float32)
            self._audio.feed(silence)
            self._num_samples += len(silence)

    def _write_fragment(
        self, first_frame: int, video_bytes: bytes, sizes: list[int], is_key: list[bool]
    ) -> None:
        audio_time = self._audio.next_packet * AAC_FRAME_SAMPLES
        packets = self._audio.take(self._num_frames * AUDIO_RATE_HZ // self._fps)
        runs = {}
        if sizes:
            time = first_frame * self._video.track.sample_duration
            runs[1] = SampleRun(time, tuple(sizes), tuple(is_key))
        if packets:
            runs[2] = SampleRun(audio_time, tuple(map(len, packets)), (True,) * len(packets))
        if runs:
            self._num_fragments += 1
            self._write(fragment(self._num_fragments, runs, video_bytes + b"".join(packets)))

    def _write(self, data: bytes) -> None:
        try:
            self._sink.write(data)
        except MediaError:
            self.abort()
            raise


def frames_to_resume(
    path: Path, *, width: int, height: int, fps: int = 25, sample_rate_hz: int = 16_000
) -> int:
    """Frames in a live file that `LiveVideoWriter.resume` would go on with; nothing is changed.

    Raises:
        MediaError: it would not: the file cannot be read, or was begun with other settings.
    """
    expected = LiveVideoWriter(
        io.BytesIO(), width=width, height=height, fps=fps, sample_rate_hz=sample_rate_hz
    )
    num_frames = measure_live_file(path).num_frames
    _check_begun_with(path, expected.init_segment)
    return num_frames


def _check_begun_with(path: Path, head: bytes) -> None:
    try:
        with path.open("rb") as begun:
            if begun.read(len(head)) == head:
                return
    except OSError as error:
        raise MediaError(f"cannot read live video {path.name}: {error.strerror}") from error
    raise MediaError(
        f"live video {path.name} was begun with another size, frame rate or "
        "encoder setting: resume it with the same ones"
    )


class _Sink:
    """A binary file that only grows, with errors told in one line."""

    def __init__(self, file: BinaryIO, *, owned: bool) -> None:
        self._file = file
        self._owned = owned
        self._name = Path(str(getattr(file, "name", "stream"))).name

    @classmethod
    def create(cls, target: str | os.PathLike[str] | BinaryIO) -> "_Sink":
        if not isinstance(target, (str, os.PathLike)):
            return cls(target, owned=False)
        target = Path(target)
        try:
            # Unbuffered: a fragment reaches the file in one call, or fails in that call.
            return cls(target.open("wb", buffering=0), owned=True)  # type: ignore[arg-type]
        except OSError as error:
            raise MediaError(f"cannot create live video {target.name}: {error.strerror}") from error

    @classmethod
    def reopen(cls, path: Path, head: bytes, num_bytes: int) -> "_Sink":
        """Open a file that begins with `head`, cut to `num_bytes`."""
        _check_begun_with(path, head)
        try:
            os.truncate(path, num_bytes)
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise MediaError(f"cannot resume live video {path.name}: {error.strerror}") from error
        return cls(file, owned=True)  # type: ignore[arg-type]

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                written = self._file.write(rest)
                if not written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                rest = rest[written:]
            self._file.flush()
        except OSError as error:
            raise MediaError(
                f"cannot write live video {self._name}: {error.strerror}; "
                "what was appended before is whole, make room and resume it"
            ) from error

    def close(self) -> None:
        if self._owned:
            self._file.close()


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} expected a whole number from {low} to {high}, got {value!r}")
