"""The whole application over a group that draws, on a real port, for tests that talk HTTP."""

from __future__ import annotations

import atexit
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from liveavatar.engine.fake import FakeGroup, Pace
from liveavatar.engine.ladder import Ladder
from liveavatar.engine.supervisor import Supervisor
from liveavatar.engine.supervisor_settings import SupervisorSettings
from liveavatar.jobs.spool import Spool
from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.media.reader_process import MediaReader
from liveavatar.plan.tiers import DEMO_TIERS
from tests.patience import PATIENCE_S
from webui.mounting import mount_page
from webui.offers import ServedModel
from webui.server import Access, create_app
from webui.service import Service
from webui.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT, SPEECH = ROOT / "examples" / "maya.png", ROOT / "examples" / "maya.wav"
PROMPT = "A smiling woman speaks warmly before a peach studio wall"
QUICK = Pace(load_s=0.05, prepare_s=0.02, fps=400.0)
SETTINGS = ServerSettings(tiers=DEMO_TIERS)
PICTURE = ServedModel("test picture", is_demo=True)
READER = MediaReader()  # for all tests of this process
atexit.register(READER.close)
SUPERVISOR = SupervisorSettings(first_backoff_s=0.1, status_s=0.1)


@dataclass
class Installation:
    """One data folder with everything that serves it; `groups` are those started so far."""

    data: Path
    pace: Pace = QUICK
    settings: ServerSettings = SETTINGS
    access: Access = field(default_factory=Access)
    with_page: bool = False
    model: ServedModel = PICTURE
    groups: list[FakeGroup] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spool = Spool(self.data)
        self.store = JobStore(sqlite_url(self.data / "jobs.db"))
        self.service = Service(self.store, self.spool, self.settings, self.model, READER)
        self.supervisor = Supervisor(
            self.store, self.spool, self._make_group, SUPERVISOR, Ladder(self.settings.tiers)
        )
        self.address = ""

    def _make_group(self) -> FakeGroup:
        self.groups.append(FakeGroup(self.pace))
        return self.groups[-1]

    def application(self) -> FastAPI:
        page = mount_page if self.with_page else None
        self.app = create_app(self.service, page, self.access)
        return self.app


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(installation: Installation, port: int | None = None) -> Iterator[str]:
    """Serve on 127.0.0.1 as long as the context lasts; gives the address."""
    port = port or free_port()
    config = uvicorn.Config(
        installation.application(), host="127.0.0.1", port=port, log_level="warning"
    )
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    installation.supervisor.start()
    try:
        wait_until(lambda: server.started, "the server listens")
        installation.address = f"http://127.0.0.1:{port}"
        yield installation.address
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        installation.supervisor.stop()
        installation.store.close()


def wait_until(condition: Any, what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.01)


def submit(client: httpx.Client, **changed: Any) -> httpx.Response:
    """Submit the example; a value of None leaves a field out."""
    given: dict[str, Any] = {
        "portrait": PORTRAIT,
        "speech": SPEECH,
        "prompt": PROMPT,
        "tier": "fast",
        "num_clip": 1,
    } | changed
    files, texts = {}, {}
    for name, value in given.items():
        if isinstance(value, Path):
            files[name] = (value.name, value.read_bytes())
        elif isinstance(value, bytes):
            files[name] = (name, value)
        elif value is not None:
            texts[name] = str(value)
    return client.post("/api/jobs", data=texts, files=files or {"none": b""})


def wait_for_state(client: httpx.Client, job_id: str, *states: str) -> dict[str, Any]:
    view: dict[str, Any] = {}

    def reached() -> bool:
        view.clear()
        view.update(client.get(f"/api/jobs/{job_id}").json())
        return view["state"] in states

    wait_until(reached, f"job is {' or '.join(states)}, last {view}")
    return view
