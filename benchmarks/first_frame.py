"""How long until the first frame, and what is it spent on?

    python -m benchmarks.first_frame --out DIR [--random tiny|14b | --ckpt_dir DIR] [--size 128*128]
        [--devices cuda:0,cuda:1,cuda:1] [--repeats 3] [--json]

A resident worker group gets one job after another, each when the last has ended, which it does at
its first frame: the job is cancelled then. How the group came to be ready is told too. Exit status
1 when the group failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.group_run import (
    Setup,
    add_arguments,
    make_jobs,
    read_setup,
    run_jobs,
    start_of,
)
from benchmarks.pipeline import times_of_job
from liveavatar.errors import LiveAvatarError

PARTS = ("encode_inputs_s", "first_block_s", "decode_and_write_s", "first_frame_s")


def measure(setup: Setup, repeats: int) -> dict[str, Any]:
    """Run the benchmark; the median of each part, seconds, or the failure."""
    plan = setup.plan()
    trace = run_jobs(setup.spec(plan), make_jobs(setup, repeats), only_begin=True)
    report: dict[str, Any] = {
        "benchmark": "first_frame",
        "environment": describe_environment(torch.device(setup.devices[0])),
        "size": f"{setup.size_hw[1]}*{setup.size_hw[0]}",
        "devices": list(setup.devices),
        "precision": str(plan.precision),
        "repeats": repeats,
    }
    if trace.failure:
        return report | {"failure": trace.failure}
    report["start"] = asdict(start_of(trace))
    report["speech_s"] = setup.speech_s
    jobs = [times_of_job(trace, number) for number in trace.submitted_s]
    taken = [
        (
            job.prepared_s,
            job.first_block_s - job.prepared_s,
            job.first_frame_s - job.first_block_s,
            job.first_frame_s,
        )
        for job in jobs
    ]
    medians = [round(statistics.median(values), 3) for values in zip(*taken, strict=True)]
    slowest = round(max(job.first_frame_s for job in jobs), 3)
    each = [dict(zip(PARTS, (round(part, 3) for part in parts), strict=True)) for parts in taken]
    report |= dict(zip(PARTS, medians, strict=True))
    return report | {"slowest_s": slowest, "jobs": each}


def text(report: dict[str, Any]) -> str:
    """Say the result in words."""
    head = f"first frame {report['size']}, {report['precision']}, {report['environment']}"
    if "failure" in report:
        return f"{head}: {report['failure']}"
    parts = ", ".join(f"{part} {report[part]}" for part in (*PARTS, "slowest_s"))
    start = ", ".join(f"{part} {at_s}" for part, at_s in report["start"].items())
    return f"{head}, {report['speech_s']} s of speech: {parts}; start: {start}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_frame", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", default="128*128", metavar="W*H", help="of the video, pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        report = measure(read_setup(options, options.size), options.repeats)
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    (options.out / "first_frame.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write((json.dumps(report) if options.json else text(report)) + "\n")
    return int("failure" in report)


if __name__ == "__main__":
    sys.exit(main())
