"""Tell what a worker group would need on each rank, and whether it fits.

    python -m liveavatar.plan [--size 688*368] [--gpus 4] [--gpu_memory_gib 22.15] [--model DIR]

Without --size there is one block per tier, and what the one group of the application, which makes
all of them, runs in. With --alone it plans one process on one GPU that makes
a video by itself, with layers, rings or both in host memory. With --tune REPORT, a JSON file that
--batch wrote beside a video, it proposes clip length, clips and split for what was measured
(`tuning.py`).
Exit status: 0 when everything shown fits, 1 when it does not, 2 for input that cannot be used, said
in one line.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from liveavatar.config import SamplingConfig
from liveavatar.errors import ConfigError, LiveAvatarError
from liveavatar.media.portrait import fit_size
from liveavatar.plan.alone import plan_alone, ways_alone
from liveavatar.plan.alone_command import alone_record, alone_text
from liveavatar.plan.layout import GIB, LayoutPlan, Machine, plan_layout
from liveavatar.plan.several import Video, common_precision
from liveavatar.plan.shapes import Network, read_network
from liveavatar.plan.tiers import TIERS, Tier
from liveavatar.plan.tune_command import as_record, as_text, read_report
from liveavatar.plan.tuning import advise
from liveavatar.request import SizeOption, parse_size

PORTRAIT_HW = (1920, 1080)
NUM_GPUS = 4
GPU_MEMORY_GIB = 22.15
HOST_MEMORY_GIB = 128
NUM_CLIPS = 50

EXIT_FITS, EXIT_TOO_LARGE, EXIT_REFUSED = 0, 1, 2

_PARTS = (
    ("weights", "weights"),
    ("rings", "rings"),
    ("condition", "condition"),
    ("workspace", "workspace"),
    ("recordings", "recordings"),
    ("text", "text"),
    ("in_flight", "in flight"),
    ("activations", "activ."),
    ("vae_state", "VAE state"),
    ("encoders", "encoders"),
    ("encoded", "encoded"),
    ("transport", "NCCL"),
    ("context", "context"),
    ("total", "total"),
)


class _OneLineParser(argparse.ArgumentParser):
    """A parser that refuses in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = _OneLineParser(
        prog="python -m liveavatar.plan",
        description="Memory per rank, chosen precision, and whether it fits.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--size", help='area as "W*H" for a 9:16 portrait; without it one block per tier')
    add("--literal", action="store_true", help="plan for exactly --size, not for a portrait")
    add("--infer_frames", type=int, help="frames per clip, 48 or the tier's")
    add("--sample_steps", type=int, help="denoise steps per block, 4 or the tier's")
    add("--gpus", type=int, default=NUM_GPUS, help=f"default {NUM_GPUS}; 0 plans for the CPU")
    add(
        "--gpu_memory_gib",
        type=float,
        help=f"what one GPU offers to programs, default {GPU_MEMORY_GIB}; with --gpus 0 the host's",
    )
    add("--model", type=Path, help="checkpoint folder; the published 14B shape by default")
    add("--alone", action="store_true", help="plan one process with --offload_model, on one GPU")
    add(
        "--host_memory_gib",
        type=float,
        default=HOST_MEMORY_GIB,
        help=f"with --alone: free memory of the host, default {HOST_MEMORY_GIB}",
    )
    add("--tune", type=Path, metavar="REPORT", help="propose settings from a video's report")
    add("--json", action="store_true", help="print one JSON object")
    return parser


def _sizes(options: argparse.Namespace) -> tuple[Tier, ...]:
    """What is planned for: the given size, or every tier, with the given sampling."""
    given = {
        name: value
        for name, value in (
            ("infer_frames", options.infer_frames),
            ("num_steps", options.sample_steps),
        )
        if value is not None
    }
    if options.size is not None:
        sampling = SamplingConfig(num_clip=NUM_CLIPS, **given)
        return (Tier("size", parse_size(options.size), sampling),)
    if options.literal:
        raise ConfigError("literal: expected with --size, which it takes as it is; add --size")
    return tuple(
        Tier(tier.name, tier.size, SamplingConfig(**(asdict(tier.sampling) | given)))
        for tier in TIERS
    )


def _machine(options: argparse.Namespace) -> Machine:
    gib = options.gpu_memory_gib
    if gib is None and options.gpus == 0:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Machine(0, memory)
    gib = GPU_MEMORY_GIB if gib is None else gib
    if not math.isfinite(gib):
        raise ConfigError(f"gpu_memory_gib: expected a number, got {gib}")
    return Machine(options.gpus, int(gib * GIB))


def _fitted(size: SizeOption, *, literal: bool) -> tuple[int, int]:
    """Height and width of the video."""
    return (size.height, size.width) if literal else fit_size(PORTRAIT_HW, size.area)


