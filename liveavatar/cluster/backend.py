"""Worker groups on a Ray cluster, standing where the web server's own supervisor stands."""

from __future__ import annotations

import logging

from liveavatar.cluster.order import Order
from liveavatar.cluster.pool import Pool

logger = logging.getLogger(__name__)


class ClusterBackend:
    """Makes sure of groups when the web server starts; those of an existing cluster outlive it.

    A connection to a cluster ends its process when the cluster's head is away for a minute. So none
    is kept to a cluster of others: the web server learns everything from the job store.

    Args:
        order: what the groups serve.
        num_groups: how many there have to be; more are left alone.
        address: of the cluster; None for one of this machine, which ends with the web server.
    """

    def __init__(self, order: Order, num_groups: int, address: str | None) -> None:
        self._order = order
        self._num_groups = num_groups
        self._address = address
        self._pool: Pool | None = None

    def start(self) -> None:
        """Ask for the groups; they start in their own time.

        Raises:
            ConfigError: no cluster answers.
            DeadlineError: its processes do not answer in time.
        """
        pool = Pool(self._address)
        try:
            pool.set_order(self._order)
            made = pool.grow_to(self._num_groups)
            logger.info("asked for %d more worker groups: %s", len(made), made)
        except BaseException:
            pool.close()
            raise
        if self._address is None:
            self._pool = pool
        else:
            pool.close()

    def drain(self) -> None:
        """Let the groups of a cluster of this machine finish what they render."""
        if self._pool is not None:
            self._pool.shrink(len(self._pool.state()))

    @property
    def is_alive(self) -> bool:
        """Whether groups render that end with this process."""
        return self._pool is not None and bool(self._pool.state())

    def stop(self) -> None:
        """End the cluster of this machine; what its groups held is taken up later."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.close()
            self._pool = None
