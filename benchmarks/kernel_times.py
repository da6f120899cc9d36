"""Which kernels of a GPU something spends its time in, and for how long it is idle between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

_NAME_LENGTH = 90
_KERNELS = 30


def kernel_times(run: Callable[[], object]) -> dict[str, Any]:
    """Run something once under the profiler.

    Returns:
        Milliseconds from its first kernel to the end of its last, the share of them in which a
        kernel ran, the number of kernels, and the longest kernels by name.
    """
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    kernels = [e for e in recorded.events() if e.device_type == DeviceType.CUDA]
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels)
    total_ms, calls = defaultdict[str, float](float), defaultdict[str, int](int)
    for event in kernels:
        name = event.name[:_NAME_LENGTH]
        total_ms[name] += (event.time_range.end - event.time_range.start) / 1000
        calls[name] += 1
    longest = sorted(total_ms, key=lambda name: -total_ms[name])[:_KERNELS]
    span_ms = (max(end for _, end in spans) - spans[0][0]) / 1000
    return {
        "span_ms": round(span_ms, 2),
        "busy_share": round(covered(spans) / 1000 / span_ms, 4),
        "num_kernels": len(kernels),
        "kernels": [
            {"name": name, "calls": calls[name], "ms": round(total_ms[name], 3)} for name in longest
        ],
    }


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of spans that are sorted by their beginning."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
