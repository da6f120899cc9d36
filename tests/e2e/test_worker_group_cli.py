"""The command line with several ranks: the same pictures, and no rank left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import av
import pytest

from tests.e2e.command import ROOT, SCRIPT, arguments, describe, wait_for_frames
from tests.patience import PATIENCE_S

Launch = Callable[..., subprocess.Popen[str]]

KILLED = "sys.exit(run_launched(lambda: os.kill(os.getpid(), 9)))"


def ranks_of(parent: int) -> list[int]:
    """Processes that the command started and that still run, in the order of their ranks."""
    origin = next(pid for pid in children_of(parent) if b"forkserver" in command_line(pid))
    return sorted(children_of(origin))


def children_of(pid: int) -> list[int]:
    # A child belongs to the thread that started it.
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for each in lists for child in each.read_text().split()]


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def assert_same_pictures(ours: Path, theirs: Path) -> None:
    """The command alone has more threads than a rank, so that sums may round in another order.

    What such a last bit changes, the encoder can turn into more, in a few frames.
    """
    assert describe(ours) == describe(theirs)
    with av.open(str(ours)) as left, av.open(str(theirs)) as right:
        pairs = zip(left.decode(video=0), right.decode(video=0), strict=True)
        errors = [abs(one.to_ndarray().astype(int) - other.to_ndarray()) for one, other in pairs]
    means = [float(error.mean()) for error in errors]
    assert max(means) < 3
    assert sum(means) / len(means) < 0.1


@pytest.mark.parametrize(
    ("ranks", "changed"),
    [(3, {"enable_vae_parallel": True}), (2, {"tpp_mode": "False"})],
    ids=["three stages", "sharded"],
)
def test_several_ranks_write_the_same_pictures(
    ranks: int,
    changed: dict[str, object],
    cli: ModuleType,
    tiny: Path,
    tmp_path: Path,
    finished: Path,
) -> None:
    save_file = tmp_path / "out.mp4"
    options = {"num_gpus_dit": ranks, "ulysses_size": ranks, "enable_online_decode": True}
    assert cli.main(arguments(tiny, save_file, **(options | changed))) == 0
    assert_same_pictures(save_file, finished)
    assert list(tmp_path.iterdir()) == [save_file]


def test_torchrun_starts_the_command_once(tiny: Path, tmp_path: Path, finished: Path) -> None:
    save_file = tmp_path / "out.mp4"
    command = arguments(
        tiny,
        save_file,
        num_gpus_dit=2,
        ulysses_size=2,
        mesh="1x2x1",
        enable_vae_parallel=True,
        enable_online_decode=True,
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("96 frames, 3.84 s") == 1
    assert_same_pictures(save_file, finished)


@pytest.mark.parametrize("ending", ["sys.exit(run_launched(lambda: 7))", KILLED])
def test_launched_processes_end_as_the_first_of_them(ending: str) -> None:
    code = f"import os, sys, time\nfrom inference.torchrun import run_launched\n{ending}"
    launched = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"RANK": rank, "WORLD_SIZE": "2"},
        )
        for rank in ("1", "0")
    ]
    statuses = [process.wait(PATIENCE_S) for process in launched]
    assert statuses == ([1, -9] if ending == KILLED else [7, 7])


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_rank_ends_the_command_names_the_rank_and_leaves_no_process(
    launch: Launch,
    tmp_path: Path,
    victim: int,
) -> None:
    process = launch(tmp_path / "out.mp4", num_gpus_dit=2, ulysses_size=2)
    wait_for_frames(tmp_path / "out.live.mp4", 12, process)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 3
    os.kill(ranks[victim], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert f"rank {victim} was killed by signal 9" in said.splitlines()[-1]
    assert not [pid for pid in ranks if is_running(pid)]


def test_a_killed_command_takes_its_ranks_with_it_and_is_gone_on_with(
    launch: Launch, tmp_path: Path
) -> None:
    save_file = tmp_path / "out.mp4"
    process = launch(save_file, num_gpus_dit=2, ulysses_size=2, size="64*64")
    wait_for_frames(tmp_path / "out.live.mp4", 156, process)
    ranks = ranks_of(process.pid)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while any(map(is_running, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in ranks if is_running(pid)]
    assert len(list(tmp_path.glob("out.resume/*/*/12.rank-?.*.safetensors"))) == 3
    process = launch(save_file, num_gpus_dit=2, ulysses_size=2, size="64*64", resume=True)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert "frames are there already; going on behind them" in said
    assert describe(save_file)["frames"] == 198
    assert list(tmp_path.iterdir()) == [save_file]


def test_an_interrupt_ends_the_group_and_leaves_a_playable_file(
    launch: Launch,
    tmp_path: Path,
) -> None:
    save_file = tmp_path / "out.mp4"
    process = launch(save_file, num_gpus_dit=2, ulysses_size=2)
    wait_for_frames(tmp_path / "out.live.mp4", 12, process)
    ranks = ranks_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    frames = describe(save_file)["frames"]
    assert isinstance(frames, int)
    assert 12 <= frames < 198
    assert f"holds the first {frames} of 198 frames" in said.splitlines()[-1]
    assert not [pid for pid in ranks if is_running(pid)]
