"""One simulated cluster for all tests of a file: its processes take seconds to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.simulated_cluster import Machines
from liveavatar.cluster.pool import Pool


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def pool(machines: Machines) -> Iterator[Pool]:
    with Pool(machines.address) as made:
        yield made
