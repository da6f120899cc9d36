"""The application as it is started: killed and started again, ended well, refused in one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.patience import PATIENCE_S
from tests.unit.mp4_material import decode_video
from tests.web.live_server import ROOT, free_port, submit, wait_for_state, wait_until


@contextlib.contextmanager
def application(data: Path, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    port = free_port()
    command = [sys.executable, ROOT / "app.py", "--port", str(port), "--data-dir", data, *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=data.parent
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: answers(client, process), "the pages are up")
            yield client, process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)


def answers(client: httpx.Client, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.communicate()[1]
    with contextlib.suppress(httpx.TransportError):
        return client.get("/healthz").status_code == 200
    return False


def members_of(group: int) -> list[int]:
    """Processes of a session that still live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def is_ready(client: httpx.Client) -> bool:
    state: str = client.get("/api/group").json()["state"]
    return state == "ready"


def test_the_server_is_killed_in_the_middle_of_a_job_and_another_one_finishes_it(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    with application(data, "--test-picture") as (client, process):
        config = client.get("/api/config").json()
        assert config["model"]["name"] == "test picture"
        assert all(tier["fits"] for tier in config["tiers"])
        job = submit(client, tier="fast", num_clip=3).json()
        assert job["state"] == "queued"
        wait_until(lambda: is_ready(client), "ready by itself")
        wait_until(lambda: client.get(f"/api/jobs/{job['id']}").json()["frames"], "frames")
        cookies = dict(client.cookies)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        wait_until(lambda: not members_of(process.pid), "nothing outlives the server")
    with application(data, "--test-picture") as (client, process):
        client.cookies.update(cookies)
        (again,) = client.get("/api/jobs").json()
        assert (again["id"], again["state"] in ("queued", "running")) == (job["id"], True)
        wait_until(lambda: is_ready(client), "ready by itself")
        done = wait_for_state(client, job["id"], "done")
        assert (done["attempt"], done["frames"]) == (1, done["total_frames"])
        (tmp_path / "video.mp4").write_bytes(client.get(done["video_url"]).content)
        assert len(decode_video(tmp_path / "video.mp4")) == done["total_frames"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
        wait_until(lambda: not members_of(process.pid), "nothing is left")


NOT_SERVED: list[tuple[list[str], str]] = [
    (["--host", "0.0.0.0"], "auth: --host 0.0.0.0 lets others in"),
    (["--model", "nowhere"], "model: there is no checkpoint in 'nowhere'"),
    (["--config", "none.toml"], "config 'none.toml': expected a readable TOML file"),
    (["--nonsense"], "unrecognized arguments: --nonsense; --help lists the options"),
    (["--test-picture", "--share", "--allow-open"], "share: the tunnel program is missing"),
    (["--database", "nonsense", "--test-picture"], "database: expected a URL"),
]

# What `app.py` does with each of them, one after the other: its imports take longer than all of it.
RUN_ALL = """
import json, sys, app
for arguments in json.loads(sys.argv[1]):
    status = app.main(arguments)
    print(f"status {status}", file=sys.stderr)
"""


def test_what_cannot_be_served_ends_in_one_line(tmp_path: Path) -> None:
    commands = [
        ["--port", "0", "--data-dir", str(tmp_path / str(number)), *options]
        for number, (options, _) in enumerate(NOT_SERVED)
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    *said, rest = done.stderr.split("status 2\n")
    assert (len(said), rest) == (len(NOT_SERVED), ""), done.stderr
    for text, (_, message) in zip(said, NOT_SERVED, strict=True):
        last = text.splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
