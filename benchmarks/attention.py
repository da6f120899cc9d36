"""How long does a block's attention to its full window take, with each kernel there is?

    python -m benchmarks.attention
    python -m benchmarks.attention --size 384*256 --kind e4m3 --infer_frames 24

Queries, keys and values are random, all heads of the 14B model at once, sizes taken literally. A
kernel is timed by itself, several calls in a row; "auto" would take the fastest. Without a GPU
there is nothing to choose from, and nothing is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.printing import print_reports
from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.errors import ConfigError
from liveavatar.model.attention_backend import AttentionShape, measured_ms
from liveavatar.model.fp8 import DTYPE as E4M3
from liveavatar.plan.transformer_memory import count_tokens
from liveavatar.request import parse_size

KINDS = {"bfloat16": torch.bfloat16, "e4m3": E4M3}
TFLOP = 1e12


def attention_shape(
    config: TransformerConfig, size_hw: tuple[int, int], infer_frames: int
) -> AttentionShape:
    """Sizes of a block's attention to its full window."""
    tokens = count_tokens(config, size_hw, SamplingConfig(infer_frames=infer_frames))
    keys = tokens.condition + tokens.ring
    return AttentionShape(tokens.block, keys, config.num_heads, config.head_dim)


def describe(kind: str, shape: AttentionShape, device: torch.device) -> dict[str, Any]:
    """Time every kernel at a shape."""
    timed = measured_ms(device, KINDS[kind], shape)
    tflop = 4 * shape.num_queries * shape.num_keys * shape.num_heads * shape.head_dim / TFLOP
    return {
        "kind": kind,
        "queries": shape.num_queries,
        "keys": shape.num_keys,
        "heads": shape.num_heads,
        "tflop": round(tflop, 4),
        "kernels": {
            name: {"ms": round(ms, 3), "tflop_per_s": round(1000 * tflop / ms, 1)}
            for name, ms in sorted(timed.items(), key=lambda item: item[1])
        },
    }


def one_line(report: dict[str, Any]) -> str:
    """Say a result in words."""
    kernels = ", ".join(
        f"{name} {kernel['ms']} ms ({kernel['tflop_per_s']} TFLOP/s)"
        for name, kernel in report["kernels"].items()
    )
    return (
        f"attention {report['size']} {report['kind']}, {report['queries']} queries x "
        f"{report['keys']} keys, {report['heads']} heads, {report['environment']['device']}: "
        f"{kernels or 'nothing to choose from'}"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    add = parser.add_argument
    add("--size", default="688*368,640*384,384*256", metavar="W*H,...", help="pixels, literally")
    add("--kind", default="bfloat16,e4m3", metavar="K,...", help="of queries, keys and values")
    add("--infer_frames", type=int, default=48, help="frames of a clip, which the window holds")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", action="store_true", help="print one JSON object per measurement")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every kind at every size."""
    device = torch.device(options.device)
    kinds = options.kind.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"kind: expected some of {', '.join(KINDS)}, got {kind}")
    for size in map(parse_size, options.size.split(",")):
        shape = attention_shape(
            TransformerConfig(), (size.height, size.width), options.infer_frames
        )
        for kind in kinds:
            yield {
                "benchmark": "attention",
                "environment": describe_environment(device),
                "size": f"{size.width}*{size.height}",
                **describe(kind, shape, device),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    options = parse_arguments(arguments)
    return print_reports(run(options), one_line, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
