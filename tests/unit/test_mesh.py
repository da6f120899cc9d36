"""Rank arithmetic, both ways."""

from __future__ import annotations

import itertools
import re

import pytest

from liveavatar.errors import ConfigError
from liveavatar.parallel.mesh import Mesh, Place, check_heads, shares

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
def test_ranks_that_share_differ_in_one_coordinate_only(mesh: Mesh) -> None:
    for rank in range(mesh.num_dit_ranks):
        place = mesh.place(rank)
        assert place
        assert [mesh.place(other) for other in mesh.tp_ranks(place)] == [
            Place(place.stage, tp_rank, place.sp_rank) for tp_rank in range(mesh.tp_degree)
        ]
        assert [mesh.place(other) for other in mesh.sp_ranks(place)] == [
            Place(place.stage, place.tp_rank, sp_rank) for sp_rank in range(mesh.sp_degree)
        ]


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


def test_forty_heads_are_shared_out_over_three_ranks() -> None:
    assert [len(heads) for heads in shares(40, 3)] == [14, 13, 13]


@pytest.mark.parametrize("count", [0, 1, 5, 12, 40])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shares_are_in_a_row_and_differ_by_one_at_most(count: int, parts: int) -> None:
    cut = shares(count, parts)
    assert list(itertools.chain(*cut)) == list(range(count))
    assert len(cut) == parts
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


@pytest.mark.parametrize(("tp", "sp"), [(1, 1), (2, 1), (8, 5), (1, 40), (4, 3)])
def test_heads_that_can_be_shared_out_are_accepted(tp: int, sp: int) -> None:
    check_heads(40, tp_degree=tp, sp_degree=sp)


@pytest.mark.parametrize(
    ("tp", "sp", "message"),
    [
        (3, 1, r"\Atp_degree: expected a number that divides the 40 heads, got 3\Z"),
        (80, 1, r"\Atp_degree: [^\n]*got 80\Z"),
        (1, 41, r"\Asp_degree: expected at most 40, [^\n]*got 41\Z"),
        (8, 6, r"\Asp_degree: expected at most 5, [^\n]*got 6\Z"),
    ],
)
def test_heads_that_cannot_be_shared_out_are_refused_in_one_line(
    tp: int, sp: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_heads(40, tp_degree=tp, sp_degree=sp)
