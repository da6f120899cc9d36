"""Frames to a job's growing file in a thread of its own, so that decoding goes on meanwhile."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from liveavatar.engine.messages import Finished, Progress, Refused, RenderJob, Stage
from liveavatar.errors import DeadlineError, MediaError
from liveavatar.media.soundtrack import open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo

Frames = npt.NDArray[np.uint8]

WAITING_BLOCKS = 2
"""Decoded blocks that may wait to be encoded; then decoding waits."""

_POLL_S = 0.2


@dataclass(frozen=True)
class _Point:
    """When the frames before it are in the file, the point behind `block` blocks counts."""

    block: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Finish:
    """No more frames follow."""

    cut_short: bool


class LiveVideo:
    """The file of one job: H.264 and AAC are encoded and written behind a bounded queue.

    Reports Progress for every fragment, and Finished or Refused at the end.

    Args:
        job: what is rendered; a job that resumes goes on in its file.
        report: tells the owner.
        points: writes the media rank's part of resume points.

    Raises:
        MediaError: the sound cannot be read or the file cannot be made.
    """

    def __init__(
        self,
        job: RenderJob,
        report: Callable[[object], None],
        points: Callable[[int, Mapping[str, Tensor]], object],
    ) -> None:
        height, width = job.portrait_HWC.shape[:2]
        sound = open_soundtrack(job.soundtrack, mix=job.mix)
        make = SpokenVideo.resume if job.resumes else SpokenVideo
        self._video = make(job.live_path, sound, width, height)
        self._points = points
        self._to_skip = 0
        self.number = job.number
        self._report, self._telling = report, threading.Lock()
        self._queue: queue.Queue[Frames | _Point | _Finish] = queue.Queue(maxsize=WAITING_BLOCKS)
        self._error: BaseException | None = None
        self.refused = False
        self._thread = threading.Thread(
            target=self._run, name=f"encode job {job.number}", daemon=True
        )
        self._thread.start()

    @property
    def num_frames(self) -> int:
        """Frames in the file."""
        return self._video.num_frames

    @property
    def is_done(self) -> bool:
        """Whether the file is closed and its end reported."""
        self._raise_failure()
        return not self._thread.is_alive()

    def tell_progress(self, stage: Stage = "rendering") -> None:
        """Report the frames in the file; the number never falls, whichever thread tells it."""
        with self._telling:
            self._report(Progress(self.number, self.num_frames, stage))

    def skip(self, num_frames: int) -> None:
        """Drop the next frames: they are in the file that is gone on with."""
        self._to_skip = num_frames

    def append(self, frames_THWC: Frames, timeout_s: float) -> None:
        """Hand over frames (T, H, W, 3), uint8; after a refusal they are dropped.

        Raises:
            DeadlineError: nothing was written for so long.
        """
        skipped = min(self._to_skip, len(frames_THWC))
        self._to_skip -= skipped
        if skipped < len(frames_THWC):
            self._put(frames_THWC[skipped:], timeout_s)

    def keep(self, block: int, tensors: Mapping[str, Tensor], timeout_s: float) -> None:
        """Write a point when all frames handed over so far are in the file. Raises as `append`."""
        self._put(_Point(block, tensors), timeout_s)

    def finish(self, *, cut_short: bool, timeout_s: float) -> None:
        """Close the file when all frames are in it; does not wait for that. Raises as `append`."""
        self._put(_Finish(cut_short), timeout_s)

    def _put(self, what: Frames | _Point | _Finish, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            self._raise_failure()
            try:
                self._queue.put(what, timeout=_POLL_S)
                return
            except queue.Full:
                if time.monotonic() > deadline:
                    raise DeadlineError(
                        f"job {self.number}: nothing could be written for {timeout_s:.0f} s"
                    ) from None

    def _raise_failure(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        except MediaError as error:  # as on a full disk; other jobs may have room
            self.refused = True
            self._report(Refused(self.number, str(error)))
            with suppress(MediaError):
                self._video.close()
            while not isinstance(self._queue.get(), _Finish):
                pass
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error

    def _write(self) -> None:
        while not isinstance(next_one := self._queue.get(), _Finish):
            if isinstance(next_one, _Point):
                self._points(next_one.block, next_one.tensors)
                continue
            self._video.append(next_one)
            self.tell_progress()
        self.tell_progress("finishing")
        self._video.close()
        self._report(Finished(self.number, self.num_frames, next_one.cut_short))
