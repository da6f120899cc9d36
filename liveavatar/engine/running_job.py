"""A claimed job on its way through the group, and how fast it is."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from liveavatar.engine.beginning import Beginning
from liveavatar.jobs.job import Claim, Job, JobSpec
from liveavatar.jobs.store import JobStore

_SPEED_WINDOW_S = 15.0
_FINISH_AGAIN_S, _FINISH_PATIENCE_S = 2.0, 120.0

Phase = Literal["decoding", "in group", "rendered", "ended"]


class Speed:
    """Frames per second over the last seconds, from counts of frames and when they came."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def note(self, frames: int, now: float) -> None:
        """Take a count; `now` in seconds of a clock that only rises."""
        if not self._counts or frames > self._counts[-1][1]:
            self._counts.append((now, frames))
        while len(self._counts) > 2 and now - self._counts[0][0] > _SPEED_WINDOW_S:
            self._counts.popleft()

    @property
    def fps(self) -> float | None:
        """Frames per second; None before there are two counts."""
        if len(self._counts) < 2:
            return None
        (began, before), (ended, after) = self._counts[0], self._counts[-1]
        return (after - before) / (ended - began) if ended > began else None


@dataclass
class RunningJob:
    """What the supervisor knows of a job it claimed.

    Attributes:
        number: the group's number for it.
        job: as it was claimed.
        claim: the hold on it.
        phase: its inputs are being decoded; the group has it, or had it; its files are being
            finished.
        work: what goes on in another thread in the first and the last phase.
        frames: frames in its file.
        stage: as the group says.
        frames_before: those that earlier attempts left in its file, once the group said so.
        first_frame_s: seconds from the claim to the first frame; of the attempt that made it.
        cancel_wanted: somebody asked to cancel it.
        cut_short: it was cancelled before its last frame.
        changed: whether the store does not have this yet.
        claimed_at: seconds of a clock that only rises, as all that follow.
        speed: of its frames.
        finish_at: when its files may be finished.
        finish_by: when that is given up; None while nothing has gone wrong with it.
    """

    number: int
    job: Job
    claim: Claim
    phase: Phase = "decoding"
    work: Future[Any] | None = None
    frames: int = 0
    stage: str = "preparing"
    frames_before: int | None = None
    first_frame_s: float | None = None
    cancel_wanted: bool = False
    cut_short: bool = False
    changed: bool = False
    claimed_at: float = field(default_factory=time.monotonic)
    speed: Speed = field(default_factory=Speed)
    finish_at: float = 0.0
    finish_by: float | None = None

    def __post_init__(self) -> None:
        self.beginning = Beginning(self.claimed_at)

    def finish_later(self) -> bool:
        """Let its files be finished again, in a moment; False when that went on for too long."""
        now = time.monotonic()
        self.finish_by = self.finish_by or now + _FINISH_PATIENCE_S
        if now > self.finish_by:
            return False
        self.phase, self.finish_at = "rendered", now + _FINISH_AGAIN_S
        return True

    def note_progress(self, frames: int, stage: str) -> str:
        """Take what the group reports; returns what there is to say of it, see `Beginning`."""
        now = time.monotonic()
        if not self.job.frames:
            self.frames_before = 0
        elif self.frames_before is None and stage != "preparing":
            self.frames_before = frames
            self.first_frame_s = self.job.first_frame_s if frames else None
        if self.frames_before is not None and frames > self.frames_before:
            self.speed.note(frames, now)
            if self.first_frame_s is None:
                self.first_frame_s = now - self.claimed_at
        self.frames, self.stage, self.changed = max(frames, self.frames), stage, True
        return self.beginning.note_progress(frames, stage, now)

    @property
    def left_s(self) -> float:
        """Seconds that it still takes: at its speed, or as was expected of it."""
        total = self.job.spec.total_frames
        left = max(0, total - self.frames)
        fps = self.speed.fps
        return left / fps if fps else self.job.cost_s * left / total

    def record_progress(self, store: JobStore) -> None:
        """Tell the store how far it is; LeaseLostError, StoreUnavailableError."""
        store.record_progress(
            self.claim,
            frames=self.frames,
            stage=self.stage,
            fps=self.speed.fps,
            first_frame_s=self.first_frame_s,
        )

    def change_spec(self, spec: JobSpec) -> None:
        """Another video is made of it."""
        self.job = replace(self.job, spec=spec)

    def go_on(self, kept_frames: int) -> None:
        """The file that is there, with so many frames, is gone on with."""
        self.frames, self.first_frame_s = kept_frames, self.job.first_frame_s
