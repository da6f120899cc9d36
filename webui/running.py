"""Listening, and ending well: jobs at hand are finished before the pages go away."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from liveavatar.errors import ConfigError

logger = logging.getLogger(__name__)

_CLOSE_CONNECTIONS_S = 2
_M_ARENA_MAX = -8  # of malloc.h


def share_one_heap() -> None:
    """Let all threads allocate from one heap; call it before there are any.

    glibc gives threads heaps of their own, each of which grows to the largest answer that a thread
    ever built: with the server's pool of threads, memory rose for hundreds of videos, although
    nothing was kept. Python's threads hardly allocate at once anyway. Does nothing with other C
    libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def listen(host: str, port: int) -> socket.socket:
    """Take a port; ConfigError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port: {host}:{port} cannot be listened at: {str(error.strerror).lower()}; choose "
            "another with --port"
        ) from None
    return listener


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Whether a line tells of more than a viewer that was let go because the server ends."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, asyncio.CancelledError)


class DrainingServer(uvicorn.Server):
    """A server that ends in two steps.

    At the first signal `begin_drain` is called and everything is still served until `is_drained`,
    for `drain_s` seconds at most; at the second signal it ends at once.

    Args:
        app: what to serve.
        begin_drain: lets nothing new begin; returns at once.
        is_drained: whether all that had begun is done.
        drain_s: how long that may take, seconds.
        end_streams: lets answers end that would go on, once the server stops.
    """

    def __init__(
        self,
        app: ASGIApp,
        begin_drain: Callable[[], None],
        is_drained: Callable[[], bool],
        drain_s: float,
        end_streams: Callable[[], Awaitable[None]],
    ) -> None:
        # Our own guard decides about the headers of proxies; access logs would hold share links.
        config = uvicorn.Config(
            app,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            log_level="warning",
            timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        self._begin_drain = begin_drain
        self._is_drained = is_drained
        self._drain_s = drain_s
        self._end_streams = end_streams
        self._draining = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections, those of viewers at the end of a segment."""
        await self._end_streams()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal to end; called between two instructions of the main thread."""
        del frame
        if self._draining:
            self.force_exit = self.should_exit  # a third one: not even for open connections
            self.should_exit = True
            return
        self._draining = True
        logger.info("signal %d: finishing what has begun; once more to end at once", sig)
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self._begin_drain()
        deadline = time.monotonic() + self._drain_s
        while not self._is_drained() and time.monotonic() < deadline and not self.should_exit:
            time.sleep(0.05)
        self.should_exit = True
