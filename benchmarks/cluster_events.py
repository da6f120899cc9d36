"""Worker groups that serve a real job store by a clock that is turned by hand.

Every job is submitted, claimed, given back and finished through `JobStore`, as the application and
its supervisors do it; only rendering is left out, and takes its time on the simulation's clock.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster_load import Arrival
from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.jobs.ability import EVERYTHING, Ability
from liveavatar.jobs.job import Claim, Job, JobState
from liveavatar.jobs.store import JobStore, sqlite_url

PAUSE_S = 2.0
"""Between the last frame of a job and the first of the next."""

SMALL = Ability(frozenset({"fast"}))
_LEASE_S = 1e9
_BEGAN = 1_700_000_000.0
_LIVES = 2**32


@dataclass(frozen=True)
class Cluster:
    """The groups.

    Attributes:
        groups: how many.
        small: share of them that make the tier "fast" only.
        fps: frames per second at each tier.
        mtbf_s: mean time between failures of one group; 0 for none.
        repair_s: how long one that failed is away.
    """

    groups: int
    small: float
    fps: dict[str, float]
    mtbf_s: float
    repair_s: float

    def ability(self, group: int) -> Ability:
        """What a group makes."""
        return SMALL if group < round(self.small * self.groups) else EVERYTHING


@dataclass
class Record:
    """What became of a job; times are seconds from the beginning, -1 for not yet."""

    arrival: Arrival
    began: float = -1.0
    ended: float = -1.0
    ends: int = 0


@dataclass
class Outcome:
    """What a run showed.

    Attributes:
        records: of all jobs, by id.
        claim_s, in_vain_s: how long looks at the queue took that found a job, and none.
        claim_cpu_s: what the former took of a processor, whatever else the machine does.
        busy_s, away_s: over all groups.
        failures: of groups.
        owners_had: when half of all GPU seconds had been spent, those of every owner who had had
            a job waiting from the beginning to then.
    """

    records: dict[str, Record] = field(default_factory=dict)
    claim_s: list[float] = field(default_factory=list)
    claim_cpu_s: list[float] = field(default_factory=list)
    in_vain_s: list[float] = field(default_factory=list)
    busy_s: float = 0.0
    away_s: float = 0.0
    failures: int = 0
    owners_had: list[float] = field(default_factory=list)


class Simulation:
    """One run.

    Args:
        arrivals: what is submitted, in the order of time.
        cluster: the groups.
        folder: where the database lies.
        seed: of the failures.
    """

    def __init__(
        self, arrivals: list[Arrival], cluster: Cluster, folder: Path, seed: int = 0
    ) -> None:
        self.now = 0.0
        self.outcome = Outcome()
        self._arrivals = arrivals
        self._cluster = cluster
        self._store = JobStore(sqlite_url(folder / "jobs.db"), now=lambda: _BEGAN + self.now)
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, str, int]] = []
        self._idle = dict.fromkeys(range(cluster.groups))
        self._holds: dict[int, tuple[Claim, Job, float]] = {}
        self._life = [0] * cluster.groups
        self._had: dict[str, float] = defaultdict(float)
        asked_s = sum(self._takes_s(each.spec.tier, each.spec.total_frames) for each in arrivals)
        self._half_s = asked_s / 2

    def run(self) -> Outcome:
        """Go on until every job has ended."""
        for index, arrival in enumerate(self._arrivals):
            self._at(arrival.at, "submit", index)
        if self._cluster.mtbf_s:
            for group in range(self._cluster.groups):
                self._plan_failure(group)
        left = len(self._arrivals)
        while left:
            self.now, _, what, which = heapq.heappop(self._events)
            if what == "submit":
                self._submit(self._arrivals[which])
            elif what == "fail":
                self._fail(which)
            elif what == "repaired":
                self._claim(which)
            else:
                left -= self._end(*divmod(which, _LIVES))
        self._store.close()
        return self.outcome

    def _at(self, when: float, what: str, which: int) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what, which))

    def _submit(self, arrival: Arrival) -> None:
        job = self._store.submit(arrival.spec, None)
        self.outcome.records[job.id] = Record(arrival)
        self._wake(job)

    def _wake(self, job: Job) -> None:
        """Groups without work look all the time: here, the first that can make it does."""
        pixels = job.spec.width * job.spec.height
        for group in self._idle:
            if self._cluster.ability(group).includes(job.spec.tier, pixels):
                self._claim(group)
                return

    def _claim(self, group: int) -> None:
        self._idle.pop(group, None)
        began, cpu_began = time.perf_counter(), time.thread_time()
        taken = self._store.claim(f"group {group}", _LEASE_S, self._cluster.ability(group))
        took_s, cpu_s = time.perf_counter() - began, time.thread_time() - cpu_began
        if taken is None:
            self.outcome.in_vain_s.append(took_s)
            self._idle[group] = None
            return
        self.outcome.claim_s.append(took_s)
        self.outcome.claim_cpu_s.append(cpu_s)
        claim, job = taken
        record = self.outcome.records[job.id]
        if record.began < 0:
            record.began = self.now
        self._life[group] += 1
        self._holds[group] = (claim, job, self.now)
        takes_s = self._takes_s(job.spec.tier, job.spec.total_frames - job.frames)
        self._at(self.now + takes_s, "end", group * _LIVES + self._life[group])

    def _end(self, group: int, life: int) -> int:
        """A job ends, unless its group failed before; how many ended."""
        if life != self._life[group] or group not in self._holds:
            return 0
        claim, job, _ = self._release(group)
        self._record_progress(claim, job, job.spec.total_frames)
        self._store.finish(claim, JobState.DONE)
        record = self.outcome.records[job.id]
        record.ended, record.ends = self.now, record.ends + 1
        self._claim(group)
        return 1

    def _fail(self, group: int) -> None:
        self._plan_failure(group)
        self._idle.pop(group, None)
        self._at(self.now + self._cluster.repair_s, "repaired", group)
        self.outcome.failures += 1
        self.outcome.away_s += self._cluster.repair_s
        if group in self._holds:
            claim, job, began = self._release(group)
            made = max(0.0, self.now - began - PAUSE_S) * self._cluster.fps[job.spec.tier]
            whole = int(made) // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
            self._record_progress(claim, job, job.frames + whole)
            self._wake(self._store.requeue(claim, "its group failed", counts=False))

    def _release(self, group: int) -> tuple[Claim, Job, float]:
        claim, job, began = self._holds.pop(group)
        self.outcome.busy_s += self.now - began
        self._had[job.spec.owner] += self.now - began
        if not self.outcome.owners_had and self.outcome.busy_s >= self._half_s:
            self.outcome.owners_had = self._had_by_owners()
        return claim, job, began

    def _takes_s(self, tier: str, frames: int) -> float:
        return PAUSE_S + frames / self._cluster.fps[tier]

    def _record_progress(self, claim: Claim, job: Job, frames: int) -> None:
        fps = self._cluster.fps[job.spec.tier]
        self._store.record_progress(
            claim, frames=frames, stage="rendering", fps=fps, first_frame_s=PAUSE_S
        )

    def _plan_failure(self, group: int) -> None:
        until = self._random.expovariate(1 / self._cluster.mtbf_s) + self._cluster.repair_s
        self._at(self.now + until, "fail", group)

    def _had_by_owners(self) -> list[float]:
        had = dict(self._had)
        for _, job, began in self._holds.values():
            had[job.spec.owner] = had.get(job.spec.owner, 0.0) + self.now - began
        waiting = {
            record.arrival.spec.owner
            for record in self.outcome.records.values()
            if record.began < 0 and record.arrival.at == 0
        }
        return [had.get(owner, 0.0) for owner in sorted(waiting)]
