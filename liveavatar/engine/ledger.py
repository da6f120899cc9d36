"""What the supervisor tells the job store, also while the store cannot be written.

A full disk or a database that is away must not end the videos that are being made. What has to be
told is told in order as soon as that is possible; every change carries the attempt it belongs to,
so that one that comes late changes nothing any more.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from liveavatar.errors import LeaseLostError, StoreUnavailableError
from liveavatar.jobs.store import JobStore

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_SAID_EVERY_S = 60.0


class Ledger:
    """Calls to a store that may be away for a while.

    Args:
        store: which.
        name: of the worker that speaks.
    """

    def __init__(self, store: JobStore, name: str) -> None:
        self._store = store
        self._name = name
        self._owed: deque[Callable[[], object]] = deque()
        self._silent_until = 0.0

    def do(self, change: Callable[[], object]) -> None:
        """Make a change now, or after those that are owed, once the store can be written.

        A change by a claim that is gone is dropped.
        """
        self._owed.append(change)
        while self._owed:
            try:
                self._owed[0]()
            except StoreUnavailableError as error:
                self._note(error)
                return
            except LeaseLostError as error:
                logger.warning("%s", error)
            self._owed.popleft()

    def ask(self, question: Callable[[], Answer]) -> Answer | None:
        """The store's answer; None while it is away or has not heard everything yet."""
        self.do(self.nothing)
        if self._owed:
            return None
        try:
            return question()
        except StoreUnavailableError as error:
            self._note(error)
            return None

    def nothing(self) -> None:
        """The change that changes nothing: lets those that are owed be tried again."""

    def _note(self, error: StoreUnavailableError) -> None:
        """Say that the store is away, once in a while: it is asked many times a second."""
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SAID_EVERY_S
            logger.warning("%s; %d changes wait", error, len(self._owed))
