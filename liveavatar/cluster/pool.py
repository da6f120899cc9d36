"""The worker groups of a Ray cluster: more of them, fewer of them, how they are.

Ray places groups, starts them again and notices lost machines; who renders which job is decided by
the job store alone. So a pool holds nothing: any process may make one, use it and leave.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import count
from types import TracebackType
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources

from liveavatar.cluster.keeper import make_keeper
from liveavatar.cluster.names import KEEPER, NAMESPACE, find_group, find_keeper
from liveavatar.cluster.order import Order
from liveavatar.cluster.placements import (
    NodeState,
    Placement,
    make_group,
    nodes,
    placements,
    remove_group,
)
from liveavatar.errors import ConfigError, DeadlineError

_ANSWER_S = 10.0
_CONNECT_S = 5.0
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class GroupReport:
    """A group, as Ray and it itself tell.

    Attributes:
        place: where it is.
        state: what its supervisor says; "waiting" without a place, "silent" without an answer.
        message: one line for people, or empty.
        jobs: how many it has at hand.
    """

    place: Placement
    state: str
    message: str
    jobs: int


class Pool:
    """A connection to a Ray cluster and the groups on it; leave it by `close`, groups stay.

    Args:
        address: of a cluster, such as "10.0.0.1:6379"; None starts one on this machine alone, which
            ends with `close`, its groups too.

    Raises:
        ConfigError: no cluster answers there.
    """

    def __init__(self, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to others
        # It warns of every group that its place must not go before its actor; that is seen to.
        logging.getLogger("ray.actor").setLevel(logging.ERROR)
        self._is_ours = not ray.is_initialized()
        if not self._is_ours:
            return
        options = {"include_dashboard": False} if address is None else {}
        try:
            _require_listener(address)
            ray.init(
                address=address or "local",
                namespace=NAMESPACE,
                logging_level=logging.WARNING,
                log_to_driver=address is None,
                **options,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"ray_address: no Ray cluster of this version answers at {address or 'local'!r}: "
                f"{_one_line(error)}"
            ) from None

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_ours:
            ray.shutdown()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def set_order(self, order: Order) -> None:
        """Let groups that are made from now on serve this; older ones stay as they are."""
        keeper = find_keeper()
        if keeper is None or self._ask(keeper.order.remote(), KEEPER) != order:
            self._ask(make_keeper(order).order.remote(), KEEPER)

    def order(self) -> Order:
        """What groups are made by; ConfigError when nobody has said it yet."""
        if (keeper := find_keeper()) is None:
            raise ConfigError(
                "there is no pool of groups in this cluster yet; python app.py --backend ray "
                "--groups N --ray-address ADDRESS makes one"
            )
        order: Order = self._ask(keeper.order.remote(), KEEPER)
        return order

    def grow(self, number: int) -> list[int]:
        """Ask for more groups; returns their numbers at once. They start where there is room.

        A group without room waits, and an autoscaler sees it as demand.
        """
        order = self.order()
        made: list[int] = []
        taken = {place.number for place in placements()}
        for candidate in count(1):
            if len(made) == number:
                return made
            if candidate not in taken and make_group(candidate, order):
                made.append(candidate)
        return made

    def grow_to(self, number: int) -> list[int]:
        """Ask for as many more as are lacking; returns the numbers of those."""
        return self.grow(max(0, number - len(placements())))

    def shrink(self, number: int) -> list[int]:
        """Let groups finish what they render, then leave; returns the numbers of those at once.

        Those that wait for a machine go first, then those with least to do.
        """
        reports = [each for each in self.state() if each.state != "draining"]
        order = {"waiting": 0, "silent": 1}
        reports.sort(key=lambda each: (order.get(each.state, 2), each.jobs, -each.place.number))
        chosen = [each.place for each in reports[:number]]
        for place in chosen:
            if place.state == "waiting" or (group := find_group(place.number)) is None:
                remove_group(place.number)
            else:
                self._ask(group.drain.remote(), f"group {place.number}")
        return sorted(place.number for place in chosen)

    def wait_until_gone(self, numbers: Iterable[int], timeout_s: float) -> None:
        """Wait until these groups have left; DeadlineError."""
        rest = set(numbers)
        self._wait(
            lambda: not rest & {place.number for place in placements()},
            f"groups {', '.join(map(str, sorted(rest)))} still finish their jobs",
            timeout_s,
        )

    def stop(self) -> list[int]:
        """End all groups now and the keeper; their jobs wait for others. Returns their numbers."""
        numbers = [place.number for place in placements()]
        for number in numbers:
            remove_group(number)
        if (keeper := find_keeper()) is not None:
            ray.kill(keeper, no_restart=True)
        return numbers

    def keep_room(self, number: int) -> None:
        """Ask Ray's autoscaler for machines with room for so many groups in all; 0 lifts that."""
        request_resources(bundles=[dict(self.order().share.bundle) for _ in range(number)])

    def nodes(self) -> list[NodeState]:
        """All machines, also those that were lost."""
        return nodes()

    def state(self) -> list[GroupReport]:
        """All groups; one that does not answer within seconds is said to be silent."""
        asked = {}
        places = placements()
        for place in places:
            if place.state == "placed" and (group := find_group(place.number)) is not None:
                asked[place.number] = group.says.remote()
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_S / 4)
        return [self._report(place, asked.get(place.number)) for place in places]

    def document(self) -> dict[str, Any]:
        """Nodes and groups, as JSON can hold them."""
        return {
            "nodes": [asdict(node) for node in self.nodes()],
            "groups": [asdict(report) for report in self.state()],
        }

    def _report(self, place: Placement, answer: Any) -> GroupReport:
        if place.state == "waiting":
            return GroupReport(place, "waiting", "no machine has room for it", 0)
        try:
            said = ray.get(answer, timeout=0.1) if answer is not None else None
        except ray.exceptions.RayError as error:
            return GroupReport(place, "silent", _one_line(error), 0)
        if said is None:
            return GroupReport(place, "silent", "", 0)
        return GroupReport(place, **said)

    def _ask(self, answer: Any, whom: str) -> Any:
        try:
            return ray.get(answer, timeout=_ANSWER_S * 3)
        except ray.exceptions.GetTimeoutError:
            raise DeadlineError(f"{whom} does not answer in {_ANSWER_S * 3:.0f} s") from None
        except ray.exceptions.RayError as error:
            raise DeadlineError(f"{whom} does not answer: {_one_line(error)}") from None

    def _wait(self, is_so: Callable[[], bool], otherwise: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > deadline:
                raise DeadlineError(f"{otherwise} after {timeout_s:.0f} s")
            time.sleep(_LOOK_EVERY_S)


def _require_listener(address: str | None) -> None:
    """Raise OSError when nothing listens at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
