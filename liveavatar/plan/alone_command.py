"""`python -m liveavatar.plan --alone`: the ways for one process to make a video, and the choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from liveavatar.plan.alone import LonePlan, Shelf
from liveavatar.plan.layout import GIB
from liveavatar.plan.tiers import Tier


def alone_text(
    tier: Tier, size_hw: tuple[int, int], ways: Sequence[LonePlan], chosen: LonePlan
) -> Iterator[str]:
    """For people, line by line: a row per precision, a column for what waits in host memory."""
    (height, width), sampling = size_hw, tier.sampling
    yield (
        f"{tier.name} {tier.size}: video {width}x{height} (width x height), infer_frames "
        f"{sampling.infer_frames}, {sampling.num_steps} steps, by one process with "
        f"{chosen.memory_bytes / GIB:.2f} GiB and {chosen.host_bytes / GIB:.0f} GiB of host memory"
    )
    yield "  GiB needed (GiB pinned), by what waits in host memory:"
    shelves = list(dict.fromkeys(way.shelf for way in ways))
    yield f"  {'':<30}" + "".join(f"{str(shelf) or 'nothing':>18}" for shelf in shelves)
    for precision in dict.fromkeys(way.precision for way in ways):
        cells = (_cell(way) for way in ways if way.precision == precision)
        yield f"  {precision!s:<30}" + "".join(f"{cell:>18}" for cell in cells)
    yield f"  {chosen.verdict}"
    if chosen.shelf != Shelf():
        yield f"  {chosen.copied}"


def _cell(way: LonePlan) -> str:
    need = f"{way.total / GIB:.1f}"
    return f"{need} ({way.pinned / GIB:.1f})" if way.pinned else need


def alone_record(
    tier: Tier, size_hw: tuple[int, int], ways: Sequence[LonePlan], chosen: LonePlan
) -> dict[str, Any]:
    """For programs."""
    height, width = size_hw
    return {
        "name": tier.name,
        "size": str(tier.size),
        "height": height,
        "width": width,
        "infer_frames": tier.sampling.infer_frames,
        "sample_steps": tier.sampling.num_steps,
        "ways": [_record(way) for way in ways],
        "chosen": _record(chosen),
        "verdict": chosen.verdict,
    }


def _record(way: LonePlan) -> dict[str, Any]:
    return {
        "precision": str(way.precision),
        "in_host_memory": str(way.shelf),
        "bytes": way.total,
        "pinned_bytes": way.pinned,
        "fits": way.fits,
        "to_device_per_forward": way.copied.to_device,
        "to_host_per_forward": way.copied.to_host,
        "estimated_block_s": round(way.copied.block_s, 2),
    }
