"""The one small process beside the groups: knows the order, removes who leaves, tells the store.

It decides nothing about jobs: while it is away, groups render on. Because it writes what Ray knows
into the job store, web front ends need no connection to Ray.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from dataclasses import asdict
from typing import Any

import ray

from liveavatar.cluster.names import KEEPER, NAMESPACE, find_keeper
from liveavatar.cluster.order import Order
from liveavatar.cluster.placements import nodes, placements, remove_group
from liveavatar.errors import LiveAvatarError
from liveavatar.jobs.store import JobStore

ROW = "cluster"
"""Its name among the workers of the job store."""

_TELL_EVERY_S = 2.0

logger = logging.getLogger(__name__)


class Keeper:
    """Keeps the order of a cluster's groups.

    Args:
        order: what groups are made by.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        threading.Thread(target=self._tell_for_ever, name="keeper", daemon=True).start()

    def order(self) -> Order:
        """What groups are made by."""
        return self._order

    def let_go(self, number: int) -> None:
        """Remove a group that has nothing to do any more."""
        remove_group(number)

    def _tell_for_ever(self) -> None:
        pause = threading.Event()
        while True:
            try:
                with closing(JobStore(self._order.database)) as store:
                    while not pause.wait(_TELL_EVERY_S):
                        store.write_worker(ROW, document())
            except LiveAvatarError as error:
                logger.warning("the state of the cluster is not told: %s", error)
            pause.wait(_TELL_EVERY_S)


def document() -> dict[str, Any]:
    """What Ray knows, as JSON can hold it."""
    return {
        "state": "cluster",
        "nodes": [asdict(node) for node in nodes()],
        "placements": [asdict(place) for place in placements()],
    }


def make_keeper(order: Order) -> Any:
    """Make a keeper, in the place of one with another order."""
    if (old := find_keeper()) is not None:
        ray.kill(old, no_restart=True)
    return (
        ray.remote(Keeper)
        .options(
            name=KEEPER,
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_task_retries=3,
            num_cpus=0,
            runtime_env={"env_vars": {"PYTHONPATH": str(order.code)}},
        )
        .remote(order)
    )
