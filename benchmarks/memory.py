"""Is a rank as large as the plan says?

    python -m benchmarks.memory --out DIR [--random tiny|14b | --ckpt_dir DIR]
        [--devices cuda:0,cuda:0,cuda:0,cuda:0] [--memory_gib 22.15]
        [--sizes "384*256,688*368,704*384"] [--json]

For each size a worker group renders --jobs videos; the media rank encodes the next one while it
decodes. torch refuses a rank more than --memory_gib less the CUDA context, so that several ranks on
one large GPU live as on cards of their own. Compared are the plan and the largest number of bytes
in use at once, per rank; the context is measured as what the device holds beyond torch's reserves.
On the CPU only the plan's parts are run, nothing is compared.
Exit status 1 when a size that the plan says fits did not come through.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.group_run import (
    Setup,
    Trace,
    add_arguments,
    make_jobs,
    read_setup,
    run_jobs,
)
from liveavatar.engine.messages import Finished, RankStatus
from liveavatar.errors import LiveAvatarError
from liveavatar.plan.layout import GIB, LayoutPlan


@dataclass(frozen=True)
class RankPeak:
    """One rank of one run, GiB.

    Attributes:
        role: "stage 0", ..., "media".
        planned: all parts but the CUDA context and NCCL.
        used: the most that tensors took.
        reserved: the most that torch held of the device, its spare blocks included.
        error: of the plan, as a share of what was used.
    """

    role: str
    planned: float
    used: float
    reserved: float
    error: float


def peaks(plan: LayoutPlan, trace: Trace) -> list[RankPeak]:
    """Plan and peak of every rank."""
    last = {s.event.rank: s.event for s in trace.said if isinstance(s.event, RankStatus)}
    found = []
    for rank, status in sorted(last.items()):
        used = status.peak_used_bytes or status.peak_bytes
        planned = plan.ranks[rank].total - plan.ranks[rank].beside_torch
        found.append(
            RankPeak(
                role=status.role,
                planned=round(planned / GIB, 3),
                used=round(used / GIB, 3),
                reserved=round(status.peak_bytes / GIB, 3),
                error=round(planned / used - 1, 4),
            )
        )
    return found


def context_gib(setup: Setup, trace: Trace) -> float | None:
    """What a rank takes of its GPU beside torch's reserves: CUDA context and libraries."""
    last = {s.event.rank: s.event for s in trace.said if isinstance(s.event, RankStatus)}
    if not trace.device_bytes:
        return None
    reserved = sum(status.memory_bytes for status in last.values())
    return round((trace.device_bytes - reserved) / len(setup.devices) / GIB, 3)


def measure(setup: Setup, num_jobs: int) -> dict[str, Any]:
    """Run one size; returns the plan, the peaks and whether the videos were made."""
    plan = setup.plan()
    trace = run_jobs(setup.spec(plan), make_jobs(setup, num_jobs))
    finished = [s.event for s in trace.said if isinstance(s.event, Finished)]
    return {
        "size": f"{setup.size_hw[1]}*{setup.size_hw[0]}",
        "precision": str(plan.precision),
        "sharded": setup.sharded,
        "verdict": plan.verdict,
        "fits": plan.fits,
        "jobs": num_jobs,
        "frames": sum(event.frames for event in finished),
        "failure": trace.failure,
        "context_gib": context_gib(setup, trace),
        "ranks": [asdict(peak) for peak in peaks(plan, trace)],
        "parts": [asdict(rank) for rank in plan.ranks],
    }


def text(result: dict[str, Any]) -> str:
    """Say one size in words."""
    made = result["failure"] or f"{result['frames']} frames made"
    lines = [f"{result['size']}, {result['precision']}: {made}; the plan: {result['verdict']}"]
    lines.append(f"  context {result['context_gib']} GiB per rank, beside:")
    for rank in result["ranks"]:
        lines.append(
            f"  {rank['role']:<8} used {rank['used']:6.2f}, reserved {rank['reserved']:6.2f} GiB, "
            f"planned {rank['planned']:6.2f} ({100 * rank['error']:+.1f} %)"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--sizes", default="384*256,688*368,704*384", help="of videos, pixels")
    parser.add_argument("--jobs", type=int, default=2, help="handed over together")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"benchmark": "memory", "results": []}
    try:
        for size in options.sizes.split(","):
            setup = read_setup(options, size)
            report["environment"] = describe_environment(torch.device(setup.devices[0]))
            report["results"].append(measure(setup, options.jobs))
            # After every size, so that a run that is cut short leaves what it found.
            (options.out / "memory.json").write_text(json.dumps(report, indent=2) + "\n")
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        sys.stdout.write("\n".join(map(text, report["results"])) + "\n")
    return int(any(result["fits"] and bool(result["failure"]) for result in report["results"]))


if __name__ == "__main__":
    sys.exit(main())
