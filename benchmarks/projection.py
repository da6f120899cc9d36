"""What could 4 cards of 24 GB reach at the 14B shape? From data sheets, nothing is measured.

    python -m benchmarks.projection [--size 688*368,704*384] [--gpus 4] [--json]

For each size and precision: the time of the slowest pipeline stage if its matrix units, and its
memory where 8-bit windows are brought back, worked at their full rates, and how fast the residual
stream can move to the next stage. `--share` scales the rates to what is reached in practice: the
share that `dit_step` reports. Norms, gates, host and kernel starts are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.dit_step import SHAPES, TFLOP, Setting, work
from benchmarks.printing import print_reports
from liveavatar.config import FPS, FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import GIB, Machine, estimate_layout, split_stages
from liveavatar.plan.precision import Precision, parse_precision
from liveavatar.plan.shapes import Network
from liveavatar.request import parse_size


@dataclass(frozen=True)
class Card:
    """A card by its data sheet.

    Attributes:
        name: of the card.
        bfloat16_flops: dense products per second, float32 sums.
        fp8_flops: in e4m3.
        copy_bytes: of its memory, per second.
        hop_bytes: to another card through the host, per second, slow and fast.
        memory_gib: that programs may take.
    """

    name: str
    bfloat16_flops: float
    fp8_flops: float
    copy_bytes: float
    hop_bytes: tuple[float, float]
    memory_gib: float


RTX_4090 = Card("RTX 4090", 165 * TFLOP, 330 * TFLOP, 1008e9, (5e9, 12e9), 22.15)
PRECISIONS = ("bfloat16+8-bit", "fp8+8-bit")


def stage_seconds(card: Card, setting: Setting, layers: range, share: float) -> float:
    """Time of one forward through a range of layers, at a share of the card's rates."""
    config = setting.config
    injections = sum(layer in config.audio_inject_layers for layer in layers)
    injected = tuple(range(injections))  # which they are makes no difference here
    part = replace(config, num_layers=len(layers), audio_inject_layers=injected)
    products, attention, restored = work(replace(setting, config=part))
    rate = card.fp8_flops if setting.precision.quantises_weights else card.bfloat16_flops
    busy = products / rate + attention / card.bfloat16_flops
    return busy / share + restored / card.copy_bytes


def project(
    card: Card, size_hw: tuple[int, int], precision: Precision, num_gpus: int, share: float
) -> dict[str, Any]:
    """Block period, rate and latency of a worker group of stages and a media rank."""
    network, sampling = Network(transformer=SHAPES["14b"]), SamplingConfig(num_clip=10)
    config = network.transformer
    machine = Machine(num_gpus, int(card.memory_gib * GIB))
    setting = Setting(
        config, size_hw, sampling, precision, torch.device("cpu"),
        compiled=True, recorded=True, forwards=0,
    )  # fmt: skip
    stages = split_stages(config, size_hw, sampling, machine.num_stages)
    tick_s = max(stage_seconds(card, setting, layers, share) for layers in stages)
    tokens = stage.count_tokens(config, size_hw, sampling)
    hop = tokens.block * config.dim * precision.value_bytes
    pipeline = Pipeline(len(stages), sampling.num_steps)
    need = estimate_layout(network, size_hw, sampling, machine, precision).largest
    period_s = sampling.num_steps * tick_s
    return {
        "benchmark": "projection",
        "card": card.name,
        "gpus": num_gpus,
        "size": f"{size_hw[1]}*{size_hw[0]}",
        "precision": str(precision),
        "share_of_rates": share,
        "fits": need <= machine.memory_bytes,
        "stage_ms": round(1000 * tick_s, 1),
        "hop_ms": [round(1000 * hop / rate, 1) for rate in card.hop_bytes],
        "block_s": round(period_s, 3),
        "fps": round(FRAMES_PER_BLOCK / period_s, 1),
        "of_real_time": round(FRAMES_PER_BLOCK / period_s / FPS, 2),
        "block_latency_s": round(tick_s * pipeline.latency, 2),
    }


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Project every size in every precision."""
    for name in options.size.split(","):
        size = parse_size(name)
        for precision in map(parse_precision, options.precision.split(",")):
            yield project(
                RTX_4090, (size.height, size.width), precision, options.gpus, options.share
            )


def one_line(report: dict[str, Any]) -> str:
    """Say a projection in words."""
    slowest, fastest = report["hop_ms"]
    return (
        f"projection, not measured: {report['gpus']} x {report['card']}, {report['size']}, "
        f"{report['precision']}, {100 * report['share_of_rates']:.0f} % of the rates: "
        f"a stage {report['stage_ms']} ms, a hop {fastest} to {slowest} ms, "
        f"a block every {report['block_s']} s, done {report['block_latency_s']} s from its start "
        f"({report['fps']} fps, {report['of_real_time']} of real time)"
        f"{'' if report['fits'] else '; does not fit'}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projection", description=__doc__)
    parser.add_argument("--size", default="384*256,688*368,704*384", metavar="W*H,...")
    parser.add_argument("--precision", default=",".join(PRECISIONS), metavar="P,...")
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--share", type=float, default=1.0, help="of the rates that is reached")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    options = parser.parse_args(arguments)
    return print_reports(run(options), one_line, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
