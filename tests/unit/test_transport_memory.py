"""What NCCL takes of a card is bounded, planned as a line of its own, and held to by the ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch.distributed as dist

from liveavatar.config import SamplingConfig
from liveavatar.parallel.group import Meeting, join
from liveavatar.parallel.mesh import Mesh
from liveavatar.plan.layout import GIB, Machine, plan_layout
from liveavatar.plan.shapes import Network
from liveavatar.plan.sharing import Sharing
from liveavatar.plan.transport_memory import MAX_CHANNELS, transport_bytes

MIB = 2**20
CARD = int(22.15 * GIB)


def test_a_link_has_buffers_of_every_protocol_on_each_channel() -> None:
    library = transport_bytes(1, 0) - 4 * 6 * MIB
    assert library == 256 * MIB
    # 4 + 0.5 + 4.69 MiB and a header, in granules of 2 MiB
    assert transport_bytes(0, 1) == library + MAX_CHANNELS * 10 * MIB
    assert transport_bytes(1, 1) == library + MAX_CHANNELS * 16 * MIB
    assert transport_bytes(0, 0) == 0


@pytest.mark.parametrize(
    ("machine", "links"),
    [
        (Machine(4, CARD), (1, 1)),
        (Machine(3, CARD, share_media=True), (1, 1)),
        (Machine(4, CARD, share_media=True, sharing=Sharing(sp_degree=2)), (2, 1)),
        (Machine(4, CARD, share_media=True, sharing=Sharing(sp_degree=4)), (3, 1)),
        (Machine(2, CARD), (0, 0)),  # one stage beside the media rank
        (Machine(1, CARD), (0, 0)),
        (Machine(0, CARD, stages_on_cpu=3), (0, 0)),
    ],
)
def test_stages_with_links_between_cards_have_it_in_the_plan(
    machine: Machine, links: tuple[int, int]
) -> None:
    *stages, media = plan_layout(Network(), (256, 384), SamplingConfig(), machine).ranks
    assert {rank.transport for rank in stages} == {transport_bytes(*links)}
    assert media.transport == 0, "its links are sockets"
    assert all(rank.beside_torch == rank.transport + rank.context for rank in stages)


@pytest.mark.parametrize(("given", "found"), [(None, str(MAX_CHANNELS)), ("16", "16")])
def test_ranks_hold_nccl_to_the_channels_that_are_planned_unless_told_otherwise(
    given: str | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "TORCH_NCCL_DUMP_ON_TIMEOUT", "NCCL_MAX_CTAS"):
        monkeypatch.setenv(name, "")  # to be as it was afterwards
        monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv("NCCL_MAX_CTAS", given)
    join(Meeting(tmp_path, 0, Mesh(1), "gloo", 10.0))
    try:
        assert os.environ["NCCL_MAX_CTAS"] == found
    finally:
        dist.destroy_process_group()
