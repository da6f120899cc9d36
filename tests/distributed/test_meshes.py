"""Tensor and sequence parallel stages, alone and mixed, make the latents of one device.

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

pytestmark = pytest.mark.timeout(180)

# float32 rounds to 6e-8 of a number; this is after 4 layers, 4 steps and a ring of earlier blocks.
TOLERANCE = 2e-5
EIGHT_HEADS = replace(TINY, num_heads=8)
MESHES = [
    Mesh(1, 2, 1),
    Mesh(1, 1, 2),
    Mesh(1, 1, 3),  # 3, 3 and 2 heads; 48 tokens of a block divide, 21 of the condition do too
    Mesh(2, 2, 1),
    Mesh(1, 2, 2),
    Mesh(2, 1, 2),
]

numbers = itertools.count(1)


def name(mesh: Mesh) -> str:
    return f"{mesh.num_stages}x{mesh.tp_degree}x{mesh.sp_degree}"


@pytest.fixture(scope="module", params=MESHES, ids=name)
def media(request: pytest.FixtureRequest) -> Iterator[MediaEnd]:
    with ranks_of(Layout(request.param, EIGHT_HEADS)) as started:
        yield started


def test_a_mesh_makes_the_latents_of_one_device(media: MediaEnd) -> None:
    jobs = [
        Case(next(numbers), layout=media.layout, num_blocks=7),
        Case(next(numbers), (10, 6), num_blocks=5, window=1, num_steps=3, layout=media.layout),
    ]
    media.render(jobs)
    for job in jobs:
        print(job.largest_error())
        assert job.largest_error() < TOLERANCE
