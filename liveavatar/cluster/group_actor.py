"""One worker group of a cluster: the supervisor of one machine, in a process that Ray keeps."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from liveavatar.cluster.names import find_keeper, own_node
from liveavatar.cluster.order import Order
from liveavatar.engine.identity import Identity
from liveavatar.engine.ladder import Ladder
from liveavatar.engine.supervisor import Supervisor
from liveavatar.errors import LiveAvatarError
from liveavatar.jobs.store import JobStore

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.2
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 30.0
_ASK_TO_GO_EVERY_S = 5.0


class GroupActor:
    """Serves the jobs of the shared store, with ranks on the machine where Ray has put it.

    Made at once: a database or a checkpoint that is not there yet is tried again, since Ray gives
    up an actor that cannot be made. When Ray makes it again, here or on another machine, it takes
    back what its name held.

    Args:
        number: of the group.
        worker: its name in the store, of this group alone.
        order: what it serves.
    """

    def __init__(self, number: int, worker: str, order: Order) -> None:
        logging.basicConfig(
            level=logging.INFO, format=f"%(asctime)s %(levelname)s group {number}: %(message)s"
        )
        # Each rank would read the program of this process when it starts, which is Ray's.
        vars(sys.modules["__main__"]).pop("__file__", None)
        self._number, self._worker, self._order = number, worker, order
        self._leaving = threading.Event()
        self._supervisor: Supervisor | None = None
        self._trouble = ""
        threading.Thread(target=self._live, name="life of a group", daemon=True).start()

    def drain(self) -> None:
        """Take no more jobs, finish those at hand, then leave the cluster; returns at once."""
        self._leaving.set()
        if self._supervisor is not None:
            self._supervisor.drain()

    def says(self) -> dict[str, Any]:
        """State, message and number of jobs, for people."""
        if self._supervisor is None:
            return {"state": "starting", "message": self._trouble, "jobs": 0}
        state = self._supervisor.state
        return {"state": state.word, "message": state.message, "jobs": self._supervisor.num_jobs}

    def _live(self) -> None:
        wait_s = _FIRST_BACKOFF_S
        while not self._leaving.is_set():
            try:
                self._serve()
            except LiveAvatarError as error:
                logger.error("%s; trying again in %.0f s", error, wait_s)
                self._trouble = str(error)
                self._leaving.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_BACKOFF_S)
            except Exception:  # the border: Ray would not see a thread that ended
                logger.exception("the group cannot be served; trying again in %.0f s", wait_s)
                self._leaving.wait(wait_s)
        self._leave()

    def _serve(self) -> None:
        order, spool = self._order, self._order.spool(self._number)
        with closing(JobStore(order.database)) as store:
            served = order.served()
            supervisor = Supervisor(
                store,
                spool,
                served.group_maker(order.tiers),
                replace(order.supervising, ability=served.ability(order.tiers)),
                Ladder(order.tiers),
                Identity(self._worker, self._number, own_node(), shares=True),
            )
            if self._was_leaving(store):
                self._leaving.set()
            supervisor.start()
            self._supervisor = supervisor
            if self._leaving.is_set():
                supervisor.drain()
            while supervisor.is_alive:
                time.sleep(_LOOK_EVERY_S)

    def _was_leaving(self, store: JobStore) -> bool:
        """Whether this group was draining when its process, or its machine, was lost."""
        said = {worker.worker: worker.document for worker in store.read_workers()}
        return bool(said.get(self._worker, {}).get("leaves"))

    def _leave(self) -> None:
        """Ask to be removed until that is done: a process cannot see to its own removal."""
        while True:
            if (keeper := find_keeper()) is not None:
                keeper.let_go.remote(self._number)
            time.sleep(_ASK_TO_GO_EVERY_S)
