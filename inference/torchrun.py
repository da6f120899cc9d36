"""The command under torchrun, which starts as many processes as there are GPUs.

The first process is the command as ever: it starts ranks of its own, which it can watch, name and
end. The others stand for those ranks before torchrun: they wait until the first one ends, and end
as it did, or fail where it failed. No torch here: they take a few megabytes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress

from liveavatar.config import launched_rank, launched_ranks
from liveavatar.errors import DeadlineError

JOIN_S = 60.0
"""Seconds in which all processes have to appear."""

_FAILED = 1


def run_launched(command: Callable[[], int]) -> int:
    """Run a command in the first of the processes that a launcher started; returns its status.

    Raises:
        ConfigError: the launcher's variables are of no use.
        DeadlineError: not all processes appeared.
    """
    others = launched_ranks() - 1
    if not others:
        return command()
    if launched_rank():
        return _wait_for_first()
    connections = _gather(others)
    status = command()
    for connection in connections:
        with closing(connection), suppress(OSError):
            connection.send(bytes([status]))
    return status


def _gather(others: int) -> list[socket.socket]:
    """Connections to all other processes; the death of this one is their sign too."""
    connections: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(_address())
        listener.listen(others)
        listener.settimeout(JOIN_S)
        try:
            while len(connections) < others:
                connections.append(listener.accept()[0])
        except TimeoutError:
            raise DeadlineError(
                f"torchrun: {len(connections)} of {others} other processes came in {JOIN_S:.0f} s"
            ) from None
    return connections


def _wait_for_first() -> int:
    """Wait until the first process ends; returns its exit status."""
    deadline = time.monotonic() + JOIN_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        while connection.connect_ex(_address()):
            if time.monotonic() > deadline:
                return _FAILED
            time.sleep(0.05)
        told = connection.recv(1)  # nothing, if it was killed
    return told[0] if told else _FAILED


def _address() -> str:
    """A name of Linux's own, no file: it goes with the process. The launcher is the parent."""
    return f"\0liveavatar-torchrun-{os.getppid()}"
