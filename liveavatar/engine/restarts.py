"""How long a supervisor waits before it starts its worker group again, and what it says then."""

from __future__ import annotations

import logging
import time

from liveavatar.engine.group_state import GroupState
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.errors import LiveAvatarError, WorkerDiedError

logger = logging.getLogger(__name__)


class Restarts:
    """Counts the failures in a row; the wait doubles with each of them.

    Args:
        settings: the first wait and the longest one, and what counts as a row.
        state: what is said of the group; failures are written into it.
    """

    def __init__(self, settings: SupervisorSettings, state: GroupState) -> None:
        self._settings = settings
        self._state = state
        self._failures = 0
        self._began = 0.0

    def begin(self) -> None:
        """A group is started now."""
        self._began = time.monotonic()
        self._state.begin()

    def note(self, error: Exception) -> float:
        """A group failed; returns the seconds to wait before another one is started."""
        log = error.log if isinstance(error, WorkerDiedError) else ""
        if isinstance(error, LiveAvatarError):
            logger.error("the worker group failed: %s", error)
        else:
            logger.error("the worker group failed", exc_info=error)
        wait_s = self._count(error)
        lasting = self._failures >= self._settings.failures_until_failed
        self._state.restarts += 1
        self._state.note_error(one_line(error), log)
        self._state.word = "failed" if lasting else "restarting"
        self._state.message = f"{one_line(error)}; starting again in {wait_s:.0f} s"
        return wait_s

    def _count(self, error: Exception) -> float:
        settings = self._settings
        if time.monotonic() - self._began > settings.healthy_after_s:
            self._failures = 0
        # A job that failed by itself says nothing about the group.
        self._failures += not (isinstance(error, WorkerDiedError) and error.by_its_work)
        doubled_s = settings.first_backoff_s * 2.0 ** (max(1, self._failures) - 1)
        return min(doubled_s, settings.longest_backoff_s)


def one_line(error: BaseException) -> str:
    """What an error says, on one line of 500 characters at most."""
    text = str(error) if isinstance(error, LiveAvatarError) else repr(error)
    return " ".join(text.split())[:500]
