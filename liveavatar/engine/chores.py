"""What is done from time to time."""

from __future__ import annotations

import time


class Chores:
    """When each chore, known by its name, was due last."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def is_due(self, name: str, every_s: float) -> bool:
        """Whether a chore is to be done now; then it is not for so many seconds."""
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + every_s
        return True

    def hurry(self, name: str) -> None:
        """Let a chore be due at once."""
        self._due.pop(name, None)
