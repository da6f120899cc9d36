"""Which attention kernel runs: by name, or the fastest, measured on the card."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from liveavatar.model.attention import KeyValue, attend
from liveavatar.model.flash3_attention import DTYPES as FLASH3_DTYPES
from liveavatar.model.flash3_attention import flash3_on
from liveavatar.model.fp8 import DTYPE as E4M3
from liveavatar.model.fp8_attention import has_kernel
from liveavatar.model.kernel_time import milliseconds

TORCH = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
FLASH3 = {"flash3": False, "flash3-cut": True}
"""FlashAttention-3 by name, and whether a second call takes the last tiles."""

BACKENDS = (*TORCH, *FLASH3)

_preferred: ContextVar[str | None] = ContextVar("preferred attention backend", default=None)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention: query tokens, keys, heads and their width."""

    num_queries: int
    num_keys: int
    num_heads: int
    head_dim: int


@contextmanager
def preferring(name: str | None) -> Iterator[None]:
    """Use the backend `name` inside, others where it cannot; None leaves the choice to torch.

    FlashAttention-3 is used by `attend_window` alone, which leaves torch's order as it stands above
    to everything else.
    """
    if name is None:
        yield
        return
    others = [backend for other, backend in TORCH.items() if other != name]
    first = [TORCH[name]] if name in TORCH else []
    before = _preferred.set(name)
    try:
        with sdpa_kernel([*first, *others], set_priority=True):
            yield
    finally:
        _preferred.reset(before)


def attend_window(query_LNH: Tensor, window: KeyValue) -> Tensor:
    """As `attend`, of a block to its window, by the backend that is preferred."""
    name = _preferred.get()
    # FlashAttention-3 comes without gradients.
    if name in FLASH3 and query_LNH.dtype in FLASH3_DTYPES and not query_LNH.requires_grad:
        flash3 = flash3_on(query_LNH.device)
        if flash3 is not None:
            return flash3.attend(query_LNH, window.key_KNH, window.value_KNH, cut=FLASH3[name])
    return attend(query_LNH, window)


def fastest_backend(device: torch.device, dtype: torch.dtype, shape: AttentionShape) -> str | None:
    """Name of the backend that attends fastest at this shape; None on the CPU."""
    if device.type != "cuda":
        return None
    timed = measured_ms(device, dtype, shape)
    return min(timed, key=lambda name: timed[name]) if timed else "math"


@functools.cache
def measured_ms(
    device: torch.device, dtype: torch.dtype, shape: AttentionShape
) -> Mapping[str, float]:
    """Milliseconds of one attention with each backend that a GPU has for it; none on the CPU.

    Where no kernel takes e4m3 it is attended to in bfloat16, and that is measured.
    """
    timed: dict[str, float] = {}
    if names := candidates(device, dtype, shape):
        width = (shape.num_heads, shape.head_dim)
        query = torch.randn(shape.num_queries, *width, device=device).to(dtype)
        key = torch.randn(shape.num_keys, *width, device=device).to(dtype)
        timed = time_each(names, partial(attention_ms, query, KeyValue(key, key)))
    if not timed and dtype == E4M3:
        return measured_ms(device, torch.bfloat16, shape)
    return MappingProxyType(timed)


def time_each(names: Iterable[str], milliseconds_of: Callable[[str], float]) -> dict[str, float]:
    """Time backends by name; one that raises RuntimeError is left out."""
    timed = {}
    for name in names:
        try:
            timed[name] = milliseconds_of(name)
        except RuntimeError as error:
            # No such kernel for this card, dtype or width: common, but for what was installed.
            level = logging.WARNING if name in FLASH3 else logging.DEBUG
            logger.log(level, "attention by %s is left out: %s", name, str(error).split("\n")[0])
    return timed


def attention_ms(query_LNH: Tensor, kv: KeyValue, name: str) -> float:
    """Milliseconds of one attention with the backend `name` alone.

    Raises:
        RuntimeError: that backend cannot do it.
    """
    alone = name in TORCH and query_LNH.dtype != E4M3
    with torch.no_grad(), sdpa_kernel(TORCH[name]) if alone else preferring(name):
        return milliseconds(partial(attend_window, query_LNH, kv))


def candidates(device: torch.device, dtype: torch.dtype, shape: AttentionShape) -> list[str]:
    """Names of the backends worth trying; none on the CPU."""
    if device.type != "cuda":
        return []
    names = ["cudnn", "flash", "efficient"]
    if dtype == E4M3:
        sizes = (shape.num_queries, shape.num_heads, shape.head_dim, shape.num_keys)
        names = ["cudnn"] if has_kernel(device, *sizes) else []
    flash3 = flash3_on(device) if dtype in FLASH3_DTYPES else None
    if flash3 is not None:
        names.append("flash3")
        if len(flash3.calls(shape.num_queries, shape.num_heads, cut=True)) > 1:
            names.append("flash3-cut")
    return names
