"""The store: nothing is lost, nothing is done twice, a lost lease changes nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from liveavatar.errors import (
    JobError,
    LeaseLostError,
    QueueFullError,
    StoreUnavailableError,
    UnknownJobError,
)
from liveavatar.jobs.ceiling import Ceiling, one_lower
from liveavatar.jobs.costs import TierSpeed
from liveavatar.jobs.job import MAX_TRIES, Claim, Job, JobState
from liveavatar.jobs.queue_limits import QueueLimits
from liveavatar.jobs.store import JobStore, new_job_id
from liveavatar.plan.tiers import TIERS
from tests.patience import PATIENCE_S
from tests.unit.job_material import LIMITS, new_store, spec

ROOT = Path(__file__).resolve().parents[2]


def claimed(store: JobStore, worker: str = "w", lease_s: float = 60) -> tuple[Claim, Job]:
    taken = store.claim(worker, lease_s)
    assert taken is not None
    return taken


def test_a_job_comes_back_as_it_was_submitted(store: JobStore) -> None:
    before = time.time()
    job = store.submit(spec(idempotency_key="k"), LIMITS)
    assert job.spec == spec(idempotency_key="k")
    assert (job.state, job.stage, job.frames, job.attempt) == (JobState.QUEUED, "", 0, 0)
    assert (job.error, job.fps, job.started_at, job.finished_at) == (None, None, None, None)
    assert before <= job.created_at <= time.time()
    assert not job.cancel_requested
    assert store.get(job.id) == job
    assert len(job.id) == 32
    assert len(job.share_token) == 32


def test_jobs_are_claimed_in_order_each_once(store: JobStore) -> None:
    ids = [store.submit(spec(title=str(n)), LIMITS).id for n in range(3)]
    assert [store.ahead_of(store.get(job_id)).jobs for job_id in ids] == [0, 1, 2]
    taken = [claimed(store)[1] for _ in range(3)]
    assert [job.id for job in taken] == ids
    assert store.claim("w", 60) is None
    assert {job.state for job in taken} == {JobState.RUNNING}
    assert {job.attempt for job in taken} == {1}


def test_of_many_threads_each_job_goes_to_one(store: JobStore) -> None:
    ids = {store.submit(spec(), LIMITS).id for _ in range(20)}
    got: list[str] = []

    def work() -> None:
        while (taken := store.claim("w", 60)) is not None:
            got.append(taken[1].id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == 20
    assert set(got) == ids


def test_progress_and_the_end_are_kept(store: JobStore) -> None:
    job = store.submit(spec(), LIMITS)
    claim, _ = claimed(store)
    store.record_progress(claim, frames=12, stage="rendering", fps=30.0, first_frame_s=0.5)
    now = store.get(job.id)
    assert (now.frames, now.stage, now.fps, now.first_frame_s) == (12, "rendering", 30.0, 0.5)
    assert store.tier_speed("fast") == TierSpeed(None, None)
    store.finish(claim, JobState.DONE)
    ended = store.get(job.id)
    assert (ended.state, ended.stage, ended.error) == (JobState.DONE, "", None)
    assert ended.finished_at is not None
    assert store.tier_speed("fast") == TierSpeed(30.0, 0.5)
    assert store.tier_speed("high") == TierSpeed(None, None)


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_a_job_cannot_end_as_something_that_is_no_end(store: JobStore, state: JobState) -> None:
    store.submit(spec(), LIMITS)
    claim, _ = claimed(store)
    with pytest.raises(JobError, match=f"a job cannot end as {state.value}"):
        store.finish(claim, state)


def test_a_lost_claim_changes_nothing(store: JobStore) -> None:
    job = store.submit(spec(), LIMITS)
    old, _ = claimed(store, lease_s=0)
    time.sleep(0.01)
    assert store.requeue_expired("its lease ran out") == 1
    new, again = claimed(store)
    assert again.attempt == 2
    for change in (
        lambda: store.renew(old, 60),
        lambda: store.record_progress(old, frames=9, stage="x", fps=1.0, first_frame_s=1.0),
        lambda: store.finish(old, JobState.FAILED, "late"),
        lambda: store.requeue(old, "late"),
    ):
        with pytest.raises(LeaseLostError, match=r"attempt 1 does not hold it any more"):
            change()
    now = store.get(job.id)
    assert (now.state, now.frames, now.error) == (JobState.RUNNING, 0, None)
    store.finish(new, JobState.DONE)


def test_a_renewed_lease_does_not_expire(store: JobStore) -> None:
    store.submit(spec(), LIMITS)
    claim, _ = claimed(store, lease_s=0)
    store.renew(claim, 60)
    assert store.requeue_expired("late") == 0
    store.finish(claim, JobState.DONE)


def test_a_job_whose_worker_dies_is_tried_so_often_and_then_fails(store: JobStore) -> None:
    job = store.submit(spec(), LIMITS)
    for attempt in range(1, MAX_TRIES + 1):
        claim, running = claimed(store)
        assert running.attempt == attempt
        given_back = store.requeue(claim, "rank 1 was killed by signal 9")
        if attempt < MAX_TRIES:
            assert given_back.state is JobState.QUEUED
            assert given_back.restart_note == "rank 1 was killed by signal 9"
            assert given_back.started_at is None
    failed = store.get(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error == "rank 1 was killed by signal 9; it was tried 3 times"
    assert failed.finished_at is not None


def test_a_job_that_makes_new_frames_in_every_try_is_never_given_up(store: JobStore) -> None:
    job = store.submit(spec(), LIMITS)
    for attempt in range(1, 3 * MAX_TRIES):
        claim, _ = claimed(store)
        if attempt == 1:
            store.begin_take(claim)
        store.record_progress(
            claim, frames=12 * attempt, stage="rendering", fps=2.0, first_frame_s=1.0
        )
        given_back = store.requeue(claim, "killed")
        assert given_back.state is JobState.QUEUED
        assert (given_back.frames, given_back.take) == (12 * attempt, 1)
    for _ in range(MAX_TRIES):
        claim, _ = claimed(store)
        store.record_progress(claim, frames=12, stage="rendering", fps=2.0, first_frame_s=1.0)
        store.requeue(claim, "killed")
    assert store.get(job.id).state is JobState.FAILED


def test_a_new_take_forgets_what_the_file_held(store: JobStore) -> None:
    store.submit(spec(), LIMITS)
    claim, _ = claimed(store)
    store.begin_take(claim)
    store.record_progress(claim, frames=12, stage="rendering", fps=2.0, first_frame_s=1.0)
    store.begin_take(claim)
    job = store.get(claim.job_id)
    assert (job.take, job.frames, job.fps, job.first_frame_s) == (2, 0, None, None)


def test_stopping_the_server_is_no_try_that_failed(store: JobStore) -> None:
    store.submit(spec(), LIMITS)
    for _ in range(2 * MAX_TRIES):
        claim, _ = claimed(store)
        assert store.requeue(claim, "the server was stopped", counts=False).state is JobState.QUEUED


def test_what_a_worker_held_is_given_back_by_its_name(store: JobStore) -> None:
    mine, other = (store.submit(spec(), LIMITS) for _ in range(2))
    claimed(store, worker="a")
    claimed(store, worker="b")
    assert store.requeue_of("a", "the server was restarted") == 1
    assert store.get(mine.id).state is JobState.QUEUED
    assert store.get(other.id).state is JobState.RUNNING


def test_cancelling_in_each_state(store: JobStore) -> None:
    queued, running = (store.submit(spec(), LIMITS) for _ in range(2))
    claim, _ = claimed(store)
    assert store.request_cancel(running.id).state is JobState.CANCELLED
    asked = store.request_cancel(queued.id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert store.cancels_wanted([claim, Claim(running.id, 1)]) == {queued.id}
    # A job that was to be cancelled is not begun again.
    assert store.requeue(claim, "the group died").state is JobState.CANCELLED
    assert store.request_cancel(queued.id).state is JobState.CANCELLED
    assert store.cancels_wanted([]) == set()
    with pytest.raises(UnknownJobError):
        store.request_cancel("0" * 32)


def test_limits_of_the_queue_count_what_waits_and_runs(store: JobStore) -> None:
    limits = QueueLimits(per_owner=2, in_all=3)
    first = store.submit(spec(owner="ann"), limits)
    store.submit(spec(owner="ann"), limits)
    with pytest.raises(QueueFullError, match=r"you have 2 videos waiting or running, at most 2"):
        store.submit(spec(owner="ann"), limits)
    with pytest.raises(QueueFullError, match="you have 2"):
        store.check_room("ann", limits)
    store.submit(spec(owner="bob"), limits)
    with pytest.raises(QueueFullError, match=r"the queue is full, 3 videos"):
        store.submit(spec(owner="cat"), limits)
    store.request_cancel(first.id)
    store.submit(spec(owner="ann"), limits)
    assert len(store.list_jobs()) == 4


def test_a_key_finds_what_it_submitted(store: JobStore) -> None:
    first = store.submit(spec(idempotency_key="k"), LIMITS)
    assert store.submit(spec(idempotency_key="k", title="other"), LIMITS).id == first.id
    assert store.submit(spec(idempotency_key="k", owner="bob"), LIMITS).id != first.id
    assert store.find_submitted("ann", "k") == first
    assert store.find_submitted("ann", "other") is None


def test_one_key_submitted_at_once_by_many_makes_one_job(store: JobStore) -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: ids.append(store.submit(spec(idempotency_key="k"), LIMITS).id)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_only_the_whole_share_token_finds_a_job(store: JobStore) -> None:
    job = store.submit(spec(), LIMITS)
    assert store.find_shared(job.share_token) == job
    changed = job.share_token[:-1] + ("a" if job.share_token[-1] != "a" else "b")
    for wrong in ("", job.share_token[:8], changed, job.share_token + "a", job.id, "é" * 9):
        with pytest.raises(UnknownJobError, match="this link leads to no video"):
            store.find_shared(wrong)


def test_lists_are_of_one_owner_newest_first(store: JobStore) -> None:
    ids = [store.submit(spec(owner=owner), LIMITS).id for owner in ("ann", "bob", "ann")]
    assert [job.id for job in store.list_jobs("ann")] == [ids[2], ids[0]]
    assert [job.id for job in store.list_jobs(limit=2)] == [ids[2], ids[1]]
    assert store.counts()[JobState.QUEUED] == 3
    assert store.counts()[JobState.DONE] == 0


def test_only_ended_jobs_are_deleted_and_their_numbers_never_come_again(store: JobStore) -> None:
    job = store.submit(spec(), LIMITS)
    with pytest.raises(JobError, match="a job that is queued cannot be deleted; cancel it first"):
        store.delete(job.id)
    store.request_cancel(job.id)
    store.delete(job.id)
    with pytest.raises(UnknownJobError):
        store.get(job.id)
    with pytest.raises(UnknownJobError):
        store.delete(job.id)
    assert store.submit(spec(), LIMITS).number > job.number


def test_workers_say_how_they_are(store: JobStore) -> None:
    assert store.read_workers() == []
    store.write_worker("a", {"state": "loading"})
    store.write_worker("b", {"state": "ready"})
    store.write_worker("a", {"state": "ready"})
    assert [(w.worker, dict(w.document)) for w in store.read_workers()] == [
        ("a", {"state": "ready"}),
        ("b", {"state": "ready"}),
    ]


def test_another_store_on_the_same_database_sees_everything(url: str, store: JobStore) -> None:
    job = store.submit(spec(), LIMITS, new_job_id())
    other = JobStore(url)
    assert other.get(job.id) == job
    other.close()


def test_what_was_submitted_survives_a_killed_process(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from tests.unit.job_material import LIMITS, new_store, spec\n"
        "print(new_store(Path(sys.argv[1])).submit(spec(), LIMITS).id, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == -9, done.stderr
    store = new_store(tmp_path)
    assert replace(store.get(done.stdout.strip()), number=1).state is JobState.QUEUED
    store.close()


@pytest.mark.parametrize("url", ["nonsense", "nodriver://x/y", "sqlite:////no/such/folder/jobs.db"])
def test_a_database_that_cannot_be_opened_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(JobError, match=r"^(database: expected a URL|the job database cannot)"):
        JobStore(url)


# --- the ceiling of tiers ------------------------------------------------------------------------


def test_a_ceiling_is_kept_replaced_and_lifted(store: JobStore, url: str) -> None:
    assert store.ceiling() is None
    store.set_ceiling("balanced", "gpu 3 is full")
    store.set_ceiling("fast", "gpu 3 is still full")
    reopened = JobStore(url)
    found = reopened.ceiling()
    assert found is not None
    assert (found.tier, found.reason) == ("fast", "gpu 3 is still full")
    assert abs(found.since - time.time()) < 60
    reopened.set_ceiling(None, "")
    reopened.close()
    assert store.ceiling() is None


def test_tiers_are_lowered_by_their_area_one_at_a_time() -> None:
    assert one_lower(TIERS, None) == "balanced"
    assert one_lower(TIERS[::-1], Ceiling("balanced", "", 0.0)) == "fast"
    assert one_lower(TIERS, Ceiling("fast", "", 0.0)) == "fast"
    assert one_lower(TIERS, Ceiling("gone from the settings", "", 0.0)) == "balanced"
    with pytest.raises(JobError, match="there are no tiers"):
        one_lower((), None)


def test_connections_from_when_nothing_could_be_written_are_given_up(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store._engine.connect() as one, store._engine.connect() as other:
        for connection in (one, other):
            connection.exec_driver_sql("PRAGMA query_only=ON")
            connection.rollback()
    jobs = {store.submit(spec(), None).id for _ in range(3)}
    assert {job.id for job in store.list_jobs()} == jobs


def test_a_file_that_cannot_be_written_still_is_an_unavailable_store(tmp_path: Path) -> None:
    def only_read(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA query_only=ON")

    store = new_store(tmp_path)
    store._engine.dispose()
    sa.event.listen(store._engine, "connect", only_read)
    with pytest.raises(StoreUnavailableError, match="readonly database"):
        store.submit(spec(), None)
    sa.event.remove(store._engine, "connect", only_read)
    assert store.submit(spec(), None).state == JobState.QUEUED
