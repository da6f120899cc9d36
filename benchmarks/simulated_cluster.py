"""A Ray cluster of simulated machines on this one, and jobs for the groups on them.

The tests and the benchmark of the cluster use it: raylets and groups are real, the machines share
one host.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import sqlalchemy as sa
from ray.cluster_utils import Cluster

from benchmarks.application import PORTRAIT, PROMPT, SPEECH
from liveavatar.cluster.order import Order, Share
from liveavatar.cluster.pool import Pool
from liveavatar.config import SamplingConfig
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import DeadlineError
from liveavatar.jobs.copies import Copies
from liveavatar.jobs.job import Job, JobSpec, JobState
from liveavatar.jobs.mirror import open_mirror
from liveavatar.jobs.queue_limits import QueueLimits
from liveavatar.jobs.spool import JobFolder, Spool
from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.jobs.tables import JOBS
from liveavatar.plan.tiers import Tier
from liveavatar.request import SizeOption

WAIT_S = 180.0

_LIMITS = QueueLimits(per_owner=1000, in_all=1000)
_STORE_BYTES = 80 * 2**20
# A machine that is gone is noticed within seconds instead of half a minute.
_HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 5,
}


class Machines:
    """Machines that come and go; each has room for one group on the CPU."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "node_name": "head", "_system_config": _HEALTH}
        small = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | small)
        self._nodes: dict[str, Any] = {}
        self.address: str = self._cluster.address

    def add(self, name: str) -> None:
        """Let a machine join."""
        self._nodes[name] = self._cluster.add_node(
            num_cpus=1, node_name=name, object_store_memory=_STORE_BYTES, wait=False
        )

    def ensure(self, number: int) -> None:
        """Let machines join until so many are there."""
        for name in map("machine-{}".format, range(number - len(self._nodes))):
            self.add(name)

    def kill(self, name: str) -> None:
        """Take a machine away, as a power cut does."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def close(self) -> None:
        """End all."""
        ray.shutdown()
        self._cluster.shutdown()


class Site:
    """One installation on a cluster: store, spool, pool and what its groups serve."""

    def __init__(self, folder: Path, pool: Pool, order: Order) -> None:
        self.folder, self.pool, self.order = folder, pool, order
        self.store = JobStore(order.database)
        mirror = open_mirror(order.storage) if order.storage else None
        self.spool = Spool(order.data_dir, mirror=mirror)
        self._copies = Copies(self.store, self.spool, mirror) if mirror else None

    def submit(self, frames: int = 24, **changed: Any) -> Job:
        """Queue a video of the example, 64 x 64 pixels; `changed` replaces what its spec says."""
        upload = self.spool.new_upload()
        shutil.copyfile(PORTRAIT, upload / "portrait.png")
        shutil.copyfile(SPEECH, upload / "speech.wav")
        sampling = SamplingConfig(num_clip=-(-frames // 24), infer_frames=24, num_steps=2, seed=7)
        wanted = JobSpec(
            owner="ann",
            title="Maya",
            prompt=PROMPT,
            tier="fast",
            width=64,
            height=64,
            sampling=sampling,
            total_frames=frames,
            portrait_name="portrait.png",
            speech_name="speech.wav",
        )
        self.spool.adopt(upload, upload.name)
        return self.store.submit(replace(wanted, **changed), _LIMITS, upload.name)

    def folder_of(self, job: Job) -> JobFolder:
        """Where a job's files lie."""
        return self.spool.job(job.id)

    def video_of(self, job: Job) -> Path:
        """The finished video, as a web server finds it."""
        path = self.folder_of(job).video
        return self._copies.fetch(self.now(job), path) if self._copies else path

    def now(self, job: Job) -> Job:
        """A job as it is now."""
        return self.store.get(job.id)

    def wait_done(self, *jobs: Job, timeout_s: float = WAIT_S) -> list[Job]:
        """Wait until jobs are done and return them; RuntimeError when one ends otherwise."""
        wait(lambda: all(self.now(job).state.has_ended for job in jobs), "jobs end", timeout_s)
        found = [self.now(job) for job in jobs]
        if any(job.state is not JobState.DONE for job in found):
            raise RuntimeError(f"not all jobs are done: {found}")
        return found

    def makers(self) -> dict[str, str]:
        """Which worker holds or made each job, by the job's id."""
        engine = sa.create_engine(self.order.database)
        with engine.connect() as connection:
            rows = connection.execute(sa.select(JOBS.c.id, JOBS.c.worker)).all()
        engine.dispose()
        return {row.id: row.worker for row in rows}

    def node_of(self, job: Job) -> str:
        """Machine on which a job is rendered."""
        said = {worker.worker: worker.document for worker in self.store.read_workers()}
        return str(said[self.makers()[job.id]]["node"])

    def wait_ready(self, number: int) -> None:
        """Wait until so many groups, and no more, render."""
        wait(lambda: self.states().count("ready") == number, f"{number} groups are ready")

    def states(self) -> list[str]:
        """What all groups say, by their number."""
        return [report.state for report in self.pool.state()]


@contextmanager
def site(
    folder: Path,
    pool: Pool,
    model: str | None = None,
    database: str | None = None,
    storage: str | None = None,
) -> Iterator[Site]:
    """An installation whose groups end with the context; by default with SQLite in its folder.

    With a storage, its groups share nothing else.
    """
    order = Order(
        database=database or sqlite_url(folder / "jobs.db"),
        data_dir=folder,
        model=model,
        adapter=None,
        tiers=(Tier("fast", SizeOption(64, 64), SamplingConfig(infer_frames=24, num_steps=2)),),
        supervising=SupervisorSettings(lease_s=3.0, status_s=0.5),
        storage=storage,
        share=Share(gpus=0, cpus=1),
    )
    pool.set_order(order)
    made = Site(folder, pool, order)
    with closing(made.store):
        try:
            yield made
        finally:
            pool.stop()


def wait(condition: Callable[[], bool], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait until something is so; DeadlineError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineError(f"timed out: {what}")
        time.sleep(0.1)
