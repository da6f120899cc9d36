"""Rank arithmetic, both ways."""

from __future__ import annotations

import itertools
import re

import pytest

from liveavatar.errors import ConfigError
from liveavatar.parallel.mesh import Mesh, Place

MESHES = [
    Mesh(stages, tp, sp, own_media_rank=own)
    for stages, tp, sp, own in itertools.product((1, 2, 3, 8), (1, 2, 3), (1, 2, 4), (True, False))
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_rank_has_one_place_and_a_place_one_rank(mesh: Mesh) -> None:
    ranks = range(mesh.num_dit_ranks)
    places = [mesh.place(rank) for rank in ranks]
    expected = itertools.product(
        range(mesh.num_stages), range(mesh.tp_degree), range(mesh.sp_degree)
    )
    assert places == [Place(*coordinates) for coordinates in expected]
    assert [mesh.rank(place) for place in places if place] == list(ranks)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_stages_share_out_the_transformer_ranks(mesh: Mesh) -> None:
    stages = [mesh.stage_ranks(stage) for stage in range(mesh.num_stages)]
    assert list(itertools.chain(*stages)) == list(range(mesh.num_dit_ranks))
    for stage, ranks in enumerate(stages):
        places = [mesh.place(rank) for rank in ranks]
        assert {place.stage for place in places if place} == {stage}


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_media_rank_is_the_last(mesh: Mesh) -> None:
    assert mesh.media_rank == mesh.world_size - 1
    assert mesh.world_size == mesh.num_dit_ranks + mesh.own_media_rank
    assert (mesh.place(mesh.media_rank) is None) == mesh.own_media_rank


def test_the_headline_layout_is_three_stages_and_a_media_rank() -> None:
    mesh = Mesh(num_stages=3)
    assert (mesh.world_size, mesh.media_rank) == (4, 3)
    assert [mesh.place(rank) for rank in range(3)] == [Place(stage, 0, 0) for stage in range(3)]


@pytest.mark.parametrize("name", ["num_stages", "tp_degree", "sp_degree"])
@pytest.mark.parametrize("degree", [0, -1])
def test_a_degree_below_1_is_refused_by_name(name: str, degree: int) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: expected at least 1, got {degree}$"):
        Mesh(**{name: degree})


@pytest.mark.parametrize("rank", [-1, 7, 100])
def test_a_rank_that_is_not_there_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"expected 0 to 6, got {rank}")):
        Mesh(3, 2).place(rank)
