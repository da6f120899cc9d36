"""A rank's end of the pipe to its owner; no torch, so that it is up before torch is read."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

EXIT_ORPHANED = 3
EXIT_DEAF = 4


class Owner:
    """Who started this rank. When the pipe breaks, this process ends at once.

    It ends too, and says why on its standard error, when something that comes cannot be taken.

    Args:
        pipe: to the owner.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._speaking = threading.Lock()
        self._taking = threading.Lock()
        self._early: list[object] = []
        self._take: Callable[[object], None] = self._early.append
        threading.Thread(target=self._listen, name="owner", daemon=True).start()

    def say(self, message: object) -> None:
        """Tell the owner; from any thread."""
        try:
            with self._speaking:
                self._pipe.send(message)
        except OSError:
            os._exit(EXIT_ORPHANED)

    def hear(self, take: Callable[[object], None]) -> None:
        """Hand what the owner said and will say to `take`, one after another, in a thread."""
        with self._taking:
            for message in self._early:
                take(message)
            self._take = take

    def _listen(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                with self._taking:
                    self._take(message)
        except (EOFError, OSError):
            os._exit(EXIT_ORPHANED)
        except BaseException:  # noqa: BLE001 - a border: a rank that hears nothing does not go on
            traceback.print_exc()
            os._exit(EXIT_DEAF)
