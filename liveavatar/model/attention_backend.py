"""Which of torch's attention kernels runs: by name, or the fastest, measured on the card."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from liveavatar.model.attention import KeyValue, attend

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}

_HEADS = 8  # enough to fill a card, few enough to be a small part of a layer's memory
_REPEATS = 3


@contextmanager
def preferring(name: str | None) -> Iterator[None]:
    """Use the backend `name` inside, others where it cannot; None leaves the choice to torch."""
    if name is None:
        yield
        return
    others = [backend for other, backend in BACKENDS.items() if other != name]
    with sdpa_kernel([BACKENDS[name], *others], set_priority=True):
        yield


@functools.cache
def fastest_backend(
    device: torch.device, dtype: torch.dtype, num_queries: int, num_keys: int, head_dim: int
) -> str | None:
    """Name of the backend that attends fastest at this shape; None on the CPU."""
    if device.type != "cuda":
        return None
    query = torch.randn(num_queries, _HEADS, head_dim, dtype=dtype, device=device)
    key = torch.randn(num_keys, _HEADS, head_dim, dtype=dtype, device=device)
    timed = {}
    for name in ("cudnn", "flash", "efficient"):
        try:
            timed[name] = attention_ms(query, KeyValue(key, key), name)
        except RuntimeError:
            continue  # no such kernel for this card, dtype or width
    return min(timed, key=lambda name: timed[name]) if timed else "math"


def attention_ms(query_LNH: torch.Tensor, kv: KeyValue, name: str) -> float:
    """Milliseconds of one attention with the backend `name` alone, the best of a few.

    Raises:
        RuntimeError: that backend cannot do it.
    """
    times = []
    with sdpa_kernel(BACKENDS[name]):
        for _ in range(1 + _REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            attend(query_LNH, kv)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return min(times[1:])
