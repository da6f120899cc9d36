"""How long until the first frame, and what is it spent on?

    python -m benchmarks.first_frame --out DIR [--random tiny|14b | --ckpt_dir DIR] [--size 128*128]
        [--devices cuda:0,cuda:1,cuda:1] [--repeats 3] [--json]
    python -m benchmarks.first_frame --out DIR --application [--ckpt_dir DIR] [--tier fast]

A resident worker group gets one job after another, each when the last has ended, which it does at
its first frame: the job is cancelled then. Each has a portrait, a prompt and speech of its own;
then the last one comes again as often, whose inputs the group remembers. How the group came to be
ready is told too. With --application all of it is measured through the web application, see
`application_frame.py`, with the demo model where --ckpt_dir names no other. Exit status 1 when the
group failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch

from benchmarks import application_frame
from benchmarks.environment import describe_environment
from benchmarks.group_run import (
    Setup,
    add_arguments,
    make_jobs,
    read_setup,
    repeated,
    run_jobs,
    start_of,
)
from benchmarks.pipeline import JobTime, times_of_job
from liveavatar.engine.served_model import DEMO
from liveavatar.errors import LiveAvatarError

PARTS = ("encode_inputs_s", "first_block_s", "decode_and_write_s", "first_frame_s")


def measure(setup: Setup, repeats: int) -> dict[str, Any]:
    """Run the benchmark; the median of each part, seconds, or the failure."""
    plan = setup.plan()
    new = make_jobs(setup, repeats)
    again = [repeated(new[-1], repeats + number) for number in range(1, repeats + 1)]
    trace = run_jobs(setup.spec(plan), [*new, *again], only_begin=True)
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
    jobs = [_parts(times_of_job(trace, number)) for number in trace.submitted_s]
    report |= _medians(jobs[:repeats])
    return report | {"again": _medians(jobs[repeats:]), "jobs": jobs}


def _parts(job: JobTime) -> dict[str, float]:
    times = (0.0, job.prepared_s, job.first_block_s, job.first_frame_s)
    parts = [round(later - earlier, 3) for earlier, later in pairwise(times)]
    return dict(zip(PARTS, (*parts, job.first_frame_s), strict=True))


def _medians(jobs: Sequence[dict[str, float]]) -> dict[str, float]:
    medians = {part: round(statistics.median(job[part] for job in jobs), 3) for part in PARTS}
    return medians | {"slowest_s": max(job["first_frame_s"] for job in jobs)}


def text(report: dict[str, Any]) -> str:
    """Say the result in words."""
    head = f"first frame {report['size']}, {report['precision']}, {report['environment']}"
    if "failure" in report:
        return f"{head}: {report['failure']}"
    start = ", ".join(f"{part} {at_s}" for part, at_s in report["start"].items())
    return (
        f"{head}, {report['speech_s']} s of speech\n  new inputs: {_said(report)}\n"
        f"  the last ones again: {_said(report['again'])}\n  start: {start}"
    )


def _said(medians: dict[str, Any]) -> str:
    return ", ".join(f"{part} {medians[part]}" for part in (*PARTS, "slowest_s"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_frame", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", default="128*128", metavar="W*H", help="of the video, pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--application", action="store_true", help="through the web application")
    parser.add_argument("--tier", default="fast", help="with --application")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    say = application_frame.text if options.application else text
    try:
        if options.application:
            options.out.mkdir(parents=True, exist_ok=True)
            model = str(options.ckpt_dir or DEMO)
            report = application_frame.measure(model, options.tier, options.repeats)
        else:
            report = measure(read_setup(options, options.size), options.repeats)
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    (options.out / "first_frame.json").write_text(json.dumps(report, indent=2) + "\n")
    sys.stdout.write((json.dumps(report) if options.json else say(report)) + "\n")
    return int("failure" in report)


if __name__ == "__main__":
    sys.exit(main())
