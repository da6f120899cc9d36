"""Stages in processes of their own make bitwise the latents that one device makes.

Each pipeline is started once and serves all jobs of its tests, as a worker group does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from liveavatar.parallel.mesh import Mesh
from liveavatar.parallel.ring_keeper import part_of_rank
from liveavatar.resume_points import PointPlan, whole_points
from tests.distributed.pipeline_ranks import Case, Layout, MediaEnd, ranks_of

WRITTEN_S = 5.0

numbers = itertools.count(1)


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids=lambda count: f"K{count}")
def media(request: pytest.FixtureRequest) -> Iterator[MediaEnd]:
    with ranks_of(Layout(Mesh(request.param))) as started:
        yield started


def case(**changed: object) -> Case:
    return Case(next(numbers), **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_any_number_of_steps_gives_bitwise_the_latents_of_one_device(
    media: MediaEnd, num_steps: int
) -> None:
    # More blocks than the speech sent ahead, rings that wrap, a refresh.
    job = case(num_steps=num_steps, num_blocks=11 if num_steps < 3 else 8)
    media.render([job])
    assert job.is_made_bitwise()


@pytest.mark.parametrize("side", [(4, 12), (10, 6)], ids=["wide", "tall"])
def test_frames_of_any_shape_give_bitwise_the_latents_of_one_device(
    media: MediaEnd, side: tuple[int, int]
) -> None:
    job = case(side=side, num_blocks=5, window=1, num_steps=3)
    media.render([job])
    assert job.is_made_bitwise()


@pytest.mark.parametrize(("num_blocks", "window"), [(1, 1), (2, 1), (4, 4), (7, 3)])
def test_short_videos_and_whole_clips_give_bitwise_the_latents_of_one_device(
    media: MediaEnd, num_blocks: int, window: int
) -> None:
    job = case(num_blocks=num_blocks, window=window)
    media.render([job])
    assert job.is_made_bitwise()


def test_three_unlike_jobs_in_a_row_are_each_bitwise_their_own(media: MediaEnd) -> None:
    jobs = [
        case(num_blocks=5, num_steps=3),
        case(num_blocks=2, side=(4, 6), window=1),
        case(num_blocks=6, window=3, num_steps=2),
    ]
    media.render(jobs, at_once=3)
    assert [job.is_made_bitwise() for job in jobs] == [True] * 3


def test_a_cancelled_job_ends_with_whole_blocks_and_the_next_is_untouched(media: MediaEnd) -> None:
    long, after = case(num_blocks=200), case(num_blocks=4)
    media.begin(long)
    while len(long.made) < 2:
        media.take()
    media.cancel(long)
    media.begin(after)
    while media.open:
        media.take()
    assert long.ended
    assert 2 <= len(long.made) < 60
    assert long.is_bitwise()
    assert after.is_made_bitwise()


def test_jobs_that_are_cancelled_as_they_begin_end_too(media: MediaEnd) -> None:
    for _ in range(5):
        job = case(num_blocks=50)
        media.begin(job)
        media.cancel(job)
        while not job.ended:
            media.take()
        assert len(job.made) < 50
    after = case(num_blocks=3)
    media.render([after])
    assert after.is_made_bitwise()


def with_point(media: MediaEnd, folder: Path, block: int) -> tuple[Case, PointPlan]:
    """A whole video and its points; they are left out while the disk of a busy machine is slow."""
    parts = [part_of_rank(rank) for rank in range(media.layout.mesh.num_dit_ranks)]
    for attempt in range(10):
        plan = PointPlan(folder / str(attempt), every=2)
        plan.folder.mkdir()
        whole = case(num_blocks=block + 3, window=4, points=plan)
        media.render([whole])
        deadline = time.monotonic() + WRITTEN_S
        while time.monotonic() < deadline:
            if block in whole_points(plan.folder, parts):
                return whole, plan
            time.sleep(0.01)
    raise AssertionError("no point is ever written")


@pytest.mark.parametrize("first_block", [2, 6])
def test_a_video_that_goes_on_from_a_point_makes_bitwise_the_rest(
    media: MediaEnd, tmp_path: Path, first_block: int
) -> None:
    # Before the condition is refreshed, and when it is and the rings have wrapped.
    whole, plan = with_point(media, tmp_path, first_block)
    rest = case(
        num_blocks=whole.num_blocks,
        window=4,
        first_block=first_block,
        points=plan,
        seed=whole.video,
    )
    media.render([rest, case(num_blocks=2)])
    assert whole.is_made_bitwise()
    assert rest.is_made_bitwise()


def test_stages_in_bfloat16_give_bitwise_the_latents_of_one_device() -> None:
    layout = Layout(Mesh(3), dtype=torch.bfloat16)
    with ranks_of(layout) as media:
        job = case(num_blocks=5, layout=layout)
        media.render([job])
    assert job.made[0].dtype == torch.bfloat16
    assert job.is_made_bitwise()
