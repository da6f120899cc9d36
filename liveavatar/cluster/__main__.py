"""The worker groups of a Ray cluster, from the shell.

    python -m liveavatar.cluster status|grow|shrink|stop|room [N] [--ray-address HOST:PORT]

`python app.py --backend ray --groups N` makes the first ones and says what they serve; here are
more and fewer of them. `shrink` lets them finish what they render, `stop` ends all at once and
their jobs wait for others. `room` asks an autoscaler for machines in advance.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from liveavatar.errors import ConfigError, LiveAvatarError


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this command."""
    parser = argparse.ArgumentParser(
        prog="python -m liveavatar.cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", choices=("status", "grow", "shrink", "stop", "room"))
    add("number", nargs="?", type=int, metavar="N", help="how many groups; default 1")
    add("--ray-address", default="auto", metavar="HOST:PORT", help="default: the cluster of this "
        "machine")  # fmt: skip
    add("--wait", type=float, default=0.0, metavar="SECONDS", help="shrink: wait so long at most "
        "until they have left; default: do not")  # fmt: skip
    add("--json", action="store_true", help="status as one JSON object")
    return parser


def run(options: argparse.Namespace) -> str:
    """Do what was asked for; returns what is to be said."""
    number = 1 if options.number is None else options.number
    if not 0 <= number <= 10_000:
        raise ConfigError(f"number: expected 0 to 10000, got {number}")
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "Ray is not installed; .venv/bin/python -m pip install -r requirements-ray.txt"
        )
    from liveavatar.cluster.pool import Pool  # here, as it cannot be imported without Ray

    with Pool(options.ray_address) as pool:
        if options.action == "grow":
            return f"asked for groups {_listed(pool.grow(number))}"
        if options.action == "shrink":
            leaving = pool.shrink(number)
            if options.wait:
                pool.wait_until_gone(leaving, options.wait)
                return f"gone: groups {_listed(leaving)}"
            return f"groups {_listed(leaving)} finish what they render and leave"
        if options.action == "stop":
            return f"ended groups {_listed(pool.stop())}"
        if options.action == "room":
            pool.keep_room(number)
            return f"asked for room for {number} groups in all"
        document = pool.document()
    return json.dumps(document) if options.json else text(document)


def text(document: dict[str, Any]) -> str:
    """Nodes and groups in lines."""
    lines = []
    for node in document["nodes"]:
        what = f"{node['gpus']:g} cards, {node['cpus']:g} cores" if node["alive"] else "lost"
        lines.append(f"node {node['name']}: {what}")
    for group in document["groups"]:
        place = group["place"]
        where = f" on {place['node']}" if place["node"] else ""
        message = f": {group['message']}" if group["message"] else ""
        jobs = f", {group['jobs']} jobs" if group["jobs"] else ""
        lines.append(f"group {place['number']}{where}: {group['state']}{jobs}{message}")
    return "\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        said = run(build_parser().parse_args(arguments))
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
