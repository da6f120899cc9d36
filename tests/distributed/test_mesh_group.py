"""Worker groups whose stages are of several ranks: they render, and end whole when a rank does."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from liveavatar.engine.messages import Finished, GroupSpec
from liveavatar.errors import WorkerDiedError
from tests.distributed.rendering import (
    Studio,
    none_runs,
    outcome,
    running,
    spec,
    started,
    until_it_ends,
    wait_for_progress,
)
from tests.unit.mp4_material import decode_video

LISTENING = "0A"
LOOPBACK = "0100007F"


def shared(checkpoint: Path, *, tp: int = 1, sp: int = 1) -> GroupSpec:
    devices = ("cpu",) * (tp * sp + 1)
    return replace(spec(checkpoint, 1), tp_degree=tp, sp_degree=sp, devices=devices)


def listeners() -> dict[str, tuple[str, int]]:
    """Address and port of every listening TCP socket of the machine, by inode."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        address, port = words[1].split(":")
        if words[3] == LISTENING:
            found[words[9]] = (address, int(port, 16))
    return found


def listened_by(ranks: list[int]) -> set[tuple[str, int]]:
    inodes = set()
    for pid in ranks:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(entry)
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
    return {where for inode, where in listeners().items() if inode in inodes}


@pytest.mark.parametrize("degrees", [{"tp": 2}, {"sp": 2}], ids=["tp", "sp"])
def test_a_killed_peer_is_named_and_leaves_no_process_and_no_port(
    tiny: Path, studio: Studio, degrees: dict[str, int]
) -> None:
    with running(started(shared(tiny, **degrees))) as group:
        ranks, job = group.pids(), studio.job(0.4)
        group.submit(job)
        assert isinstance(outcome(group, job.number), Finished)
        assert len(decode_video(job.live_path)) == job.timeline.num_frames
        ports = listened_by(ranks)
        assert {address for address, _ in ports} == {LOOPBACK}
        long = studio.long_job()
        group.submit(long)
        wait_for_progress(group, long.number)
        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"^rank 1 was killed by signal 9$"):
            until_it_ends(group)
        group.kill()
        assert none_runs(ranks, within_s=0)
        assert not ports & set(listeners().values())


def test_a_peer_that_hangs_ends_the_group_within_its_deadline(tiny: Path, studio: Studio) -> None:
    with running(started(replace(shared(tiny, sp=2), timeout_s=10))) as group:
        ranks, job = group.pids(), studio.long_job()
        group.submit(job)
        wait_for_progress(group, job.number)
        os.kill(ranks[1], signal.SIGSTOP)
        with pytest.raises(WorkerDiedError, match=r"^rank 0 failed: no answer in time from rank 1"):
            until_it_ends(group)
        group.kill()
        assert none_runs(ranks, within_s=0)
