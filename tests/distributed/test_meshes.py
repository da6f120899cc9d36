"""Stages shared out over ranks, in every way and mixed, make the latents of one device.

Sums over heads, widths and channels are taken in another order there, so that the last bits differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from liveavatar.parallel.mesh import Mesh
from liveavatar.random_checkpoint import TINY
from tests.distributed.pipeline_ranks import Case, Layout, MediaEnd, ranks_of

# float32 rounds to 6e-8 of a number; this is after 4 layers, 4 steps and a ring of earlier blocks.
TOLERANCE = 2e-5
EIGHT_HEADS = replace(TINY, num_heads=8)
LAYOUTS = [
    Layout(Mesh(1, 2, 1), EIGHT_HEADS),
    Layout(Mesh(1, 1, 2), EIGHT_HEADS),  # 45 tokens of a block over two ranks
    Layout(Mesh(1, 1, 3), EIGHT_HEADS),  # eight heads over three
    Layout(Mesh(2, 2, 1), EIGHT_HEADS),
    Layout(Mesh(1, 2, 2), EIGHT_HEADS),
    Layout(Mesh(2, 1, 2), EIGHT_HEADS),
    Layout(Mesh(1, 1, 2), EIGHT_HEADS, sharded=True),
]

numbers = itertools.count(1)


def name(layout: Layout) -> str:
    mesh, kind = layout.mesh, "-sharded" if layout.sharded else ""
    return f"{mesh.num_stages}x{mesh.tp_degree}x{mesh.sp_degree}{kind}"


@pytest.fixture(scope="module", params=LAYOUTS, ids=name)
def media(request: pytest.FixtureRequest) -> Iterator[MediaEnd]:
    with ranks_of(request.param) as started:
        yield started


def test_a_mesh_makes_the_latents_of_one_device(media: MediaEnd) -> None:
    jobs = [
        Case(next(numbers), layout=media.layout, num_blocks=7),
        Case(next(numbers), (10, 6), num_blocks=5, window=1, num_steps=3, layout=media.layout),
    ]
    media.render(jobs)
    for job in jobs:
        assert job.largest_error() < TOLERANCE
