"""A group that falls silent, or makes no progress, is complained about; one that works is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from liveavatar.config import SamplingConfig
from liveavatar.engine.messages import Finished, Progress, RankStatus, Ready, Refused, RenderJob
from liveavatar.engine.watchdog import Limits, Watchdog
from liveavatar.media.sound_mix import Mix
from liveavatar.timeline import make_timeline

RANKS = (0, 1)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Processes:
    """Of the ranks, as the system knows them."""

    stopped: set[int] = field(default_factory=set)

    def is_stopped(self, rank: int) -> bool:
        return rank in self.stopped


def status(rank: int, item: str = "") -> RankStatus:
    return RankStatus(rank, f"stage {rank}", "cpu", None, 0, 0, 0, 0.0, item)


def job(number: int, seconds: float = 1.0) -> RenderJob:
    samples = np.zeros(int(seconds * 16_000), np.float32)
    sampling = SamplingConfig(num_clip=9)
    return RenderJob(
        number=number,
        portrait_HWC=np.zeros((64, 64, 3), np.uint8),
        speech_N=samples,
        soundtrack=Path("speech.wav"),
        mix=Mix(np.ones(1, np.float32), 1.0, len(samples), 16_000),
        prompt="A person talks",
        timeline=make_timeline(sampling, len(samples)),
        sampling=sampling,
        live_path=Path("live.mp4"),
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def processes() -> Processes:
    return Processes()


@pytest.fixture
def dog(clock: Clock, processes: Processes) -> Watchdog:
    limits = Limits(start_s=60, silence_s=5, progress_s=20, ready_s=900)
    return Watchdog(len(RANKS), limits, processes.is_stopped, clock)


def beat(
    dog: Watchdog, clock: Clock, seconds: int, *, ranks: tuple[int, ...] = RANKS
) -> str | None:
    """Let time go by while ranks say that they live, and be asked; returns the last answer."""
    said = None
    for _ in range(seconds):
        clock.now += 1
        for rank in ranks:
            dog.heard(rank, status(rank, f"item of {rank}"))
        said = dog.complaint(RANKS)
    return said


def start(dog: Watchdog) -> None:
    for rank in RANKS:
        dog.heard(rank, Ready(rank, 1.0, 1.0))


def test_a_rank_may_take_long_to_say_its_first_word(dog: Watchdog, clock: Clock) -> None:
    assert beat(dog, clock, 60, ranks=()) is None
    assert beat(dog, clock, 1, ranks=()) == "rank 0 has said nothing for 60 s: it hangs"


def test_a_rank_that_is_stopped_before_its_first_word_is_not_waited_for_so_long(
    dog: Watchdog, clock: Clock, processes: Processes
) -> None:
    processes.stopped.add(1)
    assert beat(dog, clock, 5, ranks=()) is None
    said = beat(dog, clock, 1, ranks=())
    assert said == "rank 1 has said nothing for 5 s: its process is stopped"


def test_a_rank_that_was_stopped_for_a_moment_may_go_on(
    dog: Watchdog, clock: Clock, processes: Processes
) -> None:
    processes.stopped.add(1)
    assert beat(dog, clock, 4, ranks=()) is None
    processes.stopped.clear()
    assert beat(dog, clock, 56, ranks=()) is None


def test_a_rank_that_falls_silent_is_named(
    dog: Watchdog, clock: Clock, processes: Processes
) -> None:
    start(dog)
    said = beat(dog, clock, 6, ranks=(0,))
    assert said == "rank 1 has said nothing for 5 s: it hangs"
    processes.stopped.add(1)
    assert dog.complaint(RANKS) == "rank 1 has said nothing for 5 s: its process is stopped"


@pytest.mark.parametrize("away_s", [10, 3600])
def test_what_an_owner_that_was_stopped_could_not_hear_is_forgiven(
    dog: Watchdog, clock: Clock, away_s: int
) -> None:
    """As when both are stopped from a terminal, or their container is."""
    start(dog)
    dog.submitted(job(1))
    dog.heard(1, Progress(1, 12, "rendering"))
    assert beat(dog, clock, 1) is None
    clock.now += away_s
    assert dog.complaint(RANKS) is None
    assert beat(dog, clock, 14) is None
    assert beat(dog, clock, 10) == (
        "job 1 made no progress for 20 s (rank 0 item of 0, rank 1 item of 1)"
    )


def test_an_owner_that_is_always_slow_still_finds_a_silent_rank(
    dog: Watchdog, clock: Clock
) -> None:
    start(dog)
    clock.now += 8
    dog.heard(0, status(0))
    assert dog.complaint(RANKS) is None
    clock.now += 8
    dog.heard(0, status(0))
    assert dog.complaint(RANKS) == "rank 1 has said nothing for 5 s: it hangs"


def test_a_group_that_speaks_and_is_never_ready_is_complained_about(
    dog: Watchdog, clock: Clock
) -> None:
    dog.heard(0, Ready(0, 1.0, 1.0))
    assert beat(dog, clock, 900) is None
    assert beat(dog, clock, 1) == "rank 1 was not ready in 900 s"


def test_words_that_lie_unread_count(dog: Watchdog, clock: Clock) -> None:
    start(dog)
    clock.now += 100
    assert dog.complaint(quiet=()) is None


def test_an_idle_group_may_wait_for_ever(dog: Watchdog, clock: Clock) -> None:
    start(dog)
    assert beat(dog, clock, 500) is None


def test_a_job_without_progress_is_named_with_what_the_ranks_do(
    dog: Watchdog, clock: Clock
) -> None:
    start(dog)
    dog.submitted(job(3))
    dog.heard(1, Progress(3, 12, "rendering"))
    assert beat(dog, clock, 20) is None
    assert beat(dog, clock, 1) == (
        "job 3 made no progress for 20 s (rank 0 item of 0, rank 1 item of 1)"
    )


def test_long_speech_may_take_long_to_prepare(dog: Watchdog, clock: Clock) -> None:
    start(dog)
    dog.submitted(job(1, seconds=60))
    dog.heard(1, Progress(1, 0, "preparing"))
    assert beat(dog, clock, 600) is None
    assert beat(dog, clock, 30) is not None


@pytest.mark.parametrize("end", [Finished(1, 12, cancelled=False), Refused(1, "no")])
def test_a_job_that_ended_is_not_waited_for(
    dog: Watchdog, clock: Clock, end: Finished | Refused
) -> None:
    start(dog)
    dog.submitted(job(1))
    dog.heard(1, end)
    assert beat(dog, clock, 500) is None


def test_jobs_that_wait_while_the_group_starts_are_not_complained_about(
    dog: Watchdog, clock: Clock
) -> None:
    dog.submitted(job(1))
    assert beat(dog, clock, 500) is None
    start(dog)
    assert dog.complaint(RANKS) is None
