"""When a waiting job is likely to begin: by what is ahead of it, and what the groups have to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from liveavatar.jobs.ability import Ability
from liveavatar.jobs.job import Job, JobState
from liveavatar.jobs.store import JobStore

_KEPT_S = 1.0


@dataclass(frozen=True)
class Outlook:
    """What a waiting job may expect.

    Attributes:
        position: its place among the jobs that its groups take, 1 for the next.
        starts_in_s: seconds until it begins; None while no group that can make it takes jobs.
        is_makeable: False while groups take jobs, but none of them can make this one.
    """

    position: int
    starts_in_s: float | None
    is_makeable: bool = True


@dataclass(frozen=True)
class GroupLoad:
    """A worker group that takes jobs: what it can make, GPU seconds of what it holds."""

    ability: Ability
    seconds_left: float


class Forecast:
    """Looks ahead for the jobs of a store; safe from any thread.

    Args:
        store: which.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._groups: list[GroupLoad] = []
        self._read_at = -_KEPT_S

    def outlook(self, job: Job) -> Outlook | None:
        """What a job may expect; None when it does not wait."""
        if job.state is not JobState.QUEUED:
            return None
        pixels = job.spec.width * job.spec.height
        groups = self._known()
        able = [each for each in groups if each.ability.includes(job.spec.tier, pixels)]
        ahead = self._store.ahead_of(job, _tiers_of(able))
        starts_in_s = wait_s([each.seconds_left for each in able], ahead.seconds)
        return Outlook(ahead.jobs + 1, starts_in_s, bool(able) or not groups)

    def _known(self) -> list[GroupLoad]:
        """The groups, as they were a second ago at most: many viewers ask."""
        with self._lock:
            if time.monotonic() - self._read_at >= _KEPT_S:
                self._groups = group_loads(self._store, time.time())
                self._read_at = time.monotonic()
            return self._groups


def group_loads(store: JobStore, now: float) -> list[GroupLoad]:
    """All groups that take jobs at `now`, UTC epoch seconds."""
    left = store.seconds_left()
    return [
        GroupLoad(worker.ability, left.get(worker.worker, 0.0))
        for worker in store.read_workers()
        if worker.claims and worker.is_heard(now)
    ]


def wait_s(groups_left: Sequence[float], ahead_s: float) -> float | None:
    """Seconds until one of the groups has done its part of what is ahead; None without groups.

    Work is poured into the groups like water into a vessel with steps: the one that is free first
    takes first, and all that are in it end together.

    Args:
        groups_left: for each group, seconds of what it holds.
        ahead_s: seconds of what is to be claimed before.
    """
    level, poured = None, ahead_s
    steps = sorted(groups_left)
    for count, step in enumerate(steps, start=1):
        following = steps[count] if count < len(steps) else float("inf")
        level = step + poured / count
        if level <= following:
            break
        poured -= (following - step) * count
    return level


def _tiers_of(groups: Sequence[GroupLoad]) -> frozenset[str] | None:
    """Tiers that these groups make between them; None for all."""
    if not groups:
        return None
    tiers: frozenset[str] = frozenset()
    for each in groups:
        if each.ability.tiers is None:
            return None
        tiers |= each.ability.tiers
    return tiers
