"""What a rank is doing and where its time goes: written by its main thread, read by any other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Spent:
    """Seconds since the rank began, by what they went into.

    Attributes:
        computing: in the network; on a GPU the time its kernels took, launches overlapped.
        waiting: for a message of another rank.
        sending: until a message was taken off the main thread's hands.
        pieces: pieces of work computed.
    """

    computing: float = 0.0
    waiting: float = 0.0
    sending: float = 0.0
    pieces: int = 0


class Activity:
    """A stopwatch for the kinds of time in `Spent`.

    On a GPU computing is taken between two events on the current stream, so that nothing waits for
    the device to be measured.

    Args:
        device: where the rank computes.

    Attributes:
        item: what is worked on, such as "job 3 block 12 step 3"; empty between pieces of work.
    """

    def __init__(self, device: torch.device) -> None:
        self.item = ""
        self._on_gpu = device.type == "cuda"
        self._spent = Spent()
        self._lock = threading.Lock()
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def computing(self, item: str) -> Iterator[None]:
        """Count what is done inside as computing, on `item`."""
        self.item = item
        started = time.perf_counter()
        if self._on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        yield
        if self._on_gpu:
            end.record()
            self._running.append((begin, end))
            self._add("computing", 0.0)
        else:
            self._add("computing", time.perf_counter() - started)
        self.item = ""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what is done inside as waiting."""
        started = time.perf_counter()
        yield
        self._add("waiting", time.perf_counter() - started)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Count what is done inside as sending."""
        started = time.perf_counter()
        yield
        self._add("sending", time.perf_counter() - started)

    def spent(self) -> Spent:
        """What was spent so far; on a GPU without the work that is still running there."""
        with self._lock:
            while self._running and self._running[0][1].query():
                begin, end = self._running.popleft()
                seconds = begin.elapsed_time(end) / 1000
                self._spent = replace(self._spent, computing=self._spent.computing + seconds)
            return self._spent

    def _add(self, kind: str, seconds: float) -> None:
        with self._lock:
            pieces = self._spent.pieces + (kind == "computing")
            total = getattr(self._spent, kind) + seconds
            self._spent = replace(self._spent, pieces=pieces, **{kind: total})
