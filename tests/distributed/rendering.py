"""Jobs for a worker group, the groups themselves, and what a test asks of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.messages import Finished, GroupSpec, Progress, RankStatus, Refused, RenderJob
from liveavatar.media.speech import load_speech
from liveavatar.plan.precision import FLOAT32
from liveavatar.timeline import make_timeline
from tests.patience import PATIENCE_S
from tests.unit.sound_material import pcm, voice

WAIT_S = PATIENCE_S
PROMPT = "A young woman talks to the camera and smiles, in a bright studio room"


def spec(checkpoint: Path, num_stages: int = 2) -> GroupSpec:
    per_stage = 4 // num_stages
    stages = tuple(range(k * per_stage, (k + 1) * per_stage) for k in range(num_stages))
    devices = ("cpu",) * (num_stages + 1)
    return GroupSpec(checkpoint, None, stages, devices, FLOAT32, 1, Path(), WAIT_S)


class Studio:
    """Makes jobs of one portrait and one recording, each with a number and a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sound = folder / "speech.wav"
        self.sound.write_bytes(pcm(voice(16_000, 5.0), 16_000))
        self.speech = load_speech(self.sound)
        self.portrait = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
        self.jobs = 0

    def job(self, seconds: float = 1.5, **changed: object) -> RenderJob:
        """A job of so many seconds of the recording."""
        self.jobs += 1
        samples = self.speech.samples[: int(seconds * 16_000)]
        sampling = SamplingConfig(num_steps=2, infer_frames=24, num_clip=100_000, seed=7)
        job = RenderJob(
            number=self.jobs,
            portrait_HWC=self.portrait,
            speech_N=samples,
            soundtrack=self.sound,
            mix=self.speech.mix,
            prompt=PROMPT,
            timeline=make_timeline(sampling, len(samples)),
            sampling=sampling,
            live_path=self.folder / f"{self.jobs}.live.mp4",
        )
        return replace(job, **changed)  # type: ignore[arg-type]

    def long_job(self) -> RenderJob:
        """Ten minutes, silent behind the recording: long to render, quick to encode."""
        job = self.job()
        return replace(job, timeline=make_timeline(job.sampling, 600 * 16_000))


def started(built: GroupSpec) -> WorkerGroup:
    """A group that is ready."""
    group = WorkerGroup(built)
    group.wait_until_ready(WAIT_S)
    return group


def outcome(group: WorkerGroup, number: int) -> Finished | Refused:
    """What became of a job; its progress has to rise by blocks until then."""
    deadline, frames = time.monotonic() + WAIT_S, 0
    while time.monotonic() < deadline:
        event = group.next_event(1.0)
        if isinstance(event, Progress) and event.number == number:
            first = frames == 0  # of a video that goes on in its file, it may be any number
            assert frames <= event.frames
            assert first or event.frames <= frames + FRAMES_PER_BLOCK
            frames = event.frames
        if isinstance(event, Finished | Refused) and event.number == number:
            return event
    raise AssertionError(f"job {number} did not end")


def wait_for_progress(group: WorkerGroup, number: int) -> None:
    """Wait for the first frames of a job."""
    until(group, lambda e: isinstance(e, Progress) and e.number == number and bool(e.frames))


def wait_for_frames(group: WorkerGroup, number: int, frames: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        event = group.next_event(1.0)
        if isinstance(event, Progress) and event.number == number and event.frames >= frames:
            return
    raise AssertionError(f"job {number} did not get to {frames} frames")


def until_it_ends(group: WorkerGroup) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        group.next_event(1.0)


def until_it_speaks(group: WorkerGroup, rank: int) -> None:
    """Wait for the first report of a rank that starts."""
    until_rank(group, rank, lambda _: True)


def until(group: WorkerGroup, is_it: Callable[[object], bool]) -> None:
    """Wait for an event."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if is_it(group.next_event(1.0)):
            return
    raise AssertionError("what was awaited did not happen")


def until_rank(group: WorkerGroup, rank: int, says: Callable[[RankStatus], bool]) -> None:
    """Wait for a report of a rank that says so."""
    until(group, lambda e: isinstance(e, RankStatus) and e.rank == rank and says(e))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def none_runs(ranks: list[int], within_s: float = WAIT_S) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_running, ranks))


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@contextmanager
def running(group: WorkerGroup) -> Iterator[WorkerGroup]:
    """A group that ends at once at the end of a test, whatever it does."""
    try:
        yield group
    finally:
        group.kill()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.02)
