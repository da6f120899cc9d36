"""What the supervisor measures of a job: only frames that the attempt at hand has made."""

from dataclasses import replace

import pytest

from liveavatar.engine import running_job
from liveavatar.engine.running_job import RunningJob
from liveavatar.jobs.job import Claim, Job
from liveavatar.jobs.store import JobStore
from tests.unit.job_material import LIMITS, spec


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(running_job, "time", clock)
    return clock


@pytest.fixture
def job(store: JobStore) -> Job:
    return store.submit(spec(), LIMITS)


def note(running: RunningJob, clock: Clock, *rows: tuple[float, int, str]) -> None:
    """Tell the job its progress: at which time, how many frames, which stage."""
    for now, frames, stage in rows:
        clock.now = now
        running.note_progress(frames, stage)


def test_a_new_job_is_timed_from_its_claim(job: Job, clock: Clock) -> None:
    running = RunningJob(1, job, Claim(job.id, 1), claimed_at=100.0)
    note(running, clock, (100.2, 0, "preparing"), (101.0, 0, "rendering"))
    note(running, clock, (102.0, 12, "rendering"), (103.0, 36, "rendering"))
    assert running.first_frame_s == pytest.approx(2.0)
    assert running.speed.fps == pytest.approx(24.0)


def test_a_job_that_goes_on_is_as_fast_as_its_new_frames(job: Job, clock: Clock) -> None:
    """The time to encode inputs and to rebuild caches again is not that of a frame."""
    begun = replace(job, frames=48, first_frame_s=1.5)
    running = RunningJob(1, begun, Claim(job.id, 2), claimed_at=100.0)
    for row in ((100.2, 0, "preparing"), (101.0, 60, "rendering"), (109.0, 72, "rendering")):
        note(running, clock, row)
        assert running.speed.fps is None
    note(running, clock, (110.0, 96, "rendering"))
    assert running.speed.fps == pytest.approx(24.0)
    assert running.first_frame_s == 1.5


def test_a_job_that_begins_anew_is_timed_anew(job: Job, clock: Clock) -> None:
    lost = replace(job, frames=48, first_frame_s=1.5)
    running = RunningJob(1, lost, Claim(job.id, 2), claimed_at=100.0)
    note(running, clock, (100.2, 0, "preparing"), (101.0, 0, "rendering"), (104.0, 12, "rendering"))
    assert running.first_frame_s == pytest.approx(4.0)
