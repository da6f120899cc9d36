"""Where does the time of a worker group go?

    python -m benchmarks.pipeline --out DIR [--random tiny|14b | --ckpt_dir DIR]
        [--size "688*368 704*384 384*256:3"] [--devices cuda:0,cuda:1,cuda:1] [--clips 4]
        [--jobs 2] [--kill 1] [--json]

Real ranks render several jobs that are handed over together. The first job is the steady state:
from its first finished block to its last, every stage should be busy all the time. The gap is the
time from its last frame to the first frame of the next job.

Videos of several sizes are made by one group, one size after the other: it is planned, and warmed
up, for the largest of them, and before the others it makes a short video that does not count. What
was measured of a size is written at once. With --kill a rank of the group is killed at last, see
`benchmarks.recovery`. Exit status 1 when the group failed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch

from benchmarks import recovery
from benchmarks.environment import describe_environment
from benchmarks.group_run import (
    Report,
    Session,
    Setup,
    Trace,
    add_arguments,
    make_jobs,
    read_setup,
    write_result,
)
from benchmarks.memory import RankPeak, peaks
from liveavatar.config import FPS, FRAMES_PER_BLOCK
from liveavatar.engine.messages import Finished, Progress, RankStatus, Ready
from liveavatar.errors import ConfigError, LiveAvatarError
from liveavatar.plan.layout import LayoutPlan


@dataclass(frozen=True)
class RankTime:
    """One rank in the steady state.

    Attributes:
        role: "stage 0", ..., "media".
        device: such as "cuda:0".
        transport: what tensors went by to and from other stages.
        load_s: from its start until its weights were there.
        ready_s: from its start until it was ready; the media rank's includes the first block.
        busy: share of time in which it computed.
        waiting: share in which it waited for another rank.
        sending: share in which it could not hand over a tensor: transfers that were not hidden.
        memory: the plan, of the group's largest video, and the peak since it was started, GiB.
    """

    role: str
    device: str
    transport: str
    load_s: float
    ready_s: float
    busy: float
    waiting: float
    sending: float
    memory: RankPeak


@dataclass(frozen=True)
class JobTime:
    """One job, seconds from when it was handed over.

    Attributes:
        number: of the job.
        prepared_s: until its inputs were encoded and it was opened at the stages.
        first_block_s: until its first block had left the stages.
        first_frame_s: until its first frames were in the file.
        finished_s: until its file was complete.
    """

    number: int
    prepared_s: float
    first_block_s: float
    first_frame_s: float
    finished_s: float


def times_of_job(trace: Trace, number: int) -> JobTime:
    """When a job came how far."""
    begun = trace.submitted_s[number]
    told = _progress(trace, number)
    rendering = [at_s for at_s, progress in told if progress.stage == "rendering"]
    shown = [at_s for at_s, progress in told if progress.frames]
    finished = [
        s.at_s for s in trace.said if isinstance(s.event, Finished) and s.event.number == number
    ]
    return JobTime(
        number=number,
        prepared_s=round(rendering[0] - begun, 3),
        first_block_s=round(rendering[1] - begun, 3),
        first_frame_s=round(shown[0] - begun, 3),
        finished_s=round(finished[0] - begun, 3),
    )


def _progress(trace: Trace, number: int) -> list[tuple[float, Progress]]:
    return [
        (s.at_s, s.event)
        for s in trace.said
        if isinstance(s.event, Progress) and s.event.number == number
    ]


def block_times(trace: Trace, number: int) -> list[float]:
    """When frames of each block of a job came into its file."""
    times, frames = [], 0
    for at_s, progress in _progress(trace, number):
        if progress.frames > frames:
            frames = progress.frames
            times.append(at_s)
    return times


def steady_ranks(plan: LayoutPlan, trace: Trace, begin_s: float, end_s: float) -> list[RankTime]:
    """Shares of every rank between two times, from the reports that lie wholly between them."""
    memory = peaks(plan, trace)
    ready = {s.event.rank: s.event for s in trace.said if isinstance(s.event, Ready)}
    ranks = []
    for rank, loaded in sorted(ready.items()):
        reports = [
            s.event
            for s in trace.said
            if isinstance(s.event, RankStatus)
            and s.event.rank == rank
            and begin_s + 1 < s.at_s <= end_s
        ]
        if not reports:
            continue
        ranks.append(
            RankTime(
                role=reports[0].role,
                device=reports[0].device,
                transport=loaded.transport,
                load_s=round(loaded.load_s, 2),
                ready_s=round(loaded.ready_s, 2),
                busy=_mean([report.busy_share for report in reports]),
                waiting=_mean([report.waiting_share for report in reports]),
                sending=_mean([report.sending_share for report in reports]),
                memory=memory[rank],
            )
        )
    return ranks


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 4)


def summarise(setup: Setup, plan: LayoutPlan, trace: Trace) -> Report:
    """All figures of a run that went well."""
    jobs = [times_of_job(trace, number) for number in trace.submitted_s]
    blocks = [block_times(trace, number) for number in trace.submitted_s]
    periods = [later - earlier for earlier, later in pairwise(blocks[0])]
    period_s = statistics.median(periods) if periods else float("nan")
    ranks = steady_ranks(plan, trace, blocks[0][0], blocks[0][-1])
    stages = [rank.busy for rank in ranks if rank.role != "media"]
    return {
        "ranks": [asdict(rank) for rank in ranks],
        "jobs": [asdict(job) for job in jobs],
        "block_period_s": round(period_s, 4),
        "block_period_p95_s": round(sorted(periods)[int(0.95 * len(periods))], 4)
        if periods
        else None,
        "fps": round(FRAMES_PER_BLOCK / period_s, 3),
        "times_real_time": round(FRAMES_PER_BLOCK / period_s / FPS, 4),
        "bubble_share": round(1 - max(stages), 4) if stages else None,
        "gap_s": [round(later[0] - earlier[-1], 3) for earlier, later in pairwise(blocks)],
        "num_frames": setup.sampling.num_clip * setup.sampling.infer_frames,
    }


def read_videos(options: argparse.Namespace) -> list[Setup]:
    """One setup for each size, all in the precision that the largest is planned in."""
    setups = []
    for video in options.size.split():
        size, _, steps = video.partition(":")
        setup = read_setup(options, size)
        if steps:
            if not steps.isdecimal():
                raise ConfigError(f'size: expected "W*H" or "W*H:STEPS", got "{video}"')
            sampling = replace(setup.sampling, num_steps=int(steps))
            setup = replace(setup, sampling=sampling)
        setups.append(setup)
    if not setups:
        raise ConfigError('size: expected one "W*H" or several, got none')
    precision = largest_of(setups).plan().precision
    return [replace(setup, precision=precision) for setup in setups]


def largest_of(setups: Sequence[Setup]) -> Setup:
    """The one with the most pixels, and of those with the most steps."""
    return max(setups, key=lambda setup: (math.prod(setup.size_hw), setup.sampling.num_steps))


def measure(setups: Sequence[Setup], num_jobs: int, kill: int | None = None) -> Iterator[Report]:
    """Run the benchmark; yields what was found of each video, and of the group that lost a rank.

    Args:
        setups: videos, see `read_videos`.
        num_jobs: of each.
        kill: rank that is killed at last; None for none.
    """
    largest = largest_of(setups)
    plan = largest.plan()
    with Session(largest.spec(plan)) as session:
        number = 1
        for setup in setups:
            if setup.size_hw != largest.size_hw or setup.sampling != largest.sampling:
                short = replace(setup.sampling, num_clip=min(2, setup.sampling.num_clip))
                session.run(make_jobs(replace(setup, sampling=short), 1, number))
                number += 1
            trace = session.run(make_jobs(setup, num_jobs, number))
            number += num_jobs
            yield _report(setup, plan, trace)
            if trace.failure:
                return
        if kill is not None:
            yield recovery.measure(largest, kill, session.group, number)


def _report(setup: Setup, plan: LayoutPlan, trace: Trace) -> Report:
    """Settings, environment and results, or the failure."""
    report: Report = {
        "benchmark": "pipeline",
        "environment": describe_environment(torch.device(setup.devices[0])),
        "size": f"{setup.size_hw[1]}*{setup.size_hw[0]}",
        "layers": [[stage.start, stage.stop] for stage in plan.stages],
        "devices": list(setup.devices),
        "precision": str(plan.precision),
        "jobs_at_once": plan.jobs_at_once,
        "infer_frames": setup.sampling.infer_frames,
        "sample_steps": setup.sampling.num_steps,
    }
    return report | ({"failure": trace.failure} if trace.failure else summarise(setup, plan, trace))


def text(report: Report) -> str:
    """Say the result in words."""
    head = (
        f"pipeline {report['size']}, {report['precision']}, on {report['environment']['device']}, "
        f"commit {report['environment']['commit']}, torch {report['environment']['torch']}"
    )
    if "failure" in report:
        return f"{head}\n  failed: {report['failure']}"
    lines = [
        head,
        f"  a block of 12 frames every {report['block_period_s']} s ({report['fps']} fps, "
        f"{report['times_real_time']} x real time), bubble share {report['bubble_share']}, "
        f"gap between jobs {report['gap_s']} s",
    ]
    for job in report["jobs"]:
        lines.append(
            f"  job {job['number']}: opened after {job['prepared_s']} s, first block "
            f"{job['first_block_s']} s, first frame {job['first_frame_s']} s, "
            f"whole {job['finished_s']} s"
        )
    for rank in report["ranks"]:
        lines.append(
            f"  {rank['role']:<8} {rank['device']:<7} busy {rank['busy']:.3f}, waiting "
            f"{rank['waiting']:.3f}, sending {rank['sending']:.3f} by {rank['transport']}; "
            f"loaded in {rank['load_s']} s; used {rank['memory']['used']} GiB, "
            f"planned {rank['memory']['planned']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    add_arguments(parser)
    add = parser.add_argument
    add("--size", default="128*128", help='of the video, "W*H" or "W*H:STEPS"; several: "A B C"')
    add("--jobs", type=int, default=2, help="of each video, handed over together")
    add("--kill", type=int, metavar="RANK", help="at last; measures how long the group is away")
    add("--json", action="store_true", help="print one JSON object per video")
    options = parser.parse_args(arguments)
    failed, videos = False, list[Report]()
    try:
        for report in measure(read_videos(options), options.jobs, options.kill):
            if report["benchmark"] == "recovery":
                write_result(options.out, report)
                words = recovery.text(report)
            else:
                videos.append(report)
                write_result(options.out, {"benchmark": "pipeline", "videos": videos})
                words = text(report)
            sys.stdout.write((json.dumps(report) if options.json else words) + "\n")
            sys.stdout.flush()
            failed |= "failure" in report
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
