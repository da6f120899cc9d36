"""A worker group without networks: it writes a moving test picture with the job's own sound.

It stands where a worker group stands, says the same messages and writes the same files at a speed
that can be set, so that the web server is developed and tested without torch and without waiting.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from liveavatar.config import FPS, FRAMES_PER_BLOCK, SPEECH_RATE_HZ
from liveavatar.engine.messages import (
    Event,
    Finished,
    Loading,
    Progress,
    RankStatus,
    Ready,
    Refused,
    RenderJob,
)
from liveavatar.engine.processes import STOP_S
from liveavatar.errors import LiveAvatarError, WorkerDiedError
from liveavatar.media.soundtrack import open_soundtrack
from liveavatar.media.spoken_video import SpokenVideo

_STATUS_S = 1.0
_LOADING_STEPS = 10
_RANK_BYTES = 2**30
_SAMPLES_PER_FRAME = SPEECH_RATE_HZ // FPS


@dataclass(frozen=True)
class Pace:
    """How fast a fake group is.

    Attributes:
        load_s: from its start until it is ready, seconds.
        prepare_s: from a job's turn to its first block, seconds.
        fps: frames per second.
        num_stages: ranks that it claims to have, beside the media rank.
    """

    load_s: float = 0.5
    prepare_s: float = 0.1
    fps: float = 60.0
    num_stages: int = 3


class _KilledError(Exception):
    """The group ends now; the file stays as it is."""


class FakeGroup:
    """A `Group` that draws; made at once, ready after `pace.load_s`.

    Args:
        pace: how fast it is; another value counts from the next block on.
        drawn: called with a block's number when it is drawn, before it is encoded.
    """

    def __init__(
        self, pace: Pace | None = None, drawn: Callable[[int], None] = lambda _block: None
    ) -> None:
        self.pace = pace or Pace()
        self._drawn = drawn
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[RenderJob | None] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._ended = threading.Event()
        self._cause = WorkerDiedError("the worker group has ended; start another")
        self._refusal: str | None = None
        self._working_on = ""
        self._not_ready = set(range(self.pace.num_stages + 1))
        self._thread = threading.Thread(target=self._work, name="fake group", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether every rank has said Ready, as far as `next_event` was called."""
        return not self._not_ready and not self._ended.is_set()

    def submit(self, job: RenderJob) -> None:
        """Queue a job; WorkerDiedError when the group has ended."""
        self._require_alive()
        self._jobs.put(job)

    def cancel(self, number: int) -> None:
        """Stop a job; WorkerDiedError when the group has ended."""
        self._require_alive()
        self._cancelled.add(number)

    def next_event(self, timeout_s: float) -> Event | None:
        """Wait for the next report; WorkerDiedError when the group has ended."""
        self._require_alive()
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            self._require_alive()
            return None
        if isinstance(event, Ready):
            self._not_ready.discard(event.rank)
        return event

    def close(self, timeout_s: float = STOP_S) -> None:
        """Let the jobs at hand finish, for so long at most, then end."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End now; does nothing twice."""
        self._ended.set()
        self._thread.join(STOP_S)

    def die(self, cause: str, *, by_its_work: bool = False) -> None:
        """End as if a rank had failed; the owner hears of it at its next call."""
        self._cause = WorkerDiedError(cause, by_its_work=by_its_work)
        self._ended.set()

    def refuse_next(self, reason: str) -> None:
        """Refuse the next job whose turn comes."""
        self._refusal = reason

    def _require_alive(self) -> None:
        if self._ended.is_set():
            raise self._cause

    def _work(self) -> None:
        threading.Thread(target=self._report_status, name="fake status", daemon=True).start()
        ranks = range(self.pace.num_stages + 1)
        for step, rank in itertools.product(range(1, _LOADING_STEPS + 1), ranks):
            self._ended.wait(self.pace.load_s / _LOADING_STEPS / len(ranks))
            done = _RANK_BYTES * step // _LOADING_STEPS
            self._events.put(Loading(rank, done, _RANK_BYTES))
        for rank in ranks:
            self._events.put(Ready(rank, self.pace.load_s, self.pace.load_s))
        while not self._ended.is_set():
            try:
                job = self._jobs.get(timeout=0.05)
            except queue.Empty:
                continue
            if job is None:
                return
            try:
                self._render(job)
            except LiveAvatarError as error:
                self._events.put(Refused(job.number, str(error)))
            except _KilledError:
                return

    def _render(self, job: RenderJob) -> None:
        if (reason := self._refusal) is not None:
            self._refusal = None
            self._events.put(Refused(job.number, reason))
            return
        self._events.put(Progress(job.number, 0, "preparing"))
        self._ended.wait(self.pace.prepare_s)
        height, width = job.portrait_HWC.shape[:2]
        sound = open_soundtrack(job.soundtrack, mix=job.mix)
        cancelled = False
        make = SpokenVideo.resume if job.resumes else SpokenVideo
        with make(job.live_path, sound, width, height) as video:
            due = time.monotonic()
            for block in range(-(-video.num_frames // FRAMES_PER_BLOCK), job.timeline.num_blocks):
                cancelled = job.number in self._cancelled
                if cancelled:
                    break
                self._working_on = f"block {block} step 0"
                num_frames = job.timeline.frames_of_block(block)
                due += num_frames / self.pace.fps
                if self._ended.wait(max(0.0, due - time.monotonic())):
                    raise _KilledError
                frames_THWC = draw_frames(job, block * FRAMES_PER_BLOCK, num_frames)
                self._drawn(block)
                video.append(frames_THWC)
                self._events.put(Progress(job.number, video.num_frames, "rendering"))
        self._working_on = ""
        self._events.put(Progress(job.number, video.num_frames, "finishing"))
        self._events.put(Finished(job.number, video.num_frames, cancelled))

    def _report_status(self) -> None:
        stages = self.pace.num_stages
        while not self._ended.is_set() and self._thread.is_alive():
            for rank in range(stages + 1):
                is_media = rank == stages
                self._events.put(
                    RankStatus(
                        rank=rank,
                        role="media" if is_media else f"stage {rank}",
                        device="cpu",
                        layers=None if is_media else (rank, rank),
                        memory_bytes=_RANK_BYTES,
                        peak_bytes=_RANK_BYTES,
                        memory_limit_bytes=2 * _RANK_BYTES,
                        busy_share=float(bool(self._working_on)),
                        item=self._working_on,
                    )
                )
            self._ended.wait(_STATUS_S)


def draw_frames(job: RenderJob, first: int, num_frames: int) -> npt.NDArray[np.uint8]:
    """Draw the portrait, a bar that moves, and a strip as bright as the sound is loud.

    Args:
        job: whose portrait and speech.
        first: index of the first frame.
        num_frames: how many.

    Returns:
        RGB uint8, (num_frames, height, width, 3).
    """
    frames_THWC = np.repeat(job.portrait_HWC[None], num_frames, axis=0)
    height, width = job.portrait_HWC.shape[:2]
    strip, bar = max(1, height // 10), max(1, width // 16)
    for index, frame_HWC in enumerate(frames_THWC):
        number = first + index
        start = number * _SAMPLES_PER_FRAME
        heard = job.speech_N[start : start + _SAMPLES_PER_FRAME]
        level = float(np.sqrt(np.mean(heard**2))) if len(heard) else 0.0
        frame_HWC[-strip:] = round(255 * min(1.0, 4 * level))
        left = number * max(1, bar // 2) % width
        frame_HWC[:strip, left : left + bar] = 255
    return frames_THWC
