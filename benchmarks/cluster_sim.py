"""How long do people wait, and what does a decision cost, with up to 1,000 worker groups?

    python -m benchmarks.cluster_sim --groups 1000 --jobs 100000 --waiting 100000 [--json]
    python -m benchmarks.cluster_sim --groups 100 --jobs 20000 --share 0.9 --bursts 5 --mtbf_h 24

The scheduler under test is the one that runs: the job store, on a SQLite file of its own, see
`cluster_events`. Rendering is not run; a job takes its frames by the speed of its tier, and a
pause.

Speeds are given by --fps. The default has the 9.0 frames/s at 688*368 that `benchmarks.pipeline`
measured on one H200, with its 2.0 s between two jobs, and for the other tiers the same times their
ratio in `benchmarks.projection`, 32 to 10 to 9 (docs/benchmarks.md).

Of the groups a part (--small) makes the tier "fast" only. A group that fails gives its job back,
of which whole blocks stay, and is away for --repair_s. Not simulated: the next job being prepared
while one renders, and cancelled jobs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cluster_events import Cluster, Outcome, Simulation
from benchmarks.cluster_load import Load, draw_jobs
from benchmarks.environment import describe_environment

FPS = "fast=28.8,balanced=9.0,high=8.1"


def simulate(load: Load, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Run one load on one cluster; returns what it says.

    Args:
        load: what is asked for.
        cluster: the groups.
        folder: for the database, empty.
    """
    arrivals = draw_jobs(load, cluster.fps, cluster.groups)
    outcome = Simulation(arrivals, cluster, folder, load.seed).run()
    records = list(outcome.records.values())
    ended = max(record.ended for record in records)
    there_s = cluster.groups * ended - outcome.away_s
    return {
        "jobs": len(records),
        "not_ended_once": sum(record.ends != 1 for record in records),
        "failures": outcome.failures,
        "hours_of_arrivals": round(arrivals[-1].at / 3600, 2),
        "hours": round(ended / 3600, 2),
        "utilisation": round(outcome.busy_s / there_s, 4),
        "fairness": round(jain(outcome.owners_had), 4) if outcome.owners_had else None,
        "owners_compared": summary(outcome.owners_had),
        "wait_s": waits(outcome),
        "claim_ms": summary([1e3 * each for each in outcome.claim_s], 3),
        "claim_cpu_ms": summary([1e3 * each for each in outcome.claim_cpu_s], 3),
        "claim_in_vain_ms": summary([1e3 * each for each in outcome.in_vain_s], 3),
    }


def waits(outcome: Outcome) -> dict[str, dict[str, float]]:
    """Seconds from the submission to the first claim, by kind of job and by owner."""
    kinds: dict[str, list[float]] = defaultdict(list)
    owners: dict[str, list[float]] = defaultdict(list)
    for record in outcome.records.values():
        waited = record.began - record.arrival.at
        kinds[record.arrival.kind].append(waited)
        owners[record.arrival.spec.owner].append(waited)
    by_count = sorted(owners.values(), key=len)
    tenth = max(1, len(by_count) // 10)
    return {kind: summary(kinds[kind]) for kind in sorted(kinds)} | {
        "tenth of the owners with most jobs": summary([*itertools.chain(*by_count[-tenth:])]),
        "tenth of the owners with fewest": summary([*itertools.chain(*by_count[:tenth])]),
        "mean of each owner": summary([statistics.fmean(waited) for waited in by_count]),
    }


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1 / n when one of n has everything."""
    squares = sum(share**2 for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def summary(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """How many, median and other percentiles."""
    ordered = sorted(values)
    found: dict[str, float] = {"count": len(ordered)}
    for part in (5, 50, 95, 99) if ordered else ():
        found[f"p{part}"] = round(ordered[(len(ordered) - 1) * part // 100], digits)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster_sim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--small", type=float, default=0.1, help="share of groups for fast only")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--waiting", type=int, default=0, help="of them, from the beginning")
    parser.add_argument("--owners", type=int, default=2000)
    parser.add_argument("--share", type=float, default=0.8, help="asked for, of what can be made")
    parser.add_argument(
        "--bursts", type=float, default=1.0, help="times more in a tenth of the time"
    )
    parser.add_argument("--burst_s", type=float, default=600.0)
    parser.add_argument("--mtbf_h", type=float, default=0.0, help="between failures; 0 for none")
    parser.add_argument("--repair_s", type=float, default=120.0)
    parser.add_argument("--fps", default=FPS, metavar="TIER=FPS,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where the database lies, a temporary folder else")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    fps = {
        tier: float(value) for tier, value in (each.split("=") for each in options.fps.split(","))
    }
    load = Load(
        options.jobs,
        options.waiting,
        options.owners,
        options.share,
        options.bursts,
        options.burst_s,
        options.seed,
    )
    cluster = Cluster(options.groups, options.small, fps, 3600 * options.mtbf_h, options.repair_s)
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        result = simulate(load, cluster, Path(folder))
    report = {"benchmark": "cluster_sim", "environment": describe_environment(torch.device("cpu"))}
    report |= {"options": vars(options) | {"dir": str(options.dir)}, "result": result}
    sys.stdout.write(json.dumps(report) + "\n" if options.json else _as_text(result))
    return int(bool(result["not_ended_once"]))


def _as_text(result: dict[str, Any]) -> str:
    lines = []
    for name, value in result.items():
        if isinstance(value, dict) and all(isinstance(each, dict) for each in value.values()):
            lines += [f"{name} {key}: {each}" for key, each in value.items()]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
