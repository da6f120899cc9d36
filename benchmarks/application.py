"""The application as a process of its own: started, asked over HTTP, hurt, watched from outside.

The soak and the fault suite drive the same thing a user starts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
PORTRAIT, SPEECH = ROOT / "examples" / "maya.png", ROOT / "examples" / "maya.wav"
PROMPT = "A smiling woman speaks warmly before a peach studio wall"
ENDED = ("done", "failed", "cancelled")

_UP_S = 120.0
_READY_S = 240.0


class Application:
    """One data folder, and the server on it while it runs.

    Args:
        folder: for data, temporary files and the log; made when it is not there.
        config: content of the settings file.
        options: further command-line options.
    """

    def __init__(self, folder: Path, config: str = "", options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.data, self.temporary = folder / "data", folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._config = folder / "settings.toml"
        self._config.write_text(config, encoding="utf-8")
        self._options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client()

    @property
    def pid(self) -> int:
        """Of the server, which is the web server and the supervisor in one."""
        assert self.process is not None
        return self.process.pid

    def start(self, *, ready: bool = True) -> None:
        """Start the server and wait until it answers, and until its group is ready.

        Raises:
            RuntimeError: it ended, or took too long; with the end of its log.
        """
        port, cookies = _free_port(), self.client.cookies
        command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
        command += ["--data-dir", str(self.data), "--config", str(self._config), *self._options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env=os.environ | {"TMPDIR": str(self.temporary)},
            )
        self.client.close()
        address = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=address, timeout=30, cookies=cookies)
        self.wait(self._answers, "the server answers", _UP_S)
        if ready:
            self.wait(self.is_ready, "the group is ready", _READY_S)

    def is_ready(self) -> bool:
        """Whether the worker group takes jobs."""
        return bool(self.client.get("/api/group").json()["state"] == "ready")

    def submit(self, **changed: Any) -> str:
        """Queue the example; returns the job's id. Refusals raise httpx.HTTPStatusError."""
        texts = {"prompt": PROMPT, "tier": "fast", "num_clip": "1"} | changed
        portrait, speech = texts.pop("portrait", PORTRAIT), texts.pop("speech", SPEECH)
        files = {
            "portrait": (portrait.name, portrait.read_bytes()),
            "speech": (speech.name, speech.read_bytes()),
        }
        answer = self.client.post("/api/jobs", data=texts, files=files)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as the page sees it."""
        answer: dict[str, Any] = self.client.get(f"/api/jobs/{job_id}").json()
        return answer

    def wait_for_end(self, job_id: str, timeout_s: float) -> dict[str, Any]:
        """Wait until a job has ended; returns it."""
        self.wait(lambda: self.job(job_id)["state"] in ENDED, f"job {job_id} ends", timeout_s)
        return self.job(job_id)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for a condition; RuntimeError when it does not come, or the server ends."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(httpx.TransportError):
                if condition():
                    return
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"timed out: {what}\n{log[-3000:]}")
            time.sleep(0.05)

    def ranks(self) -> list[int]:
        """Processes of the ranks, in the order of their start; empty while there are none."""
        origins = [pid for pid in children_of(self.pid) if b"forkserver" in _command(pid)]
        return sorted(pid for origin in origins for pid in children_of(origin))

    def kill(self) -> None:
        """Kill the server as a power cut would; its ranks end by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    def stop(self, timeout_s: float = 60.0) -> int:
        """End the server as a service manager does; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def left_over(self, within_s: float = 30.0) -> list[int]:
        """Processes of the last server that still run after so long."""
        deadline = time.monotonic() + within_s
        while (found := members_of(self.pid)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def __enter__(self) -> Application:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)

    def _answers(self) -> bool:
        return self.client.get("/healthz").status_code in (200, 503)


def children_of(pid: int) -> list[int]:
    """Child processes; a child belongs to the thread that started it."""
    found: list[int] = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, each.read_text().split())
    return found


def members_of(session: int) -> list[int]:
    """Processes of a session that are not only remembered."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def open_files(pid: int) -> int:
    """Open descriptors of a process; 0 when it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
