"""Passwords, cookies and links stay out of what the application writes, and secrets are whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from liveavatar.errors import ConfigError, LiveAvatarError
from liveavatar.jobs.store import JobStore
from tests.patience import PATIENCE_S
from tests.web.live_server import ROOT, free_port, submit, wait_until
from webui.auth import installation_key, kept_secret
from webui.operator import operator_token

PASSWORD, GUESS = "correct-horse-battery", "wrong-horse-battery"


def told_secrets(address: str, data: Path) -> dict[str, str]:
    """Use the application in every way that has to do with secrets; gives all that were told."""
    token = operator_token(data)
    with httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        form = {"username": "ann", "password": GUESS, "next": "/"}
        assert client.post("/login", data=form).status_code == 401
        assert client.get("/api/config", auth=("ann", GUESS)).status_code == 401
        assert client.post("/login", data={**form, "password": PASSWORD}).status_code == 200
        assert client.get("/").status_code == 200
        job = submit(client).json()
        share = job["share_url"].removeprefix("/s/")
        for path in ("", "/job", "/live.mp4", "/video.mp4", "/nothing"):
            client.get(f"/s/{share}{path}")
        client.get(f"/s/{share}x?password={PASSWORD}")
        client.get(f"/login?next=/s/{share}")
        client.post(f"/s/{share}", content=b"x" * 10)
        client.post("/api/jobs", content=PASSWORD.encode())
        client.post("/queue/join", content=f'{{"data": "{PASSWORD}"}}'.encode())
        client.post(f"/api/jobs/{job['id']}/cancel")
        for sent in (token, GUESS):
            client.get("/api/group", headers={"Authorization": f"Bearer {sent}"})
        cookies = dict(client.cookies)
    assert set(cookies) == {"la_session", "la_browser"}
    return {
        "password": PASSWORD,
        "guess": GUESS,
        "share link": share,
        "operator's token": token,
        "key": installation_key(data).hex(),
        **cookies,
    }


def test_nothing_secret_is_written(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    log = tmp_path / "log"
    options = ["--test-picture", "--port", str(port), "--data-dir", str(data)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, ROOT / "app.py", *options],
            env={**os.environ, "LIVEAVATAR_AUTH": f"ann:{PASSWORD}", "PYTHONFAULTHANDLER": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=tmp_path,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(address), "it answers")
        told = told_secrets(address, data)
        command_lines = running_commands(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
    written = log.read_text()
    assert "open http://127.0.0.1" in written
    places = {"log": written, "command lines": command_lines}
    places |= {str(path): path.read_text() for path in tmp_path.rglob("*.log")}
    for place, text in places.items():
        for name, secret in told.items():
            assert secret not in text, f"{name} in {place}"


def answers(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/healthz", timeout=PATIENCE_S).status_code == 200
    return False


def running_commands(session: int) -> str:
    """Command lines of a session's processes, which everybody on a machine can read."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append((folder / "cmdline").read_text())
    assert found
    return "\n".join(found)


@pytest.mark.parametrize(
    "url", ["postgresql+psycopg://u:{}@127.0.0.1:1/x", "u:{}@host", "x://u:{}@h"]
)
def test_the_password_of_a_database_is_not_repeated(url: str) -> None:
    with pytest.raises(LiveAvatarError, match="database") as caught:  # app.py shows it in one line
        JobStore(url.format(PASSWORD))
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"short"])
def test_a_damaged_secret_is_not_used(tmp_path: Path, content: bytes) -> None:
    """An empty key would let everybody sign sessions, an empty token make everybody operator."""
    for name, read in (("secret.key", installation_key), ("operator.token", operator_token)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=r"is damaged; remove it"):
            read(tmp_path)


def test_a_secret_is_made_once_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    first = kept_secret(tmp_path / "x", b"a" * 32)
    assert kept_secret(tmp_path / "x", b"b" * 32) == first == b"a" * 32
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
