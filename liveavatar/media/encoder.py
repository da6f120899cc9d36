"""RGB frames to H.264 and samples to AAC, each frame at once, ready to be put into an MP4."""

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soxr
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from liveavatar.errors import ConfigError, MediaError
from liveavatar.media.fmp4 import Track, audio_track, video_track

AUDIO_RATE_HZ = 48_000
"""Rate of the AAC track, whatever rate comes in. At 16 kHz an AAC frame lasts 64 ms, so the sound
of a fragment would end up to 192 ms before its picture, not 64 ms; and at 24 kHz and below some
decoders take AAC-LC for the lower half of HE-AAC."""

AAC_FRAME_SAMPLES = 1024

_PRIMING_PACKETS = 1  # packet 0 precedes the first sample: a decoder overlaps two windows
_RUN_IN_PACKETS = 6  # two are enough on tones; 0.13 s for a resumed encoder to be like the first
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow")


@dataclass(frozen=True)
class EncoderSettings:
    """How to encode.

    The defaults take 5 ms a frame at 688*368 and 15 ms at 1280*720 on two cores, colour conversion
    and sound included; luma of a moving portrait stays at 44 dB PSNR with 1.4 Mbit/s.

    Attributes:
        preset: x264 preset, "ultrafast" to "slow".
        crf: x264 constant rate factor, 0 (lossless) to 51; 18 looks like the source.
        keyframe_interval_s: longest distance between keyframes, 0.1 to 10 seconds.
        audio_bit_rate: AAC bits per second, 32000 to 256000.
        num_threads: threads of the video encoder, 1 to 64. Each encodes a slice of the same frame:
            threads shorten the wait for it and hold no frame back.
    """

    preset: str = "veryfast"
    crf: int = 18
    keyframe_interval_s: float = 1.0
    audio_bit_rate: int = 96_000
    num_threads: int = 4

    def __post_init__(self) -> None:
        if self.preset not in _PRESETS:
            raise ConfigError(f"preset expected one of {', '.join(_PRESETS)}, got {self.preset!r}")
        ranges = {
            "crf": (0, 51),
            "keyframe_interval_s": (0.1, 10),
            "audio_bit_rate": (32_000, 256_000),
            "num_threads": (1, 64),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} expected {low} to {high}, got {value}")


DEFAULT_SETTINGS = EncoderSettings()


