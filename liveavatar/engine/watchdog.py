"""Notices what no broken pipe tells: a rank that is stopped, and work that does not go on.

Plain bookkeeping over the messages of a group; no threads, no processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from liveavatar.config import SPEECH_RATE_HZ
from liveavatar.engine.messages import (
    Event,
    Finished,
    Progress,
    RankStatus,
    Ready,
    Refused,
    RenderJob,
)

PREPARING_TIMES_REAL_TIME = 10.0
"""Encoding speech may take so many times its length before it is taken to be stuck."""


ASKED_EVERY_S = 5.0
"""An owner that asks more seldom was stopped itself, or its machine was: it could not hear."""


@dataclass(frozen=True)
class Limits:
    """How long a group may be quiet, seconds.

    Attributes:
        start_s: a rank, from its start to its first word, while the system lets it run.
        silence_s: a rank, from one word to the next; each says something every second. One that is
            stopped, as by SIGSTOP, is given no longer for its first word.
        progress_s: all ranks together, from one block of an open job to the next.
        ready_s: all ranks, from their start until they are ready.
    """

    start_s: float
    silence_s: float
    progress_s: float
    ready_s: float


class Watchdog:
    """Judges a group by what it says, as long as its owner listens.

    Args:
        num_ranks: ranks of the group.
        limits: when to complain.
        is_stopped: whether the system keeps a rank's process from running; asked of a rank that
            has been silent for too long.
        now: a clock that never goes back, seconds.
    """

    def __init__(
        self,
        num_ranks: int,
        limits: Limits,
        is_stopped: Callable[[int], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._is_stopped = is_stopped
        self._now = now
        self._began = self._asked = now()
        self._heard = [now()] * num_ranks
        self._waits = [limits.start_s] * num_ranks
        self._starting = set(range(num_ranks))
        self._jobs: dict[int, float] = {}
        self._moved = now()
        self._status: dict[int, RankStatus] = {}

    def submitted(self, job: RenderJob) -> None:
        """Note that a job was handed over."""
        if not self._jobs:
            self._moved = self._now()
        preparing_s = PREPARING_TIMES_REAL_TIME * len(job.speech_N) / SPEECH_RATE_HZ
        self._jobs[job.number] = self._limits.progress_s + preparing_s

    def heard(self, rank: int, message: Event) -> None:
        """Note a message of a rank."""
        self._heard[rank] = self._now()
        self._waits[rank] = self._limits.silence_s
        if isinstance(message, Ready):
            self._starting.discard(rank)
            self._moved = self._now()
        elif isinstance(message, RankStatus):
            self._status[rank] = message
        elif isinstance(message, Progress | Finished | Refused):
            self._moved = self._now()
            if isinstance(message, Progress) and message.frames:
                self._jobs[message.number] = self._limits.progress_s
            elif not isinstance(message, Progress):
                self._jobs.pop(message.number, None)

    def complaint(self, quiet: Collection[int]) -> str | None:
        """What is wrong, if something is.

        Args:
            quiet: ranks of which no message lies unread.
        """
        self._forgive_what_was_not_heard()
        silences = (self._silence_of(rank) for rank in sorted(quiet))
        if silence := next(filter(None, silences), None):
            return silence
        if self._starting:
            return self._lateness()
        if not self._jobs or len(quiet) < len(self._heard):
            return None
        allowed = max(self._jobs.values())
        if self._now() <= self._moved + allowed:
            return None
        doing = ", ".join(
            f"rank {rank} {status.item or 'waits'}" for rank, status in sorted(self._status.items())
        )
        number = min(self._jobs)
        return f"job {number} made no progress for {allowed:.0f} s ({doing})"

    def _forgive_what_was_not_heard(self) -> None:
        """Let time stand still for the ranks while their owner was away."""
        now = self._now()
        away_s = max(0.0, now - self._asked - ASKED_EVERY_S)
        self._asked = now
        if away_s:
            self._heard = [min(now, heard + away_s) for heard in self._heard]
            self._began, self._moved = self._began + away_s, min(now, self._moved + away_s)

    def _lateness(self) -> str | None:
        if self._now() <= self._began + self._limits.ready_s:
            return None
        return not_ready(self._starting, self._limits.ready_s)

    def _silence_of(self, rank: int) -> str | None:
        """What is wrong with a rank of which no message lies unread."""
        silent_s = self._now() - self._heard[rank]
        if silent_s <= self._limits.silence_s:
            return None
        stopped = self._is_stopped(rank)
        allowed = self._limits.silence_s if stopped else self._waits[rank]
        if silent_s <= allowed:
            return None
        cause = "its process is stopped" if stopped else "it hangs"
        return f"rank {rank} has said nothing for {allowed:.0f} s: {cause}"


def not_ready(ranks: Collection[int], timeout_s: float) -> str:
    """Say which ranks were not ready in time."""
    names = ", ".join(map(str, sorted(ranks)))
    were = f"rank {names} was" if len(ranks) == 1 else f"ranks {names} were"
    return f"{were} not ready in {timeout_s:.0f} s"
