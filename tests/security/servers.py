"""The two servers an attack is made on, and an internal one that nobody outside should reach."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from tests.patience import PATIENCE_S
from tests.web.live_server import ROOT, free_port, wait_until

_Result = TypeVar("_Result")

# One for all: making one takes longer than most requests.
_CLIENT = httpx.Client(timeout=PATIENCE_S)
atexit.register(_CLIENT.close)

SECRET = "known to nobody outside"


@dataclass
class Target:
    """A server under attack.

    Attributes:
        address: of the server.
        folder: where it keeps its files.
        functions: numbers of its functions by the name they have for programs; False for one of
            those without.
        num_functions: how many there are.
        direct: numbers of those that are called past the queue.
    """

    address: str
    folder: Path
    functions: dict[str | bool, int] = field(default_factory=dict)
    num_functions: int = 0
    direct: frozenset[int] = frozenset()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Ask, as a stranger without cookies does."""
        _CLIENT.cookies.clear()
        return _CLIENT.request(method, self.address + path, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def upload(self, name: str, content: bytes, **options: Any) -> httpx.Response:
        return self.post("/upload", files={"files": (name, content)}, **options)

    def learn(self) -> None:
        """Read the numbers of the functions, as Gradio's page does."""
        made = self.get("/config").json()["dependencies"]
        self.functions = {one["api_name"]: number for number, one in enumerate(made)}
        self.num_functions = len(made)
        self.direct = frozenset(n for n, one in enumerate(made) if one["queue"] is False)

    def join(self, function: int, data: list[Any], session: str = "s") -> httpx.Response:
        """Ask for a function by its number, as Gradio's page does."""
        body = {"data": data, "fn_index": function, "session_hash": session}
        is_direct = isinstance(function, int) and function in self.direct
        return self.post("/run/predict" if is_direct else "/queue/join", json=body)

    def call(self, function: int, data: list[Any], session: str) -> Any:
        """What a function answers with; None where the call is refused or fails."""
        answer = self.join(function, data, session)
        if answer.status_code != 200:
            return None
        if function in self.direct:
            return answer.json()["data"]
        with httpx.stream(
            "GET", f"{self.address}/queue/data", params={"session_hash": session}, timeout=30
        ) as events:
            for line in events.iter_lines():
                if "process_completed" in line:
                    message = json.loads(line.removeprefix("data: "))
                    return message["output"].get("data") if message["success"] else None
        return None


def run_apart(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run in a thread of its own: Gradio makes no locks in one whose event loop was closed."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result(100)


@contextlib.contextmanager
def plain_gradio(folder: Path) -> Iterator[Target]:
    """Gradio as it comes, in a process of its own that keeps its files in `folder`."""
    port = free_port()
    # TMPDIR is where Python makes temporary files, and Gradio its cache.
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONWARNINGS": "ignore"}
    environment.pop("GRADIO_TEMP_DIR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.security.plain_gradio", str(port)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    target = Target(f"http://127.0.0.1:{port}", folder)

    def answers() -> bool:
        assert process.poll() is None, "plain Gradio does not start"
        with contextlib.suppress(httpx.TransportError):
            return target.get("/config").status_code == 200
        return False

    try:
        wait_until(answers, "plain Gradio answers")
        target.learn()
        yield target
    finally:
        process.kill()
        process.wait(10)


@dataclass
class InternalServer:
    """A server that only this machine reaches; `asked` are the paths it was asked for."""

    address: str = ""
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def internal_server() -> Iterator[InternalServer]:
    """Serve `SECRET` under every path."""
    internal = InternalServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            internal.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        internal.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield internal
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)
