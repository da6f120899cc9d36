"""How much one sender, and all together, may ask for: requests in a time, and answers at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from webui.guard import SAFE_METHODS, client_of, refuse

_SAVED_S = 20.0  # a quiet sender may use the requests of so long at once
_COST_OF_CHANGE = 40  # uploads, submissions, calls: each is worth that many simple requests
_MOST_SENDERS = 10_000
_RETRY_S = 5


@dataclass(frozen=True)
class Rates:
    """What is let through.

    Attributes:
        per_second: simple requests a second, in the long run.
        at_once: answers that are still being given, such as growing videos.
    """

    per_second: int
    at_once: int


class _Allowances:
    """Requests that senders have left; each gains some with time, up to a limit."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._most = per_second * _SAVED_S
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, sender: str, cost: float) -> float:
        """Take requests; 0 if there were enough, else how long until there are, seconds."""
        now = time.monotonic()
        left, at = self._left.pop(sender, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        missing = cost - left
        # Put back at the end: the first ones are those that were quiet for longest.
        self._left[sender] = (left if missing > 0 else left - cost, now)
        while len(self._left) > _MOST_SENDERS:
            del self._left[next(iter(self._left))]
        return max(0.0, missing / self._per_second)


class Throttle:
    """ASGI middleware: 429 with Retry-After for what is too much, before anything is done for it.

    Args:
        app: what is behind it.
        each: for one sender.
        all_together: for all senders.
    """

    def __init__(self, app: ASGIApp, each: Rates, all_together: Rates) -> None:
        self._app = app
        self._each, self._all = each, all_together
        self._of_each, self._of_all = (
            _Allowances(each.per_second),
            _Allowances(all_together.per_second),
        )
        self._running: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on and count until the answer is whole."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sender = client_of(scope)
        cost = 1 if scope["method"] in SAFE_METHODS else _COST_OF_CHANGE
        wait_s = self._of_each.take(sender, cost) or self._of_all.take("all", cost)
        if wait_s:
            await _too_many(int(wait_s) + 1)(scope, receive, send)
        elif self._running[sender] >= self._each.at_once or (
            self._running.total() >= self._all.at_once
        ):
            await _too_many(_RETRY_S)(scope, receive, send)
        else:
            with self._counted(sender):
                await self._app(scope, receive, send)

    @contextmanager
    def _counted(self, sender: str) -> Iterator[None]:
        self._running[sender] += 1
        try:
            yield
        finally:
            self._running[sender] -= 1
            if not self._running[sender]:
                del self._running[sender]


def _too_many(wait_s: int) -> ASGIApp:
    message = f"too many requests; try again in {wait_s} s"
    return refuse(429, message, {"Retry-After": str(wait_s)})
