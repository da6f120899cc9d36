"""Who a supervisor is: its name in the job store, and how it holds the data folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from dataclasses import dataclass
from typing import Any

from liveavatar.errors import ConfigError
from liveavatar.jobs.spool import Spool


@dataclass(frozen=True)
class Identity:
    """A supervisor among all that serve one store.

    Attributes:
        worker: its name in the store; what this name held is taken back when it begins again.
        number: of its worker group, from 1, for people.
        node: the machine it runs on, for people.
        shares: whether groups on other machines serve the same store and folder. A machine that was
            given up may still be writing, so each attempt at a job has a growing file of its own.
    """

    worker: str
    number: int = 1
    node: str = ""
    shares: bool = False

    def document(self) -> dict[str, Any]:
        """What people want to know of it, as JSON can hold it."""
        return {"group": self.number, "node": self.node}


def alone_with(spool: Spool) -> Identity:
    """The one supervisor of a data folder, in the process of the web server."""
    host = socket.gethostname()
    return Identity(f"{host}:{spool.root.resolve()}", node=host)


def hold_folder(spool: Spool, *, shares: bool) -> int:
    """Hold the data folder, alone or together with others that share it; returns the lock.

    Raises:
        ConfigError: somebody holds it who does not share it.
    """
    descriptor = os.open(spool.root / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shares else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if shares and error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return descriptor  # a file system without locks; what is shared does not rest on them
        os.close(descriptor)
        raise ConfigError(
            f"data_dir: '{spool.root}' is served by another process; stop it, or choose another "
            "folder with --data-dir"
        ) from None
    return descriptor
