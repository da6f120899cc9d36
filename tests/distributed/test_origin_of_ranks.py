"""The process that ranks are forked from: one that hangs is named, ended and replaced.

In a file of its own, as no other group of this process may live meanwhile: its ranks are children
of the old one, which alone knows how they end.
"""

import os
import signal
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest

from liveavatar.engine import processes
from liveavatar.engine.group import WorkerGroup
from liveavatar.errors import DeadlineError
from tests.distributed.rendering import WAIT_S, none_runs, running, spec, started, wait_until
from tests.patience import PATIENCE_S


def test_ranks_whose_origin_is_stopped_are_named_and_the_next_group_has_another(
    tiny: Path, folders: Path
) -> None:
    small = replace(spec(tiny, num_stages=1), silence_s=8.0)
    with running(started(small)):
        origin = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(origin, signal.SIGSTOP)
    with running(WorkerGroup(small)) as group:
        stopped = "^rank 0 has said nothing for 8 s: its process is stopped$"
        with pytest.raises(DeadlineError, match=stopped):
            group.wait_until_ready(WAIT_S)
        assert none_runs([origin], within_s=0)
    with running(started(small)) as group:
        assert group.is_ready
    assert not list(folders.glob("liveavatar-*"))


def test_a_stopped_rank_ends_with_a_group_whose_origin_is_stopped(
    tiny: Path, folders: Path
) -> None:
    with running(started(spec(tiny, num_stages=1))):
        origin = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    group = WorkerGroup(spec(tiny, num_stages=4))
    with running(group):
        ranks = group._processes._processes
        wait_until(lambda: len(ranks) > 0, "a rank exists")
        os.kill(origin, signal.SIGSTOP)
        first = ranks[0].pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        group._processes._starter.join(2.0)  # by then it waits for the origin
        assert group._processes._starter.is_alive()
    assert none_runs([origin, first], within_s=PATIENCE_S)
    assert not list(folders.glob("liveavatar-*"))


def test_a_rank_that_stops_the_moment_it_is_forked_is_named_and_ends(
    tiny: Path, folders: Path
) -> None:
    small = replace(spec(tiny, num_stages=1), silence_s=8.0)
    with running(started(small)):
        pass
    assert not processes._forked()
    with running(WorkerGroup(small)) as group:
        deadline = time.monotonic() + WAIT_S
        while not (born := processes._forked()):  # mostly before it tells its number
            assert time.monotonic() < deadline
        os.kill(born[0], signal.SIGSTOP)
        stopped = "^rank 0 has said nothing for 8 s: its process is stopped$"
        with pytest.raises(DeadlineError, match=stopped):
            group.wait_until_ready(WAIT_S)
    assert none_runs(born, within_s=PATIENCE_S)
    assert not list(folders.glob("liveavatar-*"))
