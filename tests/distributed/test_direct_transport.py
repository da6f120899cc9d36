"""Tensors sent between stages by point-to-point calls arrive as they were; a dead rank is named."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.messages import Ready
from liveavatar.errors import WorkerDiedError
from liveavatar.parallel.mesh import Mesh
from liveavatar.random_checkpoint import TINY, write_checkpoint
from tests.distributed.pipeline_ranks import Case, Layout, MediaEnd, ranks_of
from tests.distributed.rendering import (
    WAIT_S,
    Studio,
    none_runs,
    running,
    spec,
    until_it_ends,
    wait_for_progress,
)

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def media() -> Iterator[MediaEnd]:
    with ranks_of(Layout(Mesh(3), direct=True)) as started:
        yield started


def test_three_stages_give_bitwise_the_latents_of_one_device(media: MediaEnd) -> None:
    # Rings that wrap, a refresh, a second job that enters behind the first one's last blocks.
    jobs = [Case(next(numbers), num_blocks=9), Case(next(numbers), (10, 6), 5, 1, num_steps=3)]
    media.render(jobs)
    assert [job.is_made_bitwise() for job in jobs] == [True, True]


def test_a_cancelled_job_ends_and_the_next_is_untouched(media: MediaEnd) -> None:
    long, after = Case(next(numbers), num_blocks=200), Case(next(numbers), num_blocks=3)
    media.begin(long)
    while len(long.made) < 2:
        media.take()
    media.cancel(long)
    media.render([after])
    assert long.ended
    assert after.is_made_bitwise()


def test_a_stage_of_several_ranks_is_fed_directly_too() -> None:
    layout = Layout(Mesh(2, 1, 2), replace(TINY, num_heads=8), direct=True)
    with ranks_of(layout) as media:
        job = Case(next(numbers), num_blocks=4, layout=layout)
        media.render([job])
    assert job.largest_error() < 2e-5


def test_a_killed_rank_is_named_and_leaves_no_process(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    studio = Studio(tmp_path)
    direct = replace(spec(tmp_path / "tiny"), transport="direct")
    with running(WorkerGroup(direct)) as group:
        ready: dict[int, str] = {}
        deadline = time.monotonic() + WAIT_S
        while not group.is_ready and time.monotonic() < deadline:
            event = group.next_event(1.0)
            if isinstance(event, Ready):
                ready[event.rank] = event.transport
        assert ready == {0: "gloo", 1: "gloo", 2: "sockets"}
        job = studio.long_job()
        group.submit(job)
        wait_for_progress(group, job.number)
        ranks = group.pids()
        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=r"^rank 1 was killed by signal 9$"):
            until_it_ends(group)
        group.kill()
        assert none_runs(ranks, within_s=0)
