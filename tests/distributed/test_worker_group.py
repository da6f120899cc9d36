"""A worker group stays for job after job, refuses what is bad, and ends whole when a rank does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.messages import Finished, Progress, Refused, RenderJob
from liveavatar.errors import DeadlineError, WorkerDiedError
from liveavatar.media.live_file import measure_live_file
from tests.distributed.rendering import (
    WAIT_S,
    Studio,
    none_runs,
    outcome,
    resident_mib,
    running,
    spec,
    started,
    until,
    until_it_ends,
    until_it_speaks,
    until_rank,
    wait_for_progress,
)
from tests.unit.mp4_material import decode_video

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("folders")


@pytest.fixture(scope="module")
def resident(tiny: Path, folders: Path) -> Iterator[WorkerGroup]:  # noqa: ARG001  made first
    """One group for all tests that do not end it; it has to leave by itself."""
    group = started(spec(tiny))
    with running(group):
        yield group
        group.close()
        ends = [group._processes.end_of(rank, time.monotonic() + WAIT_S) for rank in range(3)]
        assert ends == ["ended with status 0"] * 3


def is_whole(job: RenderJob) -> bool:
    """Whether all frames of the video are there and can be seen."""
    frames = decode_video(job.live_path)
    extent = measure_live_file(job.live_path)
    whole = extent.num_bytes == job.live_path.stat().st_size
    return whole and len(frames) == extent.num_frames == job.timeline.num_frames


def frames_of(job: RenderJob) -> list[bytes]:
    return [frame.to_ndarray().tobytes() for frame in decode_video(job.live_path)]


# Jobs in a row.


def test_ten_jobs_in_a_row_need_no_more_memory_than_three(
    resident: WorkerGroup, studio: Studio
) -> None:
    ranks, sizes = resident.pids(), []
    jobs = [studio.job() for _ in range(10)]
    for job in jobs:
        resident.submit(job)
        assert outcome(resident, job.number) == Finished(job.number, 38, cancelled=False)
        sizes.append([resident_mib(pid) for pid in ranks])
    assert all(map(is_whole, jobs))
    assert resident.pids() == ranks
    for third, later in zip(sizes[2], zip(*sizes[3:], strict=True), strict=True):
        assert max(later) < 1.01 * third
    assert len({tuple(frames_of(job)) for job in jobs}) == 1


def test_jobs_submitted_together_are_each_their_own(resident: WorkerGroup, studio: Studio) -> None:
    alone = studio.job()
    resident.submit(alone)
    outcome(resident, alone.number)
    together = [studio.job(seconds) for seconds in (1.5, 0.4, 1.5)]
    for job in together:
        resident.submit(job)
    # The events of jobs come in turns, so that all are awaited at once.
    ended: set[int] = set()
    deadline = time.monotonic() + WAIT_S
    while len(ended) < 3 and time.monotonic() < deadline:
        event = resident.next_event(1.0)
        if isinstance(event, Finished):
            ended.add(event.number)
    assert ended == {job.number for job in together}
    assert all(map(is_whole, together))
    assert frames_of(together[0]) == frames_of(together[2]) == frames_of(alone)


@pytest.mark.parametrize("bad", ["no sound", "not a sound", "no folder", "full disk"])
def test_a_bad_job_is_refused_with_its_reason_and_the_next_one_works(
    resident: WorkerGroup, studio: Studio, bad: str
) -> None:
    gone = studio.folder / "gone"
    junk = studio.folder / "junk.wav"
    junk.write_bytes(b"no sound in here" * 100)
    changed: dict[str, dict[str, object]] = {
        "no sound": {"soundtrack": gone},
        "not a sound": {"soundtrack": junk},
        "no folder": {"live_path": gone / "live.mp4"},
        "full disk": {"live_path": Path("/dev/full")},
    }
    job, after = studio.job(**changed[bad]), studio.job(0.4)
    resident.submit(job)
    refused = outcome(resident, job.number)
    assert isinstance(refused, Refused)
    assert "\n" not in refused.reason
    assert len(refused.reason) > 10
    resident.submit(after)
    assert isinstance(outcome(resident, after.number), Finished)
    assert is_whole(after)


def test_a_cancelled_job_keeps_whole_blocks_and_the_next_one_works(
    resident: WorkerGroup, studio: Studio
) -> None:
    long, after = studio.long_job(), studio.job(0.4)
    resident.submit(long)
    wait_for_progress(resident, long.number)
    resident.cancel(long.number)
    resident.submit(after)
    deadline, ends = time.monotonic() + WAIT_S, {}
    while len(ends) < 2 and time.monotonic() < deadline:
        event = resident.next_event(1.0)
        if isinstance(event, Finished):
            ends[event.number] = event
    assert ends[long.number].cancelled
    assert not ends[after.number].cancelled
    frames = ends[long.number].frames
    assert 12 <= frames < long.timeline.num_frames
    assert frames % 12 == 0
    assert len(decode_video(long.live_path)) == frames
    assert is_whole(after)


def test_a_cancel_that_comes_too_late_leaves_a_job_finished(
    resident: WorkerGroup, studio: Studio
) -> None:
    job, after = studio.job(0.4), studio.job(0.4)
    resident.submit(job)
    assert outcome(resident, job.number) == Finished(job.number, 10, cancelled=False)
    resident.cancel(job.number)
    resident.submit(after)
    assert outcome(resident, after.number) == Finished(after.number, 10, cancelled=False)


def test_an_interrupt_from_the_terminal_does_not_reach_the_ranks(
    resident: WorkerGroup, studio: Studio
) -> None:
    job = studio.job()
    resident.submit(job)
    for pid in resident.pids():
        os.kill(pid, signal.SIGINT)
    assert isinstance(outcome(resident, job.number), Finished)
    assert is_whole(job)


def test_a_running_group_leaves_nothing_in_its_folder(resident: WorkerGroup, folders: Path) -> None:
    assert resident.pids()
    assert not list(folders.glob("liveavatar-*"))


# Ends.


@pytest.mark.parametrize(
    ("num_stages", "victim", "rendering"),
    [(1, 0, False), (1, 1, False), (2, 0, True)],
    ids=["idle-stage", "idle-media", "rendering-first"],
)
def test_a_killed_rank_is_named_and_takes_the_group_with_it(
    tiny: Path, studio: Studio, folders: Path, num_stages: int, victim: int, rendering: bool
) -> None:
    with running(started(spec(tiny, num_stages))) as group:
        ranks = group.pids()
        if rendering:
            job = studio.long_job()
            group.submit(job)
            wait_for_progress(group, job.number)
        os.kill(ranks[victim], signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=f"^rank {victim} was killed by signal 9$"):
            until_it_ends(group)
        group.kill()
        assert none_runs(ranks, within_s=0)
        with pytest.raises(WorkerDiedError):
            group.submit(studio.job())
        with pytest.raises(WorkerDiedError):
            group.next_event(0)
    assert not list(folders.glob("liveavatar-*"))


def killed(group: WorkerGroup, victim: int) -> None:
    """Kill a rank; it has to be named, and no other may be left."""
    ranks = group.pids()
    os.kill(ranks[victim], signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=f"^rank {victim} was killed by signal 9$"):
        until_it_ends(group)
    group.kill()
    assert none_runs(ranks, within_s=0)


def test_a_rank_killed_with_the_condition_in_its_hands_is_named(tiny: Path, studio: Studio) -> None:
    with running(started(spec(tiny))) as group:
        os.kill(group.pids()[1], signal.SIGSTOP)  # what stage 0 sends it now, it never prefills
        group.submit(studio.job())
        until(group, lambda event: isinstance(event, Progress) and event.stage == "rendering")
        for _ in range(2):
            until_rank(group, 0, lambda status: not status.item)  # it has done its part, and waits
        killed(group, 1)


def test_a_rank_killed_while_it_decodes_is_named(tiny: Path, studio: Studio) -> None:
    with running(started(spec(tiny))) as group:
        group.submit(studio.long_job())
        until_rank(group, 2, lambda status: "block" in status.item)
        killed(group, 2)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_while_it_starts_is_named(tiny: Path, folders: Path, victim: int) -> None:
    with running(WorkerGroup(spec(tiny, num_stages=1))) as group:
        ranks = group.pids()
        until_it_speaks(group, victim)
        os.kill(ranks[victim], signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=f"^rank {victim} was killed by signal 9$"):
            group.wait_until_ready(WAIT_S)
        assert none_runs(ranks, within_s=0)
    assert not list(folders.glob("liveavatar-*"))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_and_the_group_ended(
    tiny: Path, studio: Studio, victim: int
) -> None:
    hasty = replace(spec(tiny, num_stages=1), silence_s=8.0)
    with running(started(hasty)) as group:
        ranks, job = group.pids(), studio.long_job()
        group.submit(job)
        wait_for_progress(group, job.number)
        os.kill(ranks[victim], signal.SIGSTOP)
        for _ in range(4):
            group.submit(studio.long_job())  # more than a pipe holds that nobody reads
        with pytest.raises(DeadlineError, match=stopped_for_8_s(victim)):
            until_it_ends(group)
        group.kill()
        assert none_runs(ranks, within_s=0)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_as_soon_as_it_exists_is_named(tiny: Path, victim: int) -> None:
    with running(WorkerGroup(replace(spec(tiny, num_stages=1), silence_s=8.0))) as group:
        deadline = time.monotonic() + WAIT_S
        while len(group._processes._processes) <= victim and time.monotonic() < deadline:
            time.sleep(0.001)  # before it has said a word, or nearly so
        pid = group._processes._processes[victim].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError, match=stopped_for_8_s(victim)):
            group.wait_until_ready(WAIT_S)
        assert none_runs(group.pids(), within_s=0)


def stopped_for_8_s(rank: int) -> str:
    return f"^rank {rank} has said nothing for 8 s: its process is stopped$"


def test_ranks_told_to_terminate_finish_the_jobs_at_hand(tiny: Path, studio: Studio) -> None:
    with running(started(spec(tiny, num_stages=1))) as group:
        ranks, jobs = group.pids(), [studio.job(), studio.job(0.4)]
        for job in jobs:
            group.submit(job)
        wait_for_progress(group, jobs[0].number)
        for pid in ranks:
            os.kill(pid, signal.SIGTERM)
        assert outcome(group, jobs[1].number) == Finished(jobs[1].number, 10, cancelled=False)
        with pytest.raises(WorkerDiedError, match=r"^rank [01] ended with status 0$"):
            until_it_ends(group)
        assert none_runs(ranks)
        assert all(map(is_whole, jobs))


def test_a_rank_killed_while_the_group_closes_leaves_no_process(tiny: Path, studio: Studio) -> None:
    with running(started(spec(tiny, num_stages=1))) as group:
        ranks, job = group.pids(), studio.long_job()
        group.submit(job)
        wait_for_progress(group, job.number)
        threading.Timer(0.5, os.kill, (ranks[0], signal.SIGKILL)).start()
        group.close(WAIT_S)
        assert none_runs(ranks, within_s=0)


def test_ranks_that_are_not_ready_in_time_are_named_and_ended(tiny: Path, folders: Path) -> None:
    with pytest.raises(DeadlineError, match=r"^ranks 0, 1, 2 were not ready in 0 s$"):
        WorkerGroup(spec(tiny)).wait_until_ready(0.0)
    assert not list(folders.glob("liveavatar-*"))


def test_a_rank_that_cannot_load_says_why(tiny: Path, folders: Path) -> None:
    broken = replace(spec(tiny, num_stages=1), checkpoint=tiny / "gone")
    with pytest.raises(WorkerDiedError, match=r"^rank [01] failed: .*gone"):
        started(broken)
    assert not list(folders.glob("liveavatar-*"))


def start_script(body: str, folder: Path) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(body), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("ready", [False, True], ids=["starting", "ready"])
def test_ranks_end_when_their_supervisor_is_killed(tiny: Path, tmp_path: Path, ready: bool) -> None:
    process = start_script(
        f"""
        import sys, time
        from pathlib import Path
        from liveavatar.engine.group import WorkerGroup
        from tests.distributed.rendering import spec

        if __name__ == "__main__":
            group = WorkerGroup(spec(Path({str(tiny)!r}), num_stages=1))
            if {ready}:
                group.wait_until_ready()
            print(*group.pids(), flush=True)
            time.sleep(1000)
        """,
        tmp_path,
    )
    assert process.stdout is not None
    ranks = [int(word) for word in process.stdout.readline().split()]
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=WAIT_S)
    assert none_runs(ranks, within_s=WAIT_S)


def test_a_script_without_a_main_guard_fails_and_starts_no_ranks_of_ranks(
    tiny: Path, tmp_path: Path, folders: Path
) -> None:
    process = start_script(
        f"""
        import tempfile
        from pathlib import Path
        from liveavatar.engine.group import WorkerGroup
        from tests.distributed.rendering import spec

        tempfile.tempdir = {str(folders)!r}
        WorkerGroup(spec(Path({str(tiny)!r}), num_stages=1)).wait_until_ready()
        """,
        tmp_path,
    )
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert 'if __name__ == "__main__"' in said.replace("'", '"')
    assert not list(folders.glob("liveavatar-*"))
