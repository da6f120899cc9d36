"""What `four_gpu.sh` left in a folder, as tables in Markdown.

python -m benchmarks.four_gpu OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_COLUMNS = (
    "section, size, steps",
    "precision",
    "tensors by",
    "first frame of two jobs, s",
    "frames/s",
    "block, s",
    "stages busy",
    "sending at most",
    "in use since the start of planned for the largest size, GiB, per rank",
)


def read_results(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Results of one benchmark, by section, as far as they were written."""
    return {
        path.parent.name: json.loads(path.read_text()) for path in folder.glob(f"*/{name}.json")
    }


def pipeline_row(section: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    asked = f"{result['size']}, {result['sample_steps']} steps"
    head = [f"{section}, {asked}", result["precision"]]
    if "failure" in result:
        return _row([*head, f"failed: {result['failure']}", *[""] * (len(_COLUMNS) - 3)])
    stages = [rank for rank in result["ranks"] if rank["role"] != "media"]
    memory = [rank["memory"] for rank in result["ranks"]]
    cells = [
        "/".join(sorted({rank["transport"] for rank in stages})),
        ", ".join(str(job["first_frame_s"]) for job in result["jobs"]),
        str(result["fps"]),
        str(result["block_period_s"]),
        ", ".join(f"{100 * rank['busy']:.1f} %" for rank in stages),
        f"{100 * max((rank['sending'] for rank in stages), default=0):.1f} %",
        ", ".join(f"{each['used']:.2f} of {each['planned']:.2f}" for each in memory),
    ]
    return _row([*head, *cells])


def tables(folder: Path) -> Iterator[str]:
    """All lines."""
    pipelines, recoveries = (read_results(folder, name) for name in ("pipeline", "recovery"))
    videos = [video for result in pipelines.values() for video in result["videos"]]
    for result in [*videos, *recoveries.values()][:1]:
        where = result["environment"]
        yield f"{where['device']}, torch {where['torch']}, commit {where['commit']}: devices " + (
            ", ".join(result["devices"])
        )
        yield ""
    yield _row(_COLUMNS)
    yield "|" + "---|" * len(_COLUMNS)
    for section, result in sorted(pipelines.items()):
        yield from (pipeline_row(section, video) for video in result["videos"])
    for result in recoveries.values():
        yield ""
        yield (
            f"rank {result['victim']} killed at {result['size']}: failed: {result['failure']}"
            if "failure" in result
            else f"rank {result['victim']} killed at {result['size']}: named after "
            f"{result['noticed_s']} s, a new group ready after {result['ready_s']} s, its first "
            f"frame after {result['first_frame_s']} s"
        )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.four_gpu", description=__doc__)
    parser.add_argument("out", type=Path, help="folder that four_gpu.sh wrote")
    folder = parser.parse_args(arguments).out
    sys.stdout.write("\n".join(tables(folder)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
