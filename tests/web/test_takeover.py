"""A group loses its job to another one and does not know it: neither file nor viewer may suffer."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from liveavatar.engine.fake import FakeGroup, Pace
from liveavatar.engine.identity import Identity
from liveavatar.engine.supervisor import Supervisor
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import ConfigError
from liveavatar.jobs.job import Job, JobState
from liveavatar.jobs.store import JobStore
from liveavatar.jobs.tables import JOBS
from liveavatar.media.live_file import complete_length, measure_live_file
from tests.patience import PATIENCE_S
from tests.unit.mp4_material import decode_video
from tests.web.live_server import SUPERVISOR, Installation, wait_until
from tests.web.test_supervisor import submit
from webui.live import LiveStreams

UNAWARE = SupervisorSettings(lease_s=3600, progress_s=3600)  # it asks the store for nothing


def supervisor(
    here: Installation, number: int, pace: Pace, settings: SupervisorSettings = SUPERVISOR
) -> Supervisor:
    identity = Identity(f"group {number} of a test", number, "this machine", shares=True)
    return Supervisor(here.store, here.spool, lambda: FakeGroup(pace), settings, identity=identity)


def frames_of(here: Installation, job: Job) -> int:
    live = here.spool.job(job.id).live
    if not live.exists() or not complete_length(live):
        return 0
    return measure_live_file(live).num_frames


def let_the_lease_run_out(data: Path, store: JobStore) -> None:
    engine = sa.create_engine(f"sqlite:///{data / 'jobs.db'}")
    with engine.begin() as connection:
        connection.execute(JOBS.update().values(lease_until=0.0))
    engine.dispose()
    assert store.requeue_expired("its machine was lost") == 1


def watch(here: Installation, job: Job) -> tuple[threading.Thread, list[bytes]]:
    """Follow a job's growing video as a viewer does, in a thread."""
    seen: list[bytes] = []

    async def follow() -> None:
        async for chunk in LiveStreams(here.store, here.spool).follow(job.id, 1, 0):
            seen.append(chunk)

    thread = threading.Thread(target=lambda: asyncio.run(follow()))
    thread.start()
    return thread, seen


@pytest.mark.parametrize("at_frames", [0, 24], ids=["before it begins", "while it renders"])
def test_who_lost_a_job_writes_into_a_file_that_nobody_sees(tmp_path: Path, at_frames: int) -> None:
    here = Installation(tmp_path)
    pace = Pace(load_s=0.05, prepare_s=0.02 if at_frames else 1.0, fps=60)
    loser = supervisor(here, 1, pace, UNAWARE)
    winner = supervisor(here, 2, Pace(load_s=0.05, prepare_s=0.02, fps=200))
    loser.start()
    with closing(here.store):
        try:
            job = submit(here, num_clip=3)
            viewer, seen = watch(here, job)
            wait_until(lambda: here.store.get(job.id).state is JobState.RUNNING, "it runs")
            wait_until(lambda: frames_of(here, job) >= at_frames, "frames")
            loser.drain()
            let_the_lease_run_out(here.data, here.store)
            winner.start()
            wait_until(lambda: here.store.get(job.id).state.has_ended, "it ends")
            wait_until(lambda: not loser.is_alive, "the loser gives up what it made")
            done, folder = here.store.get(job.id), here.spool.job(job.id)
            assert (done.state, done.attempt, done.frames) == (JobState.DONE, 2, 129)
            assert measure_live_file(folder.live).num_frames == 129
            assert len(decode_video(folder.video)) == 129
            viewer.join(PATIENCE_S)
            assert b"".join(seen) == folder.live.read_bytes()
        finally:
            loser.stop()
            winner.stop()


def test_groups_share_a_folder_and_nobody_has_it_for_himself_meanwhile(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    groups = [supervisor(here, number, Pace()) for number in (1, 2)]
    with closing(here.store):
        try:
            for group in groups:
                group.start()
            with pytest.raises(ConfigError, match=r"^data_dir: .* is served by another process"):
                here.supervisor.start()
        finally:
            for group in groups:
                group.stop()
