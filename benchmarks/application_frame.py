"""How long until the first frame through the application, from the form to a viewer of the file?

Each time the application is started on an empty data folder, as after a fresh installation, and
gets two videos one after the other when its group is ready: the first one it ever sees, and one of
another person. A viewer follows the growing file from its beginning, as the page does.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.application import ROOT, Application
from benchmarks.environment import describe_environment
from liveavatar.errors import EngineError

PARTS = (
    "submit_s",
    "read_files_s",
    "encode_inputs_s",
    "first_block_s",
    "decode_and_write_s",
    "to_viewer_s",
    "first_frame_s",
)
_PEOPLE = ("maya", "oliver")
_JOB_S = 120.0


def measure(model: str, tier: str, repeats: int) -> dict[str, Any]:
    """Start the application so many times; medians of each part, seconds."""
    first, second = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="first-frame-") as folder:
            try:
                with Application(Path(folder), options=("--model", model)) as application:
                    application.start()
                    jobs = [_one_job(application, tier, person) for person in _PEOPLE]
                    application.stop()
            except RuntimeError as error:
                raise EngineError(str(error)) from None
        first.append(jobs[0])
        second.append(jobs[1])
    return {
        "benchmark": "first_frame",
        "environment": describe_environment(torch.device("cpu")),
        "model": model,
        "tier": tier,
        "repeats": repeats,
        "first": _summary(first),
        "second": _summary(second),
        "jobs": [first, second],
    }


def text(report: dict[str, Any]) -> str:
    """Say the result in words."""
    lines = [
        f"first frame through the application, {report['model']}, tier {report['tier']}, "
        f"{report['environment']}, median of {report['repeats']}"
    ]
    for name in ("first", "second"):
        parts = ", ".join(f"{part} {report[name][part]}" for part in (*PARTS, "slowest_s"))
        lines.append(f"  {name} video after the start: {parts}")
    return "\n".join(lines)


def _summary(jobs: list[dict[str, float]]) -> dict[str, float]:
    medians = {part: round(statistics.median(job[part] for job in jobs), 3) for part in PARTS}
    return medians | {"slowest_s": max(job["first_frame_s"] for job in jobs)}


def _one_job(application: Application, tier: str, person: str) -> dict[str, float]:
    """Submit a video, watch its file until the first fragment is there, and cancel it."""
    examples = ROOT / "examples"
    began = time.time()
    job_id = application.submit(
        portrait=examples / f"{person}.png", speech=examples / f"{person}.wav", tier=tier,
        num_clip="50",
    )  # fmt: skip
    seen = _wait_for_fragment(application.client, f"/live/{job_id}.mp4")
    claimed = float(application.job(job_id)["started_at"])
    parts = {"submit_s": claimed - began, **_told(application.folder / "log", job_id)}
    parts["to_viewer_s"] = seen - claimed - sum(parts.values()) + parts["submit_s"]
    parts["first_frame_s"] = seen - began
    application.client.post(f"/api/jobs/{job_id}/cancel")
    application.wait_for_end(job_id, _JOB_S)
    return {part: round(parts[part], 3) for part in PARTS}


def _wait_for_fragment(client: httpx.Client, url: str) -> float:
    """When a viewer of a growing file has its first whole fragment, seconds of the epoch."""
    data = b""
    with client.stream("GET", url, timeout=_JOB_S) as stream:
        for chunk in stream.iter_raw():
            data += chunk
            if b"mdat" in _whole_boxes(data):
                return time.time()
    raise EngineError("the file ended before its first frame")


def _whole_boxes(data: bytes) -> Iterator[bytes]:
    """Kinds of the boxes at the start of a file that are there to their end."""
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += size
        if at <= len(data):
            yield kind


def _told(log: Path, job_id: str) -> dict[str, float]:
    """What the application's log says about the way to a job's first frame."""
    line = rf"job {job_id}: first frame .* after the claim: .* ([\d.]+) s, .* ([\d.]+) s, "
    found = re.search(line + r".* ([\d.]+) s, .* ([\d.]+) s$", log.read_text(), re.MULTILINE)
    if found is None:
        raise EngineError("the application's log says nothing about the first frame")
    return dict(zip(PARTS[1:5], map(float, found.groups()), strict=True))
