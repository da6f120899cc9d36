"""The supervisor over a group that draws: it dies, refuses, is stopped, and every job ends once."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from liveavatar.engine.fake import FakeGroup, Pace
from liveavatar.engine.group import Group
from liveavatar.engine.ladder import Ladder
from liveavatar.engine.supervisor import Supervisor
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import CheckpointError, ConfigError
from liveavatar.jobs.job import Job, JobState
from liveavatar.media.live_file import complete_length, measure_live_file
from tests.unit.mp4_material import decode_video
from tests.web.live_server import (
    PORTRAIT,
    PROMPT,
    QUICK,
    SPEECH,
    SUPERVISOR,
    Installation,
    wait_until,
)
from webui.service import Service
from webui.submission import Submission

SLOW = Pace(load_s=0.05, prepare_s=0.02, fps=12)  # a busy machine still finds it on its way


def submit(installation: Installation, num_clip: int = 1, tier: str = "fast") -> Job:
    return submit_to(installation.service, num_clip, tier)


def submit_to(service: Service, num_clip: int = 1, tier: str = "fast") -> Job:
    form = Submission(PORTRAIT, SPEECH, PROMPT, tier, num_clip=num_clip)
    return service.submit(form, "ann")


@contextmanager
def supervised(installation: Installation) -> Iterator[Supervisor]:
    installation.supervisor.start()
    try:
        yield installation.supervisor
    finally:
        installation.supervisor.stop()
        assert not installation.supervisor.is_alive
        installation.store.close()


def wait_for(installation: Installation, job: Job, *states: JobState) -> Job:
    def reached() -> bool:
        return installation.store.get(job.id).state in states

    wait_until(reached, f"{job.id} is {states}: {installation.store.get(job.id)}")
    return installation.store.get(job.id)


def wait_for_frames(installation: Installation, job: Job, frames: int = 12) -> None:
    wait_until(lambda: installation.store.get(job.id).frames >= frames, "frames")


def hurry(installation: Installation) -> None:
    """What happens on the way has happened."""
    installation.pace = QUICK
    for group in installation.groups:
        group.pace = QUICK


def document(installation: Installation) -> dict[str, object]:
    workers = installation.store.read_workers()
    return dict(workers[0].document) if workers else {"state": None}


def test_a_job_whose_group_dies_goes_on_in_the_same_file(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation):
        job = submit(installation, num_clip=3)
        wait_for_frames(installation, job)
        folder = installation.spool.job(job.id)
        before = folder.live.read_bytes()[: complete_length(folder.live)]
        installation.groups[0].die("rank 1 was killed by signal 9")
        hurry(installation)
        done = wait_for(installation, job, JobState.DONE)
        assert (done.attempt, done.take, done.frames) == (2, 1, 129)
        assert done.restart_note == "rank 1 was killed by signal 9"
        assert folder.live.read_bytes().startswith(before)
        assert not folder.resume.exists()
        assert len(decode_video(folder.video)) == 129
        said = document(installation)
        assert said["restarts"] == 1
        assert said["errors"][0]["message"] == "rank 1 was killed by signal 9"  # type: ignore[index]


def test_a_job_that_ends_three_groups_without_a_new_frame_fails_and_the_next_one_is_made(
    tmp_path: Path,
) -> None:
    installation = Installation(tmp_path, pace=Pace(load_s=0.05, prepare_s=0.5, fps=120))
    with supervised(installation):
        job = submit(installation)
        for attempt in range(3):
            wait_until(
                lambda attempt=attempt: (
                    installation.store.get(job.id).attempt == attempt + 1
                    and installation.store.get(job.id).state is JobState.RUNNING
                ),
                "the next attempt",
            )
            installation.groups[-1].die("rank 1 was killed by signal 9")
        failed = wait_for(installation, job, JobState.FAILED)
        assert failed.error == "rank 1 was killed by signal 9; it was tried 3 times"
        assert wait_for(installation, submit(installation), JobState.DONE).attempt == 1


def test_a_job_that_ends_its_group_is_made_once_more_at_a_smaller_tier(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation):
        job, other = submit(installation, 3, tier="balanced"), submit(installation)
        wait_for_frames(installation, job)
        installation.groups[0].die("rank 0 failed: out of memory on cpu", by_its_work=True)
        hurry(installation)
        done = wait_for(installation, job, JobState.DONE)
        assert (done.spec.tier, done.take, done.frames) == ("fast", 2, 129)
        assert done.spec.width * done.spec.height < job.spec.width * job.spec.height
        assert done.spec.notes[-1].code == "tier_lowered"
        folder = installation.spool.job(job.id)
        assert "out of memory" in folder.failure_log.read_text()
        assert len(decode_video(folder.video)) == 129
        assert wait_for(installation, other, JobState.DONE).spec.tier == "fast"
        assert len(installation.groups) == 2


def test_a_job_that_ends_two_groups_by_itself_fails_with_the_reason(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation):
        job = submit(installation, num_clip=3)
        for attempt in (1, 2):
            wait_until(
                lambda attempt=attempt: (
                    installation.store.get(job.id).attempt == attempt
                    and installation.store.get(job.id).stage == "rendering"
                ),
                "it renders",
            )
            installation.groups[-1].die("rank 1 failed: ZeroDivisionError()", by_its_work=True)
        failed = wait_for(installation, job, JobState.FAILED)
        hurry(installation)
        assert failed.error == "rank 1 failed: ZeroDivisionError(); it failed twice"
        assert wait_for(installation, submit(installation), JobState.DONE).attempt == 1
        assert len(installation.groups) == 3


def test_while_memory_is_short_the_next_video_is_made_smaller(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=Pace(load_s=0.05, prepare_s=0.02, fps=400))
    # The ranks of a group that draws say that they hold 1 GiB.
    settings = replace(SUPERVISOR, memory_threshold_bytes=2**29)
    installation.supervisor = Supervisor(
        installation.store,
        installation.spool,
        installation._make_group,
        settings,
        Ladder(installation.settings.tiers),
    )
    with supervised(installation):
        wait_until(lambda: len(document(installation).get("ranks", ())) == 4, "ranks have spoken")  # type: ignore[arg-type]
        job, behind = (submit(installation, tier="high") for _ in range(2))
        done = wait_for(installation, job, JobState.DONE)
        assert done.spec.tier == "balanced"
        assert "memory is short" in done.spec.notes[-1].message
        # Nothing is prepared beside it, which would take memory too.
        next_one = wait_for(installation, behind, JobState.DONE)
        assert next_one.started_at is not None
        assert done.finished_at is not None
        assert next_one.started_at >= done.finished_at
        lowest = wait_for(installation, submit(installation, tier="fast"), JobState.DONE)
        assert lowest.spec.tier == "fast"


def test_no_tier_above_a_ceiling_is_made(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.store.set_ceiling("fast", "gpu 0 holds 21500 MB")
    with supervised(installation):
        done = wait_for(installation, submit(installation, tier="high"), JobState.DONE)
        assert done.spec.tier == "fast"
        assert done.spec.notes[-1].message.endswith(": gpu 0 holds 21500 MB.")
        installation.store.set_ceiling(None, "")
        again = wait_for(installation, submit(installation, tier="balanced"), JobState.DONE)
        assert again.spec.tier == "balanced"


def test_while_the_disk_is_short_jobs_wait_and_what_runs_is_finished(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation) as supervisor:
        running = submit(installation, num_clip=3)
        wait_for_frames(installation, running)
        supervisor._settings = replace(SUPERVISOR, free_disk_bytes=2**60)
        waiting = submit(installation)
        hurry(installation)
        wait_for(installation, running, JobState.DONE)
        wait_until(
            lambda: "videos wait until there is room" in str(document(installation)["message"]),
            "it is said",
        )
        assert installation.store.get(waiting.id).state is JobState.QUEUED
        supervisor._settings = SUPERVISOR
        wait_for(installation, waiting, JobState.DONE)


def test_a_video_that_cannot_be_finished_for_a_moment_is_not_lost(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation):
        job = submit(installation)
        wait_for_frames(installation, job)
        in_the_way = installation.spool.job(job.id).video / "file"
        in_the_way.mkdir(parents=True)
        hurry(installation)
        wait_until(lambda: installation.store.get(job.id).frames >= job.spec.total_frames, "frames")
        time.sleep(1)
        assert installation.store.get(job.id).state is JobState.RUNNING
        in_the_way.rmdir()
        in_the_way.parent.rmdir()
        done = wait_for(installation, job, JobState.DONE, JobState.FAILED)
        assert (done.state, done.attempt) == (JobState.DONE, 1)
        assert len(decode_video(installation.spool.job(job.id).video)) == job.spec.total_frames


def test_resume_points_go_with_a_job_that_is_cancelled_while_it_waits_again(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    resume = []
    with supervised(installation):
        job = submit(installation, num_clip=4)
        wait_for_frames(installation, job)
        resume.append(installation.spool.job(job.id).resume)
        assert resume[0].exists()
    again = Installation(tmp_path, pace=SLOW)
    again.service.cancel(job.id)
    assert again.store.get(job.id).state is JobState.CANCELLED
    assert resume[0].exists()
    with supervised(again):
        wait_until(lambda: not resume[0].exists(), "its points are removed")


def test_videos_go_on_while_the_database_cannot_be_written(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation):
        job = submit(installation, num_clip=3)
        wait_for_frames(installation, job)
        # Another program holds the database for longer than a worker waits for it.
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            hurry(installation)
            live = installation.spool.job(job.id).live
            wait_until(lambda: measure_live_file(live).num_frames == 129, "all frames", 40)
            time.sleep(11)
            other.rollback()
        done = wait_for(installation, job, JobState.DONE)
        assert (done.attempt, done.frames) == (1, 129)
        assert len(installation.groups) == 1


def test_a_refused_job_fails_with_its_reason_and_the_group_goes_on(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with supervised(installation):
        wait_until(lambda: installation.groups, "a group")
        installation.groups[0].refuse_next("the speech holds no words")
        failed = wait_for(installation, submit(installation), JobState.FAILED)
        assert failed.error == "the speech holds no words"
        wait_for(installation, submit(installation), JobState.DONE)
        assert len(installation.groups) == 1


def test_an_input_that_is_gone_fails_its_job_only(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    lost, whole = submit(installation), submit(installation)
    installation.spool.job(lost.id).file(lost.spec.speech_name).unlink()
    with supervised(installation):
        failed = wait_for(installation, lost, JobState.FAILED)
        assert failed.error is not None
        assert failed.error.startswith("speech 'speech.wav' does not exist")
        wait_for(installation, whole, JobState.DONE)


def test_no_job_waits_in_a_group_behind_a_long_one(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=replace(SLOW, fps=24))
    installation.supervisor._settings = replace(SUPERVISOR, prepare_ahead_s=0.1)
    with supervised(installation):
        long, short = submit(installation), submit(installation)
        wait_for_frames(installation, long)
        assert installation.store.get(short.id).state is JobState.QUEUED
        wait_for(installation, short, JobState.DONE)


def test_while_one_job_renders_the_next_one_is_prepared(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=replace(SLOW, fps=40))
    with supervised(installation):
        jobs = [submit(installation) for _ in range(3)]
        wait_for_frames(installation, jobs[0])
        states = [installation.store.get(job.id) for job in jobs]
        assert [job.state.value for job in states] == ["running", "running", "queued"]
        assert [job.stage for job in states] == ["rendering", "preparing", ""]
        for job in jobs:
            wait_for(installation, job, JobState.DONE)


def test_stopping_gives_back_and_the_next_server_goes_on(tmp_path: Path) -> None:
    first = Installation(tmp_path, pace=SLOW)
    with supervised(first):
        running, waiting = submit(first, num_clip=3), submit(first)
        wait_for_frames(first, running)
    second = Installation(tmp_path, pace=QUICK)
    given_back = second.store.get(running.id)
    assert given_back.state is JobState.QUEUED
    assert given_back.restart_note == "the server was stopped"
    with supervised(second):
        assert wait_for(second, running, JobState.DONE).attempt == 2
        wait_for(second, waiting, JobState.DONE)


def test_what_a_killed_server_held_is_begun_again_at_once(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    job = submit(installation)
    # As a server that is killed leaves it: claimed, its lease long from over.
    assert installation.store.claim(installation.supervisor.name, lease_s=3600) is not None
    with supervised(installation):
        done = wait_for(installation, job, JobState.DONE)
    assert (done.attempt, done.restart_note) == (2, "the server was restarted")


def test_draining_finishes_what_runs_and_takes_nothing_new(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation) as supervisor:
        running = submit(installation)
        wait_for_frames(installation, running)
        supervisor.drain()
        wait_until(lambda: document(installation)["state"] == "draining", "draining is said")
        hurry(installation)
        late = submit(installation)
        wait_for(installation, running, JobState.DONE)
        wait_until(lambda: not supervisor.is_alive, "it ends by itself")
        assert document(installation)["state"] == "stopped"
        assert installation.store.get(late.id).state is JobState.QUEUED


def test_one_data_folder_has_one_supervisor(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    with supervised(installation):
        second = Installation(tmp_path)
        with pytest.raises(ConfigError, match=r"^data_dir: .* is served by another process"):
            second.supervisor.start()
        second.store.close()


def test_loading_is_told_in_per_cent_and_jobs_wait_for_it(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=Pace(load_s=1.0, fps=400))
    seen: list[tuple[object, object]] = []
    with supervised(installation):
        job = submit(installation)

        def ready() -> bool:
            said = document(installation)
            if said["state"] == "loading":
                seen.append((said["load_percent"], said["message"]))
                assert installation.store.get(job.id).state is JobState.QUEUED
            return said["state"] == "ready"

        wait_until(ready, "ready")
        wait_for(installation, job, JobState.DONE)
        ranks = document(installation)["ranks"]
        assert [rank["role"] for rank in ranks] == ["stage 0", "stage 1", "stage 2", "media"]  # type: ignore[attr-defined, index]
    percents = [percent for percent, _ in seen]
    assert percents == sorted(percents)  # type: ignore[type-var]
    assert len(set(percents)) > 3
    assert all(message == f"loading model {percent} %" for percent, message in seen)


def failing(cause: str) -> Callable[[], Group]:
    def make() -> FakeGroup:
        raise CheckpointError(cause)

    return make


def test_a_group_that_never_starts_is_tried_ever_more_slowly_and_said_to_have_failed(
    tmp_path: Path,
) -> None:
    installation = Installation(tmp_path)
    settings = SupervisorSettings(
        first_backoff_s=0.05, longest_backoff_s=0.4, failures_until_failed=3, status_s=0.1
    )
    installation.supervisor = Supervisor(
        installation.store, installation.spool, failing("config.json is missing"), settings
    )
    began = time.monotonic()
    with supervised(installation):
        wait_until(lambda: document(installation)["state"] == "restarting", "restarting")
        wait_until(lambda: document(installation)["state"] == "failed", "failed")
        assert time.monotonic() - began >= 0.05 + 0.1
        said = document(installation)
        assert str(said["message"]).startswith("config.json is missing; starting again in ")
        assert submit(installation).state is JobState.QUEUED


def test_cancelling_a_job_that_is_prepared_and_one_that_renders(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    with supervised(installation):
        jobs = [submit(installation, num_clip=3) for _ in range(2)]
        wait_for_frames(installation, jobs[0])
        for job in reversed(jobs):
            installation.store.request_cancel(job.id)
        first, second = (wait_for(installation, job, JobState.CANCELLED) for job in jobs)
        assert 12 <= first.frames < 129
        assert second.frames < 129
        live = installation.spool.job(first.id).live
        assert measure_live_file(live).num_frames == first.frames
        assert len(installation.groups) == 1


def test_a_job_taken_by_another_worker_is_dropped(tmp_path: Path) -> None:
    installation = Installation(tmp_path, pace=SLOW)
    installation.supervisor = Supervisor(
        installation.store,
        installation.spool,
        installation._make_group,
        SupervisorSettings(lease_s=2.0, status_s=0.1),
    )
    with supervised(installation):
        job = submit(installation, num_clip=3)
        wait_for_frames(installation, job)
        assert SUPERVISOR.lease_s > 2
        # As if this worker had been stopped for long and another one had taken over.
        assert installation.store.requeue_of(installation.supervisor.name, "stalled") == 1
        other = installation.store.claim("elsewhere", 60)
        assert other is not None
        wait_until(lambda: document(installation)["jobs"] == [], "the job is dropped")
        now = installation.store.get(job.id)
        assert (now.state, now.attempt) == (JobState.RUNNING, 2)
