"""A PostgreSQL of the tests' own: made in a folder, reached by a socket in it, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.patience import PATIENCE_S

_USER = "liveavatar"
_START_S = 30.0


def find_binaries() -> Path | None:
    """Debian's folder of the newest version that is installed, else where PATH finds them."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("postgres")
    return folders[-1] if folders else Path(found).parent if found else None


@contextmanager
def cluster(binaries: Path) -> Iterator[str]:
    """Run a server as long as the context lasts; gives the URL of its database."""
    # Not as the superuser, which the server refuses; the folder's path is short, as a socket's is.
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    who = {"user": owner.pw_uid, "group": owner.pw_gid} if os.getuid() == 0 else {}
    data, log = folder / "data", folder / "log"
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "-N"],
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
            cwd=folder,
            **who,  # type: ignore[call-overload]
        )
        settings = ("listen_addresses=", "fsync=off", "max_connections=100")
        options = [word for setting in settings for word in ("-c", setting)]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, *options],
                stdout=output,
                stderr=output,
                cwd=folder,
                **who,  # type: ignore[call-overload]
            )
        try:
            _wait_until_ready(binaries, folder, log)
            yield f"postgresql+psycopg://{_USER}@/postgres?host={folder}"
        finally:
            server.terminate()  # ends when the clients have
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(binaries: Path, folder: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    command = [binaries / "pg_isready", "-q", "-h", folder]
    while subprocess.run(command, check=False, timeout=PATIENCE_S).returncode:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
