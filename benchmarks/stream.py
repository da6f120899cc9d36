"""How soon a block in the growing file reaches its viewers, and whether they disturb the job.

    python -m benchmarks.stream [--viewers 50] [--json]

The application runs in a process of its own over a group that draws, so that only the streaming is
measured. First a job runs with nobody watching, then one with viewers from its beginning, one of
whom hardly reads, and one who joins late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.environment import describe_environment

_ROOT = Path(__file__).resolve().parents[1]
_PROMPT = "A smiling woman speaks warmly before a peach studio wall"
_LOOK_EVERY_S = 0.001
_START_S = 60.0
_JOB_S = 120.0
_LATE_FRAGMENTS = 10


@dataclass
class Arrivals:
    """Bytes there were, and when: of a file, or of what a viewer received of it."""

    times: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def note(self, size: int) -> None:
        """Take a count of bytes now."""
        if not self.sizes or size > self.sizes[-1]:
            self.times.append(time.perf_counter())
            self.sizes.append(size)

    def when(self, size: int) -> float:
        """Time from which on there were so many bytes."""
        return next(t for t, have in zip(self.times, self.sizes, strict=True) if have >= size)


@dataclass(frozen=True)
class Report:
    """What was measured.

    Latencies are milliseconds from a fragment's last byte on the disk to its last byte at a viewer.

    Attributes:
        fps_alone, fps_watched: of the job without and with viewers.
        first_ms_median, first_ms_largest: of the first fragment, over the viewers.
        latency_ms_median, latency_ms_p95, latency_ms_largest: of all fragments and viewers.
        late_first_byte_ms: from the request of a late viewer to its first byte.
        late_caught_up_ms: from that request to everything that was made before it.
        slow_bytes: what the viewer that hardly reads had taken when the job ended.
        file_bytes: size of the growing file.
    """

    viewers: int
    fragments: int
    fps_alone: float
    fps_watched: float
    first_ms_median: float
    first_ms_largest: float
    latency_ms_median: float
    latency_ms_p95: float
    latency_ms_largest: float
    late_first_byte_ms: float
    late_caught_up_ms: float
    slow_bytes: int
    file_bytes: int


@contextlib.contextmanager
def application(data: Path) -> Iterator[str]:
    """Run the application with a test picture; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = data / "server.toml"
    config.write_text('[tiers.fast]\nsize = "384*256"\n', encoding="utf-8")
    command = [sys.executable, str(_ROOT / "app.py"), "--test-picture", "--port", str(port)]
    command += ["--data-dir", str(data), "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(address)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{address}/api/group").json()["state"] == "ready":
                return
        time.sleep(0.1)
    raise TimeoutError(f"the application was not ready in {_START_S:.0f} s")


async def _submit(client: httpx.AsyncClient) -> dict[str, Any]:
    files = {
        name: (_ROOT / "examples" / file).read_bytes()
        for name, file in (("portrait", "maya.png"), ("speech", "oliver.wav"))
    }
    answer = await client.post("/api/jobs", data={"prompt": _PROMPT, "tier": "fast"}, files=files)
    answer.raise_for_status()
    job: dict[str, Any] = answer.json()
    return job


async def _ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + _JOB_S
    while time.monotonic() < deadline:
        view: dict[str, Any] = (await client.get(f"/api/jobs/{job_id}")).json()
        if view["state"] not in ("queued", "running"):
            return view
        await asyncio.sleep(0.1)
    raise TimeoutError(f"the job did not end in {_JOB_S:.0f} s")


async def _watch_file(path: Path, arrivals: Arrivals, ended: asyncio.Event) -> None:
    while not ended.is_set():
        with contextlib.suppress(FileNotFoundError):
            arrivals.note(path.stat().st_size)
        await asyncio.sleep(_LOOK_EVERY_S)


async def _watch(client: httpx.AsyncClient, url: str) -> Arrivals:
    arrivals, size = Arrivals(), 0
    async with client.stream("GET", url) as stream:
        async for chunk in stream.aiter_raw():
            size += len(chunk)
            arrivals.note(size)
    return arrivals


async def _watch_slowly(address: str, url: str, ended: asyncio.Event) -> int:
    """Read a kilobyte a second; returns how many bytes that were."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(f"GET {url} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    taken = 0
    while not ended.is_set():
        taken += len(await reader.read(1024))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), 1.0)
    writer.close()
    return taken


async def _join_late(client: httpx.AsyncClient, url: str, file: Arrivals) -> tuple[float, float]:
    """Milliseconds to the first byte, and to all that was made before the request."""
    while len(file.sizes) < _LATE_FRAGMENTS:
        await asyncio.sleep(0.01)
    made, began = file.sizes[-1], time.perf_counter()
    arrivals = await _watch(client, url)
    return 1000 * (arrivals.times[0] - began), 1000 * (arrivals.when(made) - began)


async def measure(address: str, data: Path, num_viewers: int) -> Report:
    """Run both jobs and compare."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
        alone = await _ended(client, (await _submit(client))["id"])
        job = await _submit(client)
        path = data / "jobs" / job["id"] / "live.mp4"
        file, ended = Arrivals(), asyncio.Event()
        file_watch = asyncio.create_task(_watch_file(path, file, ended))
        slow = asyncio.create_task(_watch_slowly(address, job["live_url"], ended))
        late = asyncio.create_task(_join_late(client, job["live_url"], file))
        viewers = [asyncio.create_task(_watch(client, job["live_url"])) for _ in range(num_viewers)]
        watched = await _ended(client, job["id"])
        seen = await asyncio.gather(*viewers)
        late_first_ms, late_all_ms = await late
        ended.set()
        slow_bytes = await slow
        await file_watch
    # The first bytes are the header, which comes before any block.
    blocks = file.sizes[1:]
    lags = [[1000 * (viewer.when(size) - file.when(size)) for size in blocks] for viewer in seen]
    every = sorted(lag for viewer in lags for lag in viewer)
    firsts = sorted(viewer[0] for viewer in lags)
    return Report(
        viewers=num_viewers,
        fragments=len(blocks),
        fps_alone=alone["fps_measured"],
        fps_watched=watched["fps_measured"],
        first_ms_median=statistics.median(firsts),
        first_ms_largest=firsts[-1],
        latency_ms_median=statistics.median(every),
        latency_ms_p95=every[int(0.95 * (len(every) - 1))],
        latency_ms_largest=every[-1],
        late_first_byte_ms=late_first_ms,
        late_caught_up_ms=late_all_ms,
        slow_bytes=slow_bytes,
        file_bytes=file.sizes[-1],
    )


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream")
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, application(Path(name)) as address:
        report = asyncio.run(measure(address, Path(name), options.viewers))
    record = asdict(report) | describe_environment(torch.device("cpu"))
    if options.json:
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    else:
        for key, value in record.items():
            shown = f"{value:.1f}" if isinstance(value, float) else value
            sys.stdout.write(f"{key:>20}  {shown}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
