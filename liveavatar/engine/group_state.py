"""What the supervisor says about its group: plain values that the web server shows."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from typing import Any, Literal

from liveavatar.engine.messages import Event, Loading, RankStatus, Ready

_MOST_ERRORS = 10
_WARM_UP = "warm-up"
_IDLE = {"item": "", "busy_share": 0.0, "waiting_share": 0.0, "sending_share": 0.0}

GroupWord = Literal["starting", "loading", "ready", "draining", "restarting", "failed", "stopped"]


class GroupState:
    """The state of a worker group over its restarts.

    Attributes:
        word: one word for it.
        message: one line for people, empty when there is nothing to say.
        restarts: how often the group was started again.
    """

    def __init__(self) -> None:
        self.word: GroupWord = "starting"
        self.message = ""
        self.restarts = 0
        self._serves = False
        self._loaded: dict[int, tuple[int, int]] = {}
        self._ranks: dict[int, dict[str, Any]] = {}
        self._warm: set[int] = set()
        self._errors: deque[dict[str, Any]] = deque(maxlen=_MOST_ERRORS)

    def begin(self) -> None:
        """A group is being started."""
        self.word, self.message = "starting", ""
        self._serves = False
        self._loaded, self._ranks, self._warm = {}, {}, set()

    def serve(self) -> None:
        """The group is ready: what its ranks have worked on so far was for nobody.

        Until each has spoken again it is told to be idle, and so is one that says by then that it
        has nothing to do: what it counts in that report is the end of the warm-up.
        """
        self.word, self._serves = "ready", True
        self._warm = set(self._ranks)
        self._ranks = {rank: said | _IDLE for rank, said in self._ranks.items()}

    def take(self, event: Event) -> None:
        """Note what a rank says about itself; other messages are passed over."""
        if isinstance(event, Loading):
            self.word = "loading"
            self._loaded[event.rank] = (event.done_bytes, event.total_bytes)
        elif isinstance(event, Ready):
            self._loaded.setdefault(event.rank, (1, 1))
        elif isinstance(event, RankStatus):
            self._ranks[event.rank] = self._seen(event)

    def _seen(self, status: RankStatus) -> dict[str, Any]:
        said = asdict(status)
        if not self._serves:
            return said | {"item": _WARM_UP if status.item else ""}
        is_warm = status.rank in self._warm
        self._warm.discard(status.rank)
        return said | _IDLE if is_warm and not status.item else said

    def note_error(self, message: str, log: str = "") -> None:
        """Remember an error for the operator, with the last lines of the rank's account."""
        self._errors.append({"at": time.time(), "message": message, "log": log})

    @property
    def load_percent(self) -> int:
        """How much of the weights is there, 0..100."""
        if self.word in ("ready", "draining"):
            return 100
        total = sum(total for _, total in self._loaded.values())
        done = sum(done for done, _ in self._loaded.values())
        return min(99, 100 * done // total) if total else 0

    def document(self, job_ids: list[str]) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        message = self.message
        if self.word == "loading":
            message = f"loading model {self.load_percent} %"
        return {
            "state": self.word,
            "load_percent": self.load_percent,
            "message": message,
            "restarts": self.restarts,
            "ranks": [self._ranks[rank] for rank in sorted(self._ranks)],
            "jobs": job_ids,
            "errors": list(self._errors),
        }
