"""Fair queueing: bounds between owners, head starts that end, no starvation, order kept."""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

from liveavatar.jobs.fair_share import HEAD_START_S, PACE, Place, VirtualClock, place_of


@dataclass
class Line:
    """One group that takes jobs one after the other, in memory; times are seconds.

    `served` holds (owner, cost, when it was claimed), in the order of the claims.
    """

    now: float = 0.0
    clock: VirtualClock = field(default_factory=VirtualClock)
    finishes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    waiting: list[tuple[float, int, str, float]] = field(default_factory=list)
    served: list[tuple[str, float, float]] = field(default_factory=list)
    submitted: int = 0

    def submit(self, owner: str, cost: float) -> Place:
        place = place_of(self.clock.read(self.now), self.finishes[owner], cost)
        self.finishes[owner] = place.finish
        self.submitted += 1
        heapq.heappush(self.waiting, (place.order, self.submitted, owner, cost))
        return place

    def serve(self) -> str:
        order, _, owner, cost = heapq.heappop(self.waiting)
        self.clock = self.clock.claimed(order, self.now)
        self.served.append((owner, cost, self.now))
        self.now += cost
        return owner

    def had(self, owner: str) -> float:
        return sum(cost for whose, cost, _ in self.served if whose == owner)


def lined_up(jobs: Iterable[tuple[str, float]]) -> Line:
    line = Line()
    for owner, cost in jobs:
        line.submit(owner, cost)
    return line


@pytest.mark.parametrize("seed", range(5))
def test_of_owners_who_wait_none_gets_more_than_a_job_of_each_before_the_others(seed: int) -> None:
    draw = random.Random(seed)
    most = {"short": 20.0, "mixed": 900.0, "long": 4000.0}
    line = lined_up(
        (owner, draw.uniform(1, limit)) for _ in range(200) for owner, limit in most.items()
    )
    left = dict.fromkeys(most, 200)
    while all(left.values()):
        left[line.serve()] -= 1
        for one in most:
            for other in most:
                assert line.had(one) - line.had(other) <= most[one] + most[other]


def test_an_owner_who_submits_a_hundred_jobs_does_not_hold_up_one_who_comes_later() -> None:
    line = lined_up(("flood", 60.0) for _ in range(100))
    for _ in range(10):
        line.serve()
    line.submit("ann", 60.0)
    before = len(line.served)
    while line.serve() != "ann":
        pass
    assert len(line.served) - before <= 2


def test_a_short_job_passes_the_hour_long_ones_of_others() -> None:
    line = lined_up((f"studio {n}", 3600.0) for n in range(10))
    line.submit("ann", 20.0)
    assert line.serve() == "ann"


def test_one_owners_jobs_keep_their_order_whatever_they_cost() -> None:
    draw = random.Random(1)
    places = [Place(0.0, 0.0)]
    line = Line()
    for _ in range(300):
        line.now += draw.uniform(0, 400)
        places.append(line.submit("ann", draw.choice([1.0, 30.0, 3000.0])))
    orders = [place.order for place in places]
    assert orders == sorted(orders)


def test_owners_who_come_one_after_the_other_with_short_jobs_starve_nobody() -> None:
    """Twice as much comes as can be served, each time from somebody new."""
    cost = 10.0
    line = lined_up([("patient", 3600.0)])
    while "patient" not in {owner for owner, _, _ in line.served}:
        for _ in range(2):
            line.submit(f"owner {line.submitted}", cost)
        line.serve()
    _, _, when = line.served[-1]
    last_that_passed = HEAD_START_S / PACE
    assert when <= 2 * last_that_passed + cost
    assert when > 100 * cost  # it did wait for more than a handful: the head start counts


def test_a_job_that_comes_after_the_head_start_has_run_out_passes_nobody() -> None:
    line = Line()
    early = line.submit("patient", 1e6)
    line.now = HEAD_START_S / PACE
    assert line.submit("late", 0.001).order > early.order


def test_what_an_owner_had_long_ago_is_forgotten() -> None:
    line = lined_up(("ann", 5000.0) for _ in range(3))
    for _ in range(3):
        line.serve()
    line.now += 15_000 / PACE
    ann, bob = line.submit("ann", 10.0), line.submit("bob", 10.0)
    assert ann == bob


def test_the_same_submissions_give_the_same_order() -> None:
    draw = random.Random(2)
    jobs = [(draw.choice("abcd"), draw.uniform(1, 500)) for _ in range(200)]
    first, second = lined_up(jobs), lined_up(jobs)
    for _ in jobs:
        first.serve()
        second.serve()
    assert first.served == second.served


def test_a_clock_that_is_set_back_stops_the_virtual_time_and_never_turns_it_back() -> None:
    clock = VirtualClock(100.0, at=1000.0)
    assert clock.read(500.0) == 100.0
    after = clock.claimed(90.0, 500.0)
    assert after == VirtualClock(100.0, 500.0)
    assert after.read(510.0) == 100.0 + 10 * PACE