def _text(tier: Tier, plan: LayoutPlan) -> Iterator[str]:
    (height, width), sampling, machine = plan.size_hw, tier.sampling, plan.machine
    where = f"{machine.num_gpus} GPUs" if machine.num_gpus else "the CPU"
    yield (
        f"{tier.name} {tier.size}: video {width}x{height} (width x height), infer_frames "
        f"{sampling.infer_frames}, {sampling.num_steps} steps, on {where} "
        f"of {machine.memory_bytes / GIB:.2f} GiB"
    )
    yield f"  {plan.precision}; GiB per rank:"
    yield "  rank          device" + "".join(f"{title:>11}" for _, title in _PARTS)
    shared = [part for part in plan.stages for _ in range(machine.sharing.size)]
    names = [f"{r} layers {part.start}-{part.stop - 1}" for r, part in enumerate(shared)]
    names.append(f"{len(names)} media")
    for name, device, rank in zip(names, machine.devices, plan.ranks, strict=True):
        cells = "".join(f"{getattr(rank, part) / GIB:11.2f}" for part, _ in _PARTS)
        yield f"  {name:<14}{device:>6}{cells}"
    yield f"  {plan.verdict}"
    if plan.jobs_at_once == 1:
        yield "  one job at a time: the caches of a second one would not fit beside it"


def _record(tier: Tier, plan: LayoutPlan) -> dict[str, Any]:
    height, width = plan.size_hw
    return {
        "name": tier.name,
        "size": str(tier.size),
        "height": height,
        "width": width,
        "infer_frames": tier.sampling.infer_frames,
        "sample_steps": tier.sampling.num_steps,
        "gpus": plan.machine.num_gpus,
        "memory_bytes": plan.machine.memory_bytes,
        "precision": asdict(plan.precision),
        "stages": [[part.start, part.stop] for part in plan.stages],
        "devices": list(plan.machine.devices),
        "ranks": [asdict(rank) | {"total": rank.total} for rank in plan.ranks],
        "device_bytes": list(plan.chosen.device_bytes),
        "fits": plan.fits,
        "jobs_at_once": plan.jobs_at_once,
        "reasons": list(plan.reasons),
        "verdict": plan.verdict,
    }


def _tune(options: argparse.Namespace) -> int:
    network = Network() if options.model is None else read_network(options.model)
    measured = read_report(options.tune, _machine(options).memory_bytes)
    advice = advise(network, measured)
    text = (
        json.dumps(as_record(measured, advice), indent=2)
        if options.json
        else as_text(measured, advice)
    )
    sys.stdout.write(text + "\n")
    return EXIT_FITS


def _alone(options: argparse.Namespace) -> int:
    network = Network() if options.model is None else read_network(options.model)
    if not 0 <= options.host_memory_gib <= 2**20:
        raise ConfigError(
            f"host_memory_gib: expected 0 up to {2**20}, got {options.host_memory_gib}"
        )
    machine, host_bytes = _machine(options), int(options.host_memory_gib * GIB)
    found = []
    for tier in _sizes(options):
        size_hw = _fitted(tier.size, literal=options.literal)
        asked = network, size_hw, tier.sampling, machine
        ways = list(ways_alone(*asked, host_bytes))
        found.append((tier, size_hw, ways, plan_alone(*asked, offload=True, host_bytes=host_bytes)))
    if options.json:
        text = json.dumps({"plans": [alone_record(*each) for each in found]}, indent=2)
    else:
        text = "\n\n".join("\n".join(alone_text(*each)) for each in found)
    sys.stdout.write(text + "\n")
    return EXIT_FITS if all(chosen.fits for *_, chosen in found) else EXIT_TOO_LARGE


def run(options: argparse.Namespace) -> int:
    """Plan and print; returns the exit status."""
    if options.tune is not None:
        return _tune(options)
    if options.alone:
        return _alone(options)
    machine = _machine(options)
    network = Network() if options.model is None else read_network(options.model)
    planned = []
    for tier in _sizes(options):
        size_hw = _fitted(tier.size, literal=options.literal)
        planned.append((tier, plan_layout(network, size_hw, tier.sampling, machine)))
    videos = [Video(plan.size_hw, plan.sampling) for _, plan in planned]
    together = common_precision(network, videos, machine)
    if options.json:
        document = {
            "plans": [_record(*pair) for pair in planned],
            "together": None if together is None else asdict(together),
        }
        text = json.dumps(document, indent=2)
    else:
        blocks = ["\n".join(_text(*pair)) for pair in planned]
        if len(planned) > 1 and together is not None:
            blocks.append(f"one group for all that fit: {together}")
        text = "\n\n".join(blocks)
    sys.stdout.write(text + "\n")
    return EXIT_FITS if all(plan.fits for _, plan in planned) else EXIT_TOO_LARGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        return run(build_parser().parse_args(arguments))
    except LiveAvatarError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
