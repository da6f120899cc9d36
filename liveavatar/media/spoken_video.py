"""A growing video file that takes its sound from the upload."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, TypedDict

import numpy as np
import numpy.typing as npt

from liveavatar.config import FPS
from liveavatar.errors import MediaError
from liveavatar.media.live_writer import AUDIO_LEAD_S, LiveVideoWriter, frames_to_resume
from liveavatar.media.soundtrack import SOUNDTRACK_RATE_HZ, Soundtrack


class _Rates(TypedDict):
    fps: int
    sample_rate_hz: int


_RATES: Final[_Rates] = {"fps": FPS, "sample_rate_hz": SOUNDTRACK_RATE_HZ}


class SpokenVideo:
    """Frames in, picture and the sound that belongs to them out, a whole fragment per append.

    To be used in a `with` block: leaving it finishes the file, leaving it by an exception closes
    the file after its last whole fragment.

    Args:
        live_path: file to create or replace.
        soundtrack: the upload's sound; frame i is shown while it is heard from i/25 s on. It is
            closed with the video.
        width: of the frames, pixels.
        height: of the frames, pixels.

    Raises:
        MediaError: a file cannot be read or written.
    """

    def __init__(self, live_path: Path, soundtrack: Soundtrack, width: int, height: int) -> None:
        self._sound = soundtrack
        try:
            self._writer = LiveVideoWriter(live_path, width=width, height=height, **_RATES)
        except BaseException:
            soundtrack.close()
            raise

    @classmethod
    def resume(
        cls, live_path: Path, soundtrack: Soundtrack, width: int, height: int
    ) -> SpokenVideo:
        """Go on with the file of a render that was killed, behind its last whole fragment.

        Continue with frame `num_frames`. Arguments and errors are those of making one; besides, the
        file has to be one that `can_resume` accepts.
        """
        video = cls.__new__(cls)
        video._sound = soundtrack
        try:
            video._writer = LiveVideoWriter.resume(live_path, width=width, height=height, **_RATES)
            soundtrack.skip(video._writer.num_samples)
        except BaseException:
            soundtrack.close()
            raise
        return video

    @property
    def num_frames(self) -> int:
        """Frames in the file."""
        return self._writer.num_frames

    def append(self, frames_THWC: npt.NDArray[np.uint8]) -> None:
        """Write frames (T, height, width, 3), uint8 RGB, and their sound."""
        until_s = (self.num_frames + len(frames_THWC)) / FPS + AUDIO_LEAD_S
        wanted = round(until_s * SOUNDTRACK_RATE_HZ) - self._writer.num_samples
        self._writer.append(frames_THWC, self._sound.read(wanted))

    def close(self) -> None:
        """Finish the file; MediaError when it cannot be written."""
        self._sound.close()
        self._writer.close()

    def __enter__(self) -> SpokenVideo:
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
            self._sound.close()
            self._writer.abort()


def frames_to_go_on_from(live_path: Path, width: int, height: int) -> int:
    """Frames of a growing file of this size that was begun as it would be now; 0 for any other."""
    try:
        return frames_to_resume(live_path, width=width, height=height, **_RATES)
    except MediaError:
        return 0


def can_resume(live_path: Path, width: int, height: int) -> bool:
    """Whether a growing file holds frames of this size and was begun as it would be now."""
    return frames_to_go_on_from(live_path, width, height) > 0
