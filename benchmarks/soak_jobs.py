"""Is a job lost, or anything leaked, while jobs are cancelled and processes are killed?

`python -m benchmarks.soak --jobs 200 --minutes 30` runs this: the application with the demo model
gets short jobs one after another, some are cancelled at random moments, and now and then a rank or
the whole server is killed and started again. With `--test-picture` the group draws instead of
rendering: there are no ranks to kill, and a video takes a second, so that what stays of each shows
soon.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.application import ENDED, Application, open_files, resident_mib

CONFIG = """
[limits]
jobs_per_owner = 50
jobs_in_all = 100

[tiers.fast]
size = "64*64"
infer_frames = 24
sample_steps = 2
"""
ALLOWED_GROWTH = 1.05
_CANCELLED_SHARE = 0.15
_WAITING = 3
_END_S = 300.0


@dataclass
class Tally:
    """What happened.

    Attributes:
        states: jobs by how they ended.
        lost: jobs that did not end, or whose video lacks frames.
        rank_kills, server_kills: what was killed.
        resident_mib: of the server, after each job of its last life.
        open_files: of the server likewise.
    """

    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    rank_kills: int = 0
    server_kills: int = 0
    resident_mib: list[float] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)


class Soak:
    """One run.

    Args:
        application: not started yet.
        num_jobs: how many jobs.
        minutes: over how long they are spread.
        seed: of what is cancelled and killed when.
    """

    def __init__(
        self, application: Application, num_jobs: int, minutes: float, seed: int = 0
    ) -> None:
        self._app = application
        self._num_jobs = num_jobs
        self._seconds = 60 * minutes
        self._random = random.Random(seed)
        self._submitted: dict[str, float | None] = {}
        self._counted: set[str] = set()
        self.tally = Tally()

    def run(self) -> None:
        """Submit, cancel and kill until all jobs have ended."""
        self._app.start()
        began = time.monotonic()
        kills = self._planned_kills(began)
        while len(self._submitted) < self._num_jobs or self._open():
            now = time.monotonic()
            if kills and now > kills[0][0]:
                kills.pop(0)[1]()
            due = self._num_jobs * (now - began) / self._seconds
            waiting = self._open()
            if len(self._submitted) < min(due, self._num_jobs) and len(waiting) < _WAITING:
                self._submit()
            self._cancel_what_is_due(now)
            if now - began > self._seconds + _END_S:
                break
            time.sleep(0.2)

    def _planned_kills(self, began: float) -> list[tuple[float, Callable[[], None]]]:
        """A rank about every minute and a half, the server after an eighth and a quarter."""
        ranks = max(2, round(self._seconds / 90))
        times = [began + self._random.uniform(0.05, 0.9) * self._seconds for _ in range(ranks)]
        kills: list[tuple[float, Callable[[], None]]] = [(when, self._kill_rank) for when in times]
        kills += [(began + part * self._seconds, self._kill_server) for part in (0.125, 0.25)]
        return sorted(kills, key=lambda kill: kill[0])

    def _submit(self) -> None:
        job_id = self._app.submit(seed=str(len(self._submitted)))
        cancelled = self._random.random() < _CANCELLED_SHARE
        wait_s = self._random.uniform(0, 6)
        self._submitted[job_id] = time.monotonic() + wait_s if cancelled else None

    def _cancel_what_is_due(self, now: float) -> None:
        for job_id, when in self._submitted.items():
            if when is not None and now > when:
                self._app.client.post(f"/api/jobs/{job_id}/cancel")
                self._submitted[job_id] = None

    def _open(self) -> list[str]:
        """Jobs that have not ended; those that have are counted, once."""
        still = []
        for view in self._app.client.get("/api/jobs").json():
            if view["state"] not in ENDED:
                still.append(view["id"])
            elif view["finished_at"] and view["id"] not in self._counted:
                self._count(view)
        return still

    def _count(self, view: dict[str, Any]) -> None:
        self._counted.add(view["id"])
        self.tally.states[view["state"]] += 1
        if view["state"] == "failed" or (
            view["state"] == "done" and view["frames"] != view["total_frames"]
        ):
            self.tally.lost.append(f"{view['id']}: {view['state']} {view['error']}")
        self.tally.resident_mib.append(round(resident_mib(self._app.pid), 1))
        self.tally.open_files.append(open_files(self._app.pid))

    def _kill_rank(self) -> None:
        ranks = self._app.ranks()
        if ranks:
            os.kill(self._random.choice(ranks), signal.SIGKILL)
            self.tally.rank_kills += 1

    def _kill_server(self) -> None:
        self._app.kill()
        self.tally.server_kills += 1
        self.tally.resident_mib, self.tally.open_files = [], []
        if left := self._app.left_over():
            self.tally.lost.append(f"processes {left} outlived their server")
        self._app.start()


def measure(folder: Path, num_jobs: int, minutes: float, model: Sequence[str]) -> dict[str, Any]:
    """Run a soak in a folder of its own; returns what happened and what is wrong.

    Args:
        folder: empty.
        num_jobs: how many jobs.
        minutes: over how long they are spread.
        model: options of the application that choose it.
    """
    with Application(folder, CONFIG, tuple(model)) as app:
        soak = Soak(app, num_jobs, minutes)
        soak.run()
        tally, missing = soak.tally, num_jobs - sum(soak.tally.states.values())
        status = app.stop()
        left = app.left_over()
    faults = list(tally.lost)
    if missing:
        faults.append(f"{missing} jobs did not end")
    if status or left:
        faults.append(f"the server ended with status {status} and left processes {left}")
    temporary = sorted(path.name for path in app.temporary.iterdir() if path.name != "gradio")
    uploads = sorted(path.name for path in (app.data / "uploads").iterdir())
    points = sorted(str(path) for path in app.data.glob("jobs/*/resume"))
    if temporary or uploads or points:
        faults.append(f"files are left: {temporary + uploads + points}")
    growth = _growth(tally.resident_mib)
    if growth > ALLOWED_GROWTH:
        faults.append(f"the server's memory grew by a factor of {growth:.3f}")
    if _growth([float(count) for count in tally.open_files]) > ALLOWED_GROWTH:
        faults.append(f"the server's open files grew: {tally.open_files}")
    report = asdict(tally) | {"states": dict(tally.states), "growth": growth, "faults": faults}
    return {"benchmark": "soak", "jobs": num_jobs, "minutes": minutes} | report


def _growth(samples: list[float]) -> float:
    """Median of the last third over that of the second; 1 where there are too few."""
    third = len(samples) // 3
    if third < 3:
        return 1.0
    return round(statistics.median(samples[-third:]) / statistics.median(samples[third:-third]), 4)
