"""How long is a group away when one of its ranks is killed?

    python -m benchmarks.recovery --out DIR [--random tiny|14b | --ckpt_dir DIR] [--size 128*128]
        [--devices cuda:0,cuda:1,cuda:2,cuda:3] [--victim 1] [--json]

A rank is killed while a job renders. Its owner has to name it; then a new group is started and
makes the job's first frame. Exit status 1 when another rank was named, or the second group failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.environment import describe_environment
from benchmarks.group_run import (
    JOB_LIMIT_S,
    START_LIMIT_S,
    Report,
    Setup,
    add_arguments,
    make_jobs,
    read_setup,
    write_result,
)
from liveavatar.engine.group import WorkerGroup
from liveavatar.engine.messages import Event, Progress
from liveavatar.errors import ConfigError, DeadlineError, EngineError, LiveAvatarError


def measure(
    setup: Setup, victim: int, group: WorkerGroup | None = None, first_job: int = 1
) -> Report:
    """Kill a rank, start again; seconds of each part, or the failure.

    Args:
        setup: what is rendered, and by what group where none is given.
        victim: rank that is killed.
        group: one that has nothing to do; it is ended.
        first_job: number that no job of `group` had.
    """
    if not 0 <= victim < len(setup.devices):
        raise ConfigError(f"victim: expected 0 to {len(setup.devices) - 1}, got {victim}")
    spec = setup.spec(setup.plan()) if group is None else group.spec
    report: Report = {
        "benchmark": "recovery",
        "environment": describe_environment(torch.device(setup.devices[0])),
        "size": f"{setup.size_hw[1]}*{setup.size_hw[0]}",
        "devices": list(setup.devices),
        "precision": str(spec.precision),
        "victim": victim,
    }
    doomed, again = make_jobs(setup, 2, first_job)
    group = group or WorkerGroup(spec)
    try:
        group.wait_until_ready(START_LIMIT_S)
        group.submit(doomed)
        _wait(group, _shows_frames)
        killed = time.monotonic()
        os.kill(group.pids()[victim], signal.SIGKILL)
        report["said"] = _last_words(group)
        report["noticed_s"] = round(time.monotonic() - killed, 3)
        group.kill()
        report["ended_s"] = round(time.monotonic() - killed, 3)
        group = WorkerGroup(spec)
        group.wait_until_ready(START_LIMIT_S)
        report["ready_s"] = round(time.monotonic() - killed, 3)
        group.submit(again)
        _wait(group, _shows_frames)
        report["first_frame_s"] = round(time.monotonic() - killed, 3)
    except EngineError as error:
        report["failure"] = str(error)
    finally:
        group.kill()
    if f"rank {victim} was killed" not in report.get("said", ""):
        report.setdefault("failure", f"the killed rank was not named: {report.get('said')}")
    return report


def _shows_frames(event: Event) -> bool:
    return isinstance(event, Progress) and event.frames > 0


def _wait(group: WorkerGroup, for_this: Callable[[Event], bool]) -> None:
    deadline = time.monotonic() + JOB_LIMIT_S
    while time.monotonic() < deadline:
        event = group.next_event(0.2)
        if event is not None and for_this(event):
            return
    raise DeadlineError(f"no frame in {JOB_LIMIT_S:.0f} s")


def _last_words(group: WorkerGroup) -> str:
    """What the owner says of a group that ends."""
    try:
        _wait(group, lambda _: False)
    except EngineError as error:
        return str(error)
    return ""


def text(report: Report) -> str:
    """Say the result in words."""
    if "failure" in report:
        return f"recovery {report['size']}: failed: {report['failure']}"
    return (
        f"recovery {report['size']}, {report['precision']}, rank {report['victim']} killed: "
        f"noticed after {report['noticed_s']} s, all ended {report['ended_s']}, a new group ready "
        f"{report['ready_s']}, its first frame {report['first_frame_s']}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--size", default="128*128", metavar="W*H", help="of the video, pixels")
    parser.add_argument("--victim", type=int, default=1, help="rank that is killed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        report = measure(read_setup(options, options.size), options.victim)
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    write_result(options.out, report)
    sys.stdout.write((json.dumps(report) if options.json else text(report)) + "\n")
    return int("failure" in report)


if __name__ == "__main__":
    sys.exit(main())
