"""A public link: the tunnel of Gradio 4.25, to its server or to one of your own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from liveavatar.errors import ConfigError

_ENDS_S = 5.0


@contextlib.contextmanager
def public_link(port: int, server: str | None) -> Iterator[str]:
    """Open a tunnel to a port of this machine; it is closed with the block, whatever happens.

    Args:
        port: of 127.0.0.1.
        server: "HOST:PORT" of a tunnel server; None for Gradio's.

    Yields:
        The public address.

    Raises:
        ConfigError: the tunnel program is missing, or the tunnel cannot be opened.
    """
    from gradio import tunneling
    from gradio.networking import setup_tunnel

    if server is not None and not re.fullmatch(r"[A-Za-z0-9.-]{1,253}:\d{1,5}", server):
        raise ConfigError(f"share_server: expected HOST:PORT, got {server[:60]!r}")
    _require_program(Path(tunneling.BINARY_PATH), tunneling.BINARY_URL)
    before = list(tunneling.CURRENT_TUNNELS)
    try:
        # Gradio prints what the program says; the lines end up in the error below.
        with contextlib.redirect_stderr(io.StringIO()):
            yield setup_tunnel("127.0.0.1", port, secrets.token_urlsafe(32), server)
    except RuntimeError as error:
        where = server or "Gradio's server"
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"share: no link could be had from {where}: {reason}") from None
    finally:
        for tunnel in tunneling.CURRENT_TUNNELS:
            if tunnel not in before and tunnel.proc is not None:
                _end(tunnel.proc)
                tunnel.proc = None


def host_of(address: str) -> str:
    """Host of an address, with its port where one is named."""
    return urlsplit(address).netloc.lower()


def _require_program(path: Path, source: str) -> None:
    """Say how the program is provided where it is not; nothing is downloaded by itself."""
    if not path.is_file():
        raise ConfigError(
            f"share: the tunnel program is missing; fetch {source} on any machine, check it, put "
            f"it at {path} and make it executable (chmod +x)"
        )
    if not os.access(path, os.X_OK):
        raise ConfigError(f"share: {path} cannot be executed; chmod +x it")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(_ENDS_S)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
