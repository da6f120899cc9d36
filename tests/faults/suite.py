"""An application that is hurt on purpose, and what has to be true of its jobs afterwards."""

from __future__ import annotations

import os
import resource
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.application import Application
from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.media.live_file import complete_length, measure_live_file
from tests.unit.mp4_material import decode_video

CONFIG = """
[limits]
jobs_per_owner = 20
requests_per_second = 100000
requests_in_all = 100000

[tiers.fast]
size = "64*64"
infer_frames = 24
sample_steps = 2

[tiers.balanced]
size = "128*128"
infer_frames = 24
sample_steps = 2
"""
HEADINGS = ("fault", "recovered", "seconds", "blocks redone", "frames lost")
CLIPS = 6
END_S = 400.0
_CODED_OTHERWISE = 12  # of 255, mean over a frame: the first frames behind a cut are coded worst


@dataclass(frozen=True)
class Outcome:
    """What a fault came to.

    Attributes:
        fault: in words.
        recovered: whether its job ended as it has to.
        seconds: from the fault to the next new frame, or to the end where none was to come.
        blocks_redone: finished blocks that were made again.
        frames_lost: frames that the video lacks.
    """

    fault: str
    recovered: bool
    seconds: float
    blocks_redone: int
    frames_lost: int


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns under `HEADINGS`."""
    lines = [list(HEADINGS), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


class Installation(Application):
    """The application with the demo model, and one video that was made undisturbed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CONFIG, ("--model", "demo"))
        self._undisturbed: np.ndarray | None = None
        self.start_s = 0.0

    @property
    def recovery_s(self) -> float:
        """Bound of a recovery: thrice what this machine took to start at all, and some."""
        return 60 + 3 * self.start_s

    def __enter__(self) -> Installation:
        began = time.monotonic()
        self.start()
        self.start_s = time.monotonic() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                assert self.stop() == 0
                assert self.left_over() == []
                with closing(sqlite3.connect(self.data / "jobs.db")) as connection:
                    states = dict(connection.execute("SELECT id, state FROM jobs"))
                assert set(states.values()) <= {"done", "failed", "cancelled"}
        finally:
            super().__exit__(kind, error, trace)

    def live(self, job_id: str) -> Path:
        """The growing file of a job."""
        return self.data / "jobs" / job_id / "live.mp4"

    def frames(self, job_id: str) -> int:
        """Frames in a job's growing file; 0 while it is not begun."""
        live = self.live(job_id)
        if not live.exists() or not complete_length(live):
            return 0
        return measure_live_file(live).num_frames

    def submit_one(self, **changed: Any) -> str:
        """The job of all faults: always the same video."""
        return self.submit(num_clip=str(CLIPS), seed="7", **changed)

    def wait_for_frames(self, job_id: str, frames: int) -> None:
        """Wait until a job's growing file holds so many."""
        self.wait(lambda: self.frames(job_id) >= frames, f"{frames} frames", END_S)

    @property
    def undisturbed(self) -> np.ndarray:
        """Pictures of the video when nothing goes wrong."""
        if self._undisturbed is None:
            job = self.wait_for_end(self.submit_one(), END_S)
            assert job["state"] == "done", job
            self._undisturbed = pictures(self.live(job["id"]))
        return self._undisturbed

    def survive(
        self,
        fault: str,
        hurt: Callable[[], None],
        at_frames: int = 40,
        mend: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Hurt the application while it renders; the video has to become what it would have been.

        Args:
            fault: in words.
            hurt: does it.
            at_frames: when, by the frames in the growing file.
            mend: starts again what does not start by itself.
        """
        whole = self.undisturbed
        job_id = self.submit_one()
        self.wait_for_frames(job_id, at_frames)
        began = time.monotonic()
        hurt()
        live = self.live(job_id)
        before = live.read_bytes()[: complete_length(live)]
        cut = self.frames(job_id)
        redone = cut // FRAMES_PER_BLOCK - self._newest_point(job_id, cut)
        mend()
        self.wait_for_frames(job_id, min(cut + 1, len(whole)))
        seconds = time.monotonic() - began
        job = self.wait_for_end(job_id, END_S)
        ours = pictures(live)
        assert job["state"] == "done", job
        assert job["attempt"] == 1, "it went on in the same file"
        assert live.read_bytes().startswith(before)
        assert len(ours) == len(whole)
        assert goes_on(ours, whole)
        lost = len(whole) - len(pictures(self.data / "jobs" / job_id / "video.mp4"))
        return Outcome(fault, True, round(seconds, 1), redone, lost)

    def _newest_point(self, job_id: str, frames: int) -> int:
        """Block behind which the newest point within so many frames lies, 0 for none."""
        parts: dict[int, int] = {}
        for path in (self.data / "jobs" / job_id / "resume").glob("*/*.safetensors"):
            block = int(path.name.split(".")[0])
            parts[block] = parts.get(block, 0) + 1
        whole = [block for block, count in parts.items() if count == 2]
        return max((block for block in whole if block * FRAMES_PER_BLOCK <= frames), default=0)


def record(note: Callable[[str, object], None], outcome: Outcome) -> None:
    """Put an outcome into the report of its test."""
    for heading, value in zip(HEADINGS, astuple(outcome), strict=True):
        note(heading, value)


def pictures(path: Path) -> np.ndarray:
    """All frames of a file, (T, H, W, 3)."""
    return np.stack([frame.to_ndarray(format="rgb24") for frame in decode_video(path)])


def goes_on(ours: np.ndarray, whole: np.ndarray) -> bool:
    """Whether a video with a cut shows the frames of one without, each in its place.

    Behind the cut the encoder begins anew and gives the same frames other steps of quality, for as
    long as its rate control remembers, so that nearness alone would say little: every frame has to
    be nearer to its own than to its neighbours, on the whole, which a frame lost or made twice at
    the cut is not. `tests/distributed/test_resume.py` compares the latents bit by bit.
    """

    def errors(shift: int) -> np.ndarray:
        return np.abs(ours.astype(int) - np.roll(whole, shift, axis=0)).mean(axis=(1, 2, 3))

    own = errors(0)
    (unlike,) = own.nonzero()
    if not len(unlike):
        return True
    behind = slice(unlike[0], len(whole) - 1)
    neighbours = min(errors(-1)[behind].mean(), errors(1)[behind].mean())
    return bool(own.max() < _CODED_OTHERWISE and own[behind].mean() < neighbours)


def limit_files_of(pid: int, num_bytes: int) -> None:
    """Let a running process write no file beyond so many bytes; a negative number lifts it."""
    most = resource.RLIM_INFINITY if num_bytes < 0 else num_bytes
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def limit_memory_of(pid: int, more_bytes: int) -> None:
    """Let a running process take so much more address space than it has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + more_bytes
    resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
