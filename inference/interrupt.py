"""Ctrl-C and SIGTERM while a video is written."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Turns the first interrupt into a request, so that the block at hand is finished and written.

    The second interrupt raises KeyboardInterrupt at once, as without this. To be entered in the
    main thread; the former handlers come back on leaving.

    Attributes:
        asked: whether someone asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not through sys.stderr, which the interrupted code may be writing to.
        os.write(2, b"\nstopping at the next block; interrupt again to stop at once\n")
