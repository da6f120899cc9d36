"""How much more do more worker groups make, and how long is a job away when its machine is lost?

    python -m benchmarks.cluster --out DIR [--groups 1,2,3] [--jobs 30] [--frames 24]
        [--model test-picture|demo] [--json]

Simulated machines of one Ray cluster on this host, with room for one group each; groups, store and
spool are real. Every count of groups makes the same jobs in one run: what counts is the ratio. A
group of the test picture draws 60 frames per second at most and needs little of a core: it shows
what the machinery itself allows. The demo model's groups share this host's cores. At last a
machine is killed while it renders. Exit status 1 when a job was made twice or lacks frames.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.simulated_cluster import Machines, Site, site, wait
from liveavatar.cluster.pool import Pool
from liveavatar.errors import ConfigError, LiveAvatarError
from liveavatar.jobs.job import Job
from liveavatar.media.live_file import complete_length, measure_live_file

_LONG_FRAMES = 129  # the whole speech of the example


def measure(counts: Sequence[int], num_jobs: int, frames: int, model: str | None) -> dict[str, Any]:
    """Make the same jobs with each number of groups, then lose a machine; returns the report."""
    report: dict[str, Any] = {
        "benchmark": "cluster",
        "environment": describe_environment(torch.device("cpu")),
        "model": model or "test picture",
        "jobs": num_jobs,
        "frames_per_job": frames,
        "runs": [],
    }
    machines = Machines()
    try:
        machines.ensure(max(counts))
        with (
            tempfile.TemporaryDirectory(prefix="cluster-") as name,
            Pool(machines.address) as pool,
            site(Path(name), pool, model) as here,
        ):
            for count in counts:
                report["runs"].append(_make_all(here, count, num_jobs, frames))
            report["loss"] = _lose_a_machine(here, machines)
    finally:
        machines.close()
    first = report["runs"][0]
    for run in report["runs"]:
        run["ratio"] = round(run["fps"] / first["fps"], 2)
    return report


def _make_all(here: Site, count: int, num_jobs: int, frames: int) -> dict[str, Any]:
    here.pool.grow_to(count)
    here.wait_ready(count)
    began = time.monotonic()
    jobs = [here.submit(frames, owner=f"user {number % 5}") for number in range(num_jobs)]
    done = here.wait_done(*jobs, timeout_s=1800)
    seconds = time.monotonic() - began
    return {
        "groups": count,
        "seconds": round(seconds, 2),
        "fps": round(sum(job.frames for job in done) / seconds, 2),
        "made_once": all((job.attempt, job.frames) == (1, frames) for job in done),
    }


def _lose_a_machine(here: Site, machines: Machines) -> dict[str, Any]:
    """Kill the machine of a job that renders; seconds until its file grows again, elsewhere."""
    job = here.submit(_LONG_FRAMES)
    wait(lambda: _frames(here, job) >= 48, "frames")
    machines.kill(here.node_of(job))
    killed = time.monotonic()
    wait(lambda: here.now(job).attempt == 2, "another group takes the job")
    taken = time.monotonic()
    kept = _frames(here, job)
    wait(lambda: here.now(job).state.has_ended or _frames(here, job) > kept, "a new frame")
    grown = time.monotonic()
    (done,) = here.wait_done(job)
    return {
        "taken_s": round(taken - killed, 2),
        "next_frame_s": round(grown - killed, 2),
        "lease_s": here.order.supervising.lease_s,
        "frames_lost": _LONG_FRAMES - done.frames,
    }


def _frames(here: Site, job: Job) -> int:
    live = here.folder_of(job).live
    if not live.exists() or not complete_length(live):
        return 0
    return measure_live_file(live).num_frames


def text(report: dict[str, Any]) -> str:
    """Say the result in words."""
    lines = [
        f"cluster, {report['model']}: {report['jobs']} jobs of {report['frames_per_job']} frames"
    ]
    for run in report["runs"]:
        once = "each once" if run["made_once"] else "NOT each once"
        lines.append(
            f"  {run['groups']} groups: {run['seconds']} s, {run['fps']} frames/s, "
            f"{run['ratio']} times the first, {once}"
        )
    loss = report["loss"]
    lines.append(
        f"  a machine lost: taken by another group after {loss['taken_s']} s "
        f"(lease {loss['lease_s']} s), next frame after {loss['next_frame_s']} s, "
        f"{loss['frames_lost']} frames lost"
    )
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument(
        "--groups", default="1,2,3", help="numbers of groups, rising; default 1,2,3"
    )
    parser.add_argument("--jobs", type=int, default=30, help="for each number; default 30")
    parser.add_argument("--frames", type=int, default=24, help="of each job, 12 to 129; default 24")
    parser.add_argument("--model", choices=("test-picture", "demo"), default="test-picture")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _counts(groups: str) -> list[int]:
    counts = [int(part) if part.isdecimal() else 0 for part in groups.split(",")]
    if counts != sorted(set(counts)) or not 2 <= counts[-1] <= 64 or counts[0] < 1:
        raise ConfigError(f"groups: expected rising numbers up to 64 such as 1,2,3, got {groups!r}")
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        if options.jobs < 1 or not 12 <= options.frames <= _LONG_FRAMES:
            raise ConfigError("jobs: expected 1 or more, each of 12 to 129 frames")
        model = "demo" if options.model == "demo" else None
        report = measure(_counts(options.groups), options.jobs, options.frames, model)
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cluster.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write((json.dumps(report) if options.json else text(report)) + "\n")
    whole = all(run["made_once"] for run in report["runs"]) and not report["loss"]["frames_lost"]
    return int(not whole)


if __name__ == "__main__":
    sys.exit(main())
