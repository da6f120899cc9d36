"""The owner's words to a rank, from a thread of their own: a rank that is stopped reads nothing."""

from __future__ import annotations

import queue
import threading
from multiprocessing.connection import Connection


class Sender:
    """Sends in order and never keeps its caller waiting.

    A pipe that breaks is told by whoever reads from it; what was to be sent is dropped.

    Args:
        pipe: to the rank; only this may write to it.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._messages: queue.SimpleQueue[object] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="sender", daemon=True).start()

    def send(self, message: object) -> None:
        """Hand a message over; it is not to be changed any more. From any thread."""
        self._messages.put(message)

    def end(self) -> None:
        """Send nothing more; the thread ends, at the latest when the rank has."""
        self._messages.put(None)

    def _run(self) -> None:
        while (message := self._messages.get()) is not None:
            try:
                self._pipe.send(message)
            except OSError:
                return
