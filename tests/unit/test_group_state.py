"""What is told of a group: ranks at work, idle ranks, and neither for what nobody asked."""

from __future__ import annotations

from typing import Any

import pytest

from liveavatar.engine.group_state import GroupState
from liveavatar.engine.messages import Loading, RankStatus, Ready


def status(rank: int, item: str = "", busy: float = 0.0) -> RankStatus:
    role = f"stage {rank}" if rank == 0 else "media"
    return RankStatus(rank, role, "cpu", None, 1, 1, 0, busy, item, 1.0 - busy, 0.0)


def told(state: GroupState) -> list[tuple[str, float]]:
    ranks: list[dict[str, Any]] = state.document([])["ranks"]
    return [(rank["item"], rank["busy_share"]) for rank in ranks]


@pytest.fixture
def state() -> GroupState:
    """Of a group that was just made ready, by a video for nobody."""
    state = GroupState()
    state.begin()
    state.take(Loading(1, 5, 10))
    state.take(Ready(0, 1.0, 1.0))
    state.take(status(0, "job 0 block 0 step 1", 0.5))
    state.take(status(1, "job 0 block 0", 1.0))
    assert told(state) == [("warm-up", 0.5), ("warm-up", 1.0)]
    state.take(Ready(1, 1.0, 2.0))
    state.serve()
    return state


def test_ranks_are_idle_when_the_group_is_ready(state: GroupState) -> None:
    assert told(state) == [("", 0.0), ("", 0.0)]
    assert [rank["waiting_share"] for rank in state.document([])["ranks"]] == [0.0, 0.0]


def test_the_end_of_the_warm_up_is_no_work(state: GroupState) -> None:
    state.take(status(1, "", 0.75))  # of its last second, which the warm-up has begun
    assert told(state) == [("", 0.0), ("", 0.0)]


def test_work_is_told_from_the_first_report_on(state: GroupState) -> None:
    state.take(status(0, "job 1 condition", 0.25))
    assert told(state)[0] == ("job 1 condition", 0.25)
    state.take(status(1, "", 0.0))
    state.take(status(1, "", 0.125))  # it worked in between
    assert told(state)[1] == ("", 0.125)


def test_another_group_begins_with_nothing(state: GroupState) -> None:
    state.begin()
    assert told(state) == []
    state.take(status(0, "job 0 condition", 0.5))
    assert told(state) == [("warm-up", 0.5)]
