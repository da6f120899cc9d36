"""Ranks and servers are killed, stopped and starved; no job is lost, doubled or spoilt."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.application import Application
from tests.faults.suite import (
    END_S,
    Installation,
    Outcome,
    limit_files_of,
    limit_memory_of,
    record,
)

pytestmark = pytest.mark.timeout(900)

long_faults = pytest.mark.long_faults
Note = Callable[[str, object], None]


def kill_rank(installation: Installation, rank: int, number: int = signal.SIGKILL) -> None:
    installation.wait(lambda: len(installation.ranks()) == 2, "two ranks run", END_S)
    os.kill(installation.ranks()[rank], number)


def kill_server(installation: Installation) -> None:
    installation.kill()
    assert installation.left_over() == [], "nothing outlives the server"


def start_server(installation: Installation) -> None:
    installation.start(ready=False)


def pause_server(installation: Installation) -> None:
    os.kill(installation.pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(installation.pid, signal.SIGCONT)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=long_faults)], ids=["stage", "media"])
def test_a_rank_is_killed_while_it_renders(
    installation: Installation, record_property: Note, rank: int
) -> None:
    outcome = installation.survive(
        f"SIGKILL of rank {rank}, rendering", lambda: kill_rank(installation, rank), 100
    )
    record(record_property, outcome)
    assert outcome.frames_lost == 0
    assert outcome.seconds < installation.recovery_s


def test_the_server_is_killed_while_it_renders(
    installation: Installation, record_property: Note
) -> None:
    outcome = installation.survive(
        "SIGKILL of the server, rendering",
        lambda: kill_server(installation),
        100,
        lambda: start_server(installation),
    )
    record(record_property, outcome)
    assert outcome.frames_lost == 0
    assert outcome.seconds < installation.recovery_s


@long_faults
@pytest.mark.parametrize("rank", [0, 1], ids=["stage", "media"])
def test_a_rank_is_stopped_while_it_renders(
    installation: Installation, record_property: Note, rank: int
) -> None:
    outcome = installation.survive(
        f"SIGSTOP of rank {rank}, rendering",
        lambda: kill_rank(installation, rank, signal.SIGSTOP),
    )
    record(record_property, outcome)
    assert outcome.frames_lost == 0
    assert outcome.seconds < installation.recovery_s + 20  # a rank may be silent for so long


@long_faults
def test_the_server_is_stopped_for_a_while(
    installation: Installation, record_property: Note
) -> None:
    outcome = installation.survive(
        "SIGSTOP of the server for 5 s", lambda: pause_server(installation)
    )
    record(record_property, outcome)


@long_faults
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "server"])
@pytest.mark.parametrize("state", ["idle", "preparing", "finishing", "starting"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_something_is_hurt_in_another_state(
    installation: Installation, record_property: Note, victim: str, state: str, number: int
) -> None:
    whole = installation.undisturbed
    installation.wait(installation.is_ready, "the group is ready", END_S)

    def hurt(number: int = number) -> None:
        if victim != "server":
            kill_rank(installation, int(victim[-1]), number)
        elif number == signal.SIGKILL:
            kill_server(installation)
            start_server(installation)
        else:
            pause_server(installation)

    if state == "starting":
        hurt(signal.SIGKILL)  # and once more, while what was killed comes back
        installation.wait(lambda: not installation.is_ready(), "the group is gone", END_S)
        job_id, began = installation.submit_one(), time.monotonic()
        hurt()
    elif state == "idle":
        hurt()
        job_id, began = installation.submit_one(), time.monotonic()
    else:
        job_id, began = installation.submit_one(), time.monotonic()
        if state == "finishing":
            installation.wait_for_frames(job_id, len(whole))
        hurt()
    job = installation.wait_for_end(job_id, END_S)
    lost = len(whole) - job["frames"]
    seconds = round(time.monotonic() - began, 1)
    fault = f"{signal.Signals(number).name} of {victim}, {state}"
    record(record_property, Outcome(fault, lost == 0, seconds, 0, lost))
    assert (job["state"], lost) == ("done", 0), job


@long_faults
def test_memory_runs_out_inside_a_block(installation: Installation, record_property: Note) -> None:
    whole = installation.undisturbed
    installation.wait(installation.is_ready, "the group is ready", END_S)
    job_id = installation.submit_one(tier="balanced")
    installation.wait_for_frames(job_id, 12)
    began = time.monotonic()
    limit_memory_of(installation.ranks()[0], 0)
    job = installation.wait_for_end(job_id, END_S)
    seconds = round(time.monotonic() - began, 1)
    lost = len(whole) - job["frames"]
    record(record_property, Outcome("out of memory inside a block", not lost, seconds, 0, lost))
    assert (job["state"], job["tier"]) == ("done", "fast"), job
    assert [note["code"] for note in job["notes"]][-1] == "tier_lowered"


@long_faults
def test_the_disk_is_full_for_one_job(installation: Installation, record_property: Note) -> None:
    whole = installation.undisturbed
    installation.wait(installation.is_ready, "the group is ready", END_S)
    job_id, after = installation.submit_one(), installation.submit_one()
    installation.wait_for_frames(job_id, 24)
    began, media = time.monotonic(), installation.ranks()[1]
    limit_files_of(media, 1000)
    failed = installation.wait_for_end(job_id, END_S)
    limit_files_of(media, -1)
    assert failed["state"] == "failed", failed
    assert "File too large" in failed["error"]
    done = installation.wait_for_end(after, END_S)
    lost = len(whole) - done["frames"]
    seconds = round(time.monotonic() - began, 1)
    record(record_property, Outcome("full disk: the job after it", not lost, seconds, 0, lost))
    assert done["state"] == "done", done


@long_faults
def test_the_database_cannot_be_written_for_a_while(
    installation: Installation, record_property: Note
) -> None:
    def hurt() -> None:
        limit_files_of(installation.pid, 1)
        time.sleep(8)
        limit_files_of(installation.pid, -1)

    record(record_property, installation.survive("full disk under the database for 8 s", hurt))


@long_faults
def test_resume_points_are_damaged(installation: Installation, record_property: Note) -> None:
    def hurt() -> None:
        kill_server(installation)
        for path in installation.data.glob("jobs/*/resume/*/*.safetensors"):
            damaged = bytearray(path.read_bytes())
            damaged[len(damaged) // 2] ^= 255
            path.write_bytes(damaged)

    outcome = installation.survive(
        "damaged resume points", hurt, 100, lambda: start_server(installation)
    )
    record(record_property, outcome)
    assert outcome.frames_lost == 0


def test_a_database_that_is_none_ends_the_server_in_one_line(
    tmp_path: Path, record_property: Note
) -> None:
    with Application(tmp_path) as other:
        other.data.mkdir()
        (other.data / "jobs.db").write_bytes(b"no database at all " * 500)
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="error: the job database cannot be opened"):
            other.start()
        assert other.process is not None
        assert other.process.wait(10) == 2
        seconds = round(time.monotonic() - began, 1)
    record(record_property, Outcome("damaged database: refused at the start", True, seconds, 0, 0))
