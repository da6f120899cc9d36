"""When a waiting job begins, by what the groups have to do and what is ahead of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveavatar.jobs.ability import EVERYTHING, Ability
from liveavatar.jobs.costs import PLANNED_S
from liveavatar.jobs.forecast import Forecast, Outlook, wait_s
from liveavatar.jobs.job import JobState
from liveavatar.jobs.store import JobStore
from tests.unit.job_material import LIMITS, new_store, spec


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = new_store(tmp_path)
    yield store
    store.close()


def say(store: JobStore, worker: str, ability: Ability = EVERYTHING, state: str = "ready") -> None:
    store.write_worker(worker, {"state": state, "ability": ability.document()})


@pytest.mark.parametrize(
    ("groups_left", "ahead_s", "expected"),
    [
        ([], 5.0, None),
        ([0.0], 0.0, 0.0),
        ([30.0], 12.0, 42.0),
        ([10.0, 20.0, 90.0], 0.0, 10.0),
        ([10.0, 20.0, 90.0], 10.0, 20.0),
        ([10.0, 20.0, 90.0], 30.0, 30.0),
        ([90.0, 20.0, 10.0], 300.0, 140.0),
    ],
)
def test_work_flows_into_the_groups_that_are_free_first(
    groups_left: list[float], ahead_s: float, expected: float | None
) -> None:
    assert wait_s(groups_left, ahead_s) == expected


def test_position_and_time_follow_from_the_queue_and_the_groups(store: JobStore) -> None:
    running, second, third = (
        store.submit(spec(owner=owner, total_frames=250), LIMITS) for owner in "abc"
    )
    cost = PLANNED_S * 250 * 64 * 64 * 4
    assert second.cost_s == pytest.approx(cost)
    taken = store.claim("one", 60)
    assert taken is not None
    assert Forecast(store).outlook(store.get(running.id)) is None
    assert Forecast(store).outlook(third) == Outlook(2, None)  # nobody is there yet
    say(store, "one")
    assert Forecast(store).outlook(third) == Outlook(2, pytest.approx(2 * cost))
    store.record_progress(taken[0], frames=50, stage="rendering", fps=20.0, first_frame_s=1.0)
    assert Forecast(store).outlook(third) == Outlook(2, pytest.approx(10 + cost))
    say(store, "two")
    assert Forecast(store).outlook(second) == Outlook(1, 0.0)
    assert Forecast(store).outlook(third) == Outlook(2, pytest.approx(min(cost, 10)))


def test_only_groups_that_can_make_it_and_take_jobs_count(store: JobStore) -> None:
    for _ in range(3):
        store.submit(spec(tier="fast"), LIMITS)
    high = store.submit(spec(tier="high", width=704, height=384), LIMITS)
    say(store, "small", Ability(frozenset({"fast"})))
    say(store, "short of memory", Ability(most_pixels=704 * 384 - 1))
    say(store, "leaving", state="draining")
    assert Forecast(store).outlook(high) == Outlook(4, None, is_makeable=False)
    say(store, "large", Ability(frozenset({"high"})))
    assert Forecast(store).outlook(high) == Outlook(1, 0.0)


def test_a_group_that_is_silent_does_not_count(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    past = JobStore(f"sqlite:///{tmp_path / 'jobs.db'}", now=lambda: time.time() - 60)
    job = store.submit(spec(), LIMITS)
    say(past, "gone")
    assert Forecast(store).outlook(job) == Outlook(1, None)
    say(store, "gone")
    assert Forecast(store).outlook(job) == Outlook(1, 0.0)
    past.close()
    store.close()


def test_costs_follow_the_speed_that_was_measured(store: JobStore) -> None:
    store.submit(spec(total_frames=100), LIMITS)
    taken = store.claim("one", 60)
    assert taken is not None
    store.record_progress(taken[0], frames=100, stage="rendering", fps=50.0, first_frame_s=1.0)
    store.finish(taken[0], JobState.DONE)
    assert store.submit(spec(total_frames=100), LIMITS).cost_s == pytest.approx(2.0)
    wide = spec(total_frames=100, width=128)
    assert store.submit(wide, LIMITS).cost_s == pytest.approx(4.0)
    other = store.submit(spec(tier="high", total_frames=100), LIMITS)
    assert other.cost_s == pytest.approx(PLANNED_S * 100 * 64 * 64 * 4)