class VideoEncoder:
    """RGB frames to H.264 access units, each at once."""

    def __init__(self, width: int, height: int, fps: int, settings: EncoderSettings) -> None:
        self._padding = ((0, height % 2), (0, width % 2), (0, 0))
        width += width % 2
        height += height % 2
        self._shortest_gop = max(1, fps // 4)
        self._longest_gop = max(1, round(fps * settings.keyframe_interval_s))
        self._last_key = -self._longest_gop
        self._reformatter = VideoReformatter()
        context = av.CodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.framerate, context.time_base = Fraction(fps), Fraction(1, fps)
        context.thread_count = settings.num_threads
        context.flags |= av.codec.context.Flags.global_header
        # Video usability information, the tags inside the stream: BT.709 (1), limited range (1).
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = 1
        context.options = {
            "preset": settings.preset,
            "crf": str(settings.crf),
            "tune": "zerolatency",
            "forced-idr": "1",
            # Lengths instead of start codes, as MP4 wants; chroma lies between two columns.
            "x264-params": f"annexb=0:chromaloc=1:scenecut=0:keyint={self._longest_gop}",
        }
        context.open()
        self._context = context
        self.track: Track = video_track(width, height, fps, bytes(context.extradata))

    def encode(
        self, frames_THWC: "np.ndarray[Any, Any]", first: int
    ) -> tuple[bytes, list[int], list[bool]]:
        """Return the joined access units of frames `first` and on, their sizes, which are keys."""
        units = []
        is_key = []
        for index, frame in enumerate(frames_THWC, first):
            since_key = index - self._last_key
            wants_key = since_key >= (self._shortest_gop if index == first else self._longest_gop)
            picture = self._convert(frame)
            picture.pts = index
            picture.time_base = self._context.time_base
            if wants_key:
                self._last_key = index
                picture.pict_type = av.video.frame.PictureType.I
            for packet in self._context.encode(picture):
                units.append(bytes(packet))
                is_key.append(packet.is_keyframe)
        if len(units) != len(frames_THWC):
            raise MediaError(
                f"video encoder expected to return {len(frames_THWC)} frames, got {len(units)}"
            )
        return b"".join(units), list(map(len, units)), is_key

    def _convert(self, frame_HWC: "np.ndarray[Any, Any]") -> av.VideoFrame:
        """Full-range RGB to limited-range BT.709 4:2:0; swscale's own choice would be BT.601."""
        padded = np.ascontiguousarray(np.pad(frame_HWC, self._padding, mode="edge"))
        return self._reformatter.reformat(
            av.VideoFrame.from_ndarray(padded, format="rgb24"),
            format="yuv420p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            # Chroma is the mean of 2 by 2 pixels: nearest to exact, within rounding.
            interpolation=Interpolation.AREA,
            threads=1,
        )


class AudioEncoder:
    """Samples of any rate to AAC packets at 48 kHz.

    Packet 0 is priming; packet i decodes to the samples (i - 1) * 1024 and on. The encoder runs in
    on silence, or when resumed on sound that is in the file already, and those packets are dropped:
    it takes the very start of its input for an attack, and its windows then do not fit together.
    """

    def __init__(self, sample_rate_hz: int, bit_rate: int, num_packets_written: int) -> None:
        context = av.CodecContext.create("aac", "w")
        context.sample_rate, context.layout, context.format = AUDIO_RATE_HZ, "mono", "fltp"
        context.time_base = Fraction(1, AUDIO_RATE_HZ)
        context.bit_rate = bit_rate
        context.flags |= av.codec.context.Flags.global_header
        context.open()
        self._context = context
        self._resampler = None
        if sample_rate_hz != AUDIO_RATE_HZ:
            self._resampler = soxr.ResampleStream(sample_rate_hz, AUDIO_RATE_HZ, 1, dtype="float32")
        self.track: Track = audio_track(
            AUDIO_RATE_HZ,
            bytes(context.extradata),
            priming=_PRIMING_PACKETS * AAC_FRAME_SAMPLES,
            bit_rate=bit_rate,
        )
        start = (num_packets_written - _RUN_IN_PACKETS) * AAC_FRAME_SAMPLES
        # Both rates meet at multiples of their ratio: start there, then skip up to the packet.
        common = math.gcd(sample_rate_hz, AUDIO_RATE_HZ)
        meetings, self._num_to_skip = divmod(max(0, start), AUDIO_RATE_HZ // common)
        self.first_sample = meetings * (sample_rate_hz // common)
        self.next_packet = num_packets_written
        self._num_to_drop = _RUN_IN_PACKETS
        self._packets: deque[bytes] = deque()
        self._rest = np.zeros(max(0, -start), np.float32)
        self._num_encoded = 0

    def feed(self, samples: "np.ndarray[Any, Any]", *, last: bool = False) -> None:
        """Encode what makes whole AAC frames, keep the rest for the next call."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        skipped = min(self._num_to_skip, len(samples))
        self._num_to_skip -= skipped
        samples = np.concatenate((self._rest, samples[skipped:]))
        num_whole = len(samples) if last else len(samples) // AAC_FRAME_SAMPLES * AAC_FRAME_SAMPLES
        for start in range(0, num_whole, AAC_FRAME_SAMPLES):
            self._encode(samples[start : min(start + AAC_FRAME_SAMPLES, num_whole)])
        self._rest = samples[num_whole:].copy()

    def finish(self) -> None:
        """Encode all that is held; nothing can be fed afterwards."""
        self.feed(np.zeros(0, np.float32), last=True)
        self._keep(self._context.encode(None))

    def take(self, until: int) -> list[bytes]:
        """Remove and return the packets that begin before sample `until` of the track."""
        taken = []
        while self._packets and (self.next_packet - _PRIMING_PACKETS) * AAC_FRAME_SAMPLES < until:
            taken.append(self._packets.popleft())
            self.next_packet += 1
        return taken

    def _encode(self, samples: "np.ndarray[Any, Any]") -> None:
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = AUDIO_RATE_HZ
        frame.time_base = self._context.time_base
        frame.pts = self._num_encoded
        self._num_encoded += len(samples)
        self._keep(self._context.encode(frame))

    def _keep(self, packets: "list[av.Packet]") -> None:
        for packet in packets:
            if self._num_to_drop:
                self._num_to_drop -= 1
            else:
                self._packets.append(bytes(packet))
