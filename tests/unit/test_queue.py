"""The queue in the database: who is claimed next, by whom, and what an older database becomes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from liveavatar.jobs.ability import EVERYTHING, Ability
from liveavatar.jobs.costs import PLANNED_S
from liveavatar.jobs.fair_share import FIRST
from liveavatar.jobs.job import Job
from liveavatar.jobs.store import JobStore
from tests.unit.job_material import LIMITS, new_store, spec

ADDED = ("queue_order", "cost_s", "pixels")
INDEXES = ("ix_jobs_queue", "ix_jobs_lane", "ix_jobs_ended", "ix_jobs_owner_state")


def claim(store: JobStore, ability: Ability = EVERYTHING) -> Job | None:
    taken = store.claim("w", 60, ability)
    return None if taken is None else taken[1]


def claims(store: JobStore, ability: Ability = EVERYTHING) -> Iterator[Job]:
    while (job := claim(store, ability)) is not None:
        yield job


def test_owners_take_turns(store: JobStore) -> None:
    for owner in "aaabbc":
        # Of some length: the virtual time goes on by itself while they are submitted.
        store.submit(spec(owner=owner, total_frames=25_000), LIMITS)
    order = [job.spec.owner for job in claims(store)]
    assert sorted(order[:3]) == ["a", "b", "c"]
    assert order[-1] == "a"


def test_a_short_video_is_claimed_before_the_long_ones_of_others(store: JobStore) -> None:
    for owner in "abc":
        store.submit(spec(owner=owner, total_frames=90_000, width=688, height=368), LIMITS)
    short = store.submit(spec(owner="d"), LIMITS)
    first = claim(store)
    assert first is not None
    assert first.id == short.id


def test_an_owner_who_waits_long_enough_is_not_passed_any_more(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    store = JobStore(url, now=lambda: now[0])
    long = store.submit(spec(owner="a", total_frames=90_000, width=688, height=368), LIMITS)
    now[0] += 6001
    store.submit(spec(owner="b"), LIMITS)
    first = claim(store)
    assert first is not None
    assert first.id == long.id
    store.close()


def test_what_was_interrupted_goes_first(store: JobStore) -> None:
    store.submit(spec(owner="a", total_frames=90_000), LIMITS)
    taken = store.claim("w", 60)
    assert taken is not None
    for _ in range(3):
        store.submit(spec(owner="b"), LIMITS)
    assert store.requeue(taken[0], "killed").queue_order == FIRST
    first = claim(store)
    assert first is not None
    assert first.id == taken[1].id


def test_a_worker_claims_only_what_it_can_make(store: JobStore) -> None:
    small = store.submit(spec(tier="fast", width=384, height=256), LIMITS)
    large = store.submit(spec(tier="high", width=704, height=384), LIMITS)
    other = store.submit(spec(tier="custom", width=128, height=128), LIMITS)
    assert claim(store, Ability(frozenset())) is None
    assert claim(store, Ability(frozenset({"balanced"}))) is None
    assert claim(store, Ability(frozenset({"high"}), most_pixels=704 * 384 - 1)) is None
    both = [job.id for job in claims(store, Ability(frozenset({"high", "custom"})))]
    assert sorted(both) == sorted([large.id, other.id])
    assert [job.id for job in claims(store, Ability(most_pixels=384 * 256))] == [small.id]


def test_of_several_tiers_the_first_in_line_is_claimed(store: JobStore) -> None:
    tiers = ["fast", "high", "custom", "high", "fast", "balanced"]
    jobs = [store.submit(spec(tier=tier, total_frames=250), LIMITS) for tier in tiers]
    able = Ability(frozenset({"fast", "high", "custom"}))
    assert [job.id for job in claims(store, able)] == [job.id for job in jobs[:-1]]


def test_a_job_that_was_cancelled_while_it_waited_is_not_charged_for(store: JobStore) -> None:
    mistake = store.submit(spec(owner="a", total_frames=90_000), LIMITS)
    store.request_cancel(mistake.id)
    again = store.submit(spec(owner="a"), LIMITS)
    other = store.submit(spec(owner="b"), LIMITS)
    # Both start now; the clock itself went on by less than a hundredth of this.
    assert other.queue_order - again.queue_order < 0.01 * mistake.cost_s
    assert again.queue_order - mistake.queue_order < 0.01 * mistake.cost_s


def test_an_older_database_keeps_its_jobs_in_their_order_before_newer_ones(url: str) -> None:
    store = JobStore(url)
    old = [store.submit(spec(owner=owner), LIMITS).id for owner in "aab"]
    store.close()
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for index in INDEXES:
            connection.exec_driver_sql(f"DROP INDEX {index}")
        for column in (*ADDED, "take", "tries", "faults"):
            connection.exec_driver_sql(f"ALTER TABLE jobs DROP COLUMN {column}")
        for table in ("clocks", "shares"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    again = JobStore(url)
    assert again.get(old[0]).take == 0
    new = again.get(again.submit(spec(owner="c"), LIMITS).id)
    assert again.ahead_of(new).jobs == 3
    expected_s = 3 * PLANNED_S * 24 * 64 * 64 * 4
    assert again.ahead_of(new).seconds == pytest.approx(expected_s)
    assert claim(again, Ability(most_pixels=64 * 64 - 1)) is None
    assert [job.id for job in claims(again)] == [*old, new.id]
    again.close()
    there = {index["name"] for index in sa.inspect(engine).get_indexes("jobs")}
    assert set(INDEXES) <= there


def test_many_that_open_a_new_database_at_once_all_get_it(url: str) -> None:
    stores: list[JobStore] = []
    threads = [threading.Thread(target=lambda: stores.append(JobStore(url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(stores) == 8
    job = stores[0].submit(spec(), LIMITS)
    assert all(store.get(job.id) == job for store in stores)
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("ability", "index"),
    [
        (EVERYTHING, "ix_jobs_queue"),
        (Ability(frozenset({"fast", "high"}), 10**6), "ix_jobs_lane"),
    ],
)
def test_the_next_job_is_looked_up_in_an_index(
    tmp_path: Path, ability: Ability, index: str
) -> None:
    store = new_store(tmp_path)
    said: list[str] = []

    def explain(
        connection: sa.Connection, _cursor: object, statement: str, parameters: object, *_: object
    ) -> None:
        if statement.startswith("SELECT") and "jobs" in statement:
            plan = connection.connection.cursor().execute(
                f"EXPLAIN QUERY PLAN {statement}", parameters
            )
            said.extend(row[3] for row in plan.fetchall())

    sa.event.listen(store._engine, "before_cursor_execute", explain)
    store.submit(spec(), LIMITS)
    said.clear()
    assert claim(store, ability) is not None
    searches = [line for line in said if "jobs" in line]
    assert searches
    assert all(f"SEARCH jobs USING COVERING INDEX {index} (state=?" in line for line in searches)
    assert not any("SCAN jobs" in line for line in said)
    store.close()
