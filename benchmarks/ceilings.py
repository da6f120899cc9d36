"""What a device can do at the shapes of the transformer: products, attention, copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from liveavatar.config import TransformerConfig
from liveavatar.model.attention import KeyValue
from liveavatar.model.attention_backend import (
    AttentionShape,
    attend_window,
    fastest_backend,
    preferring,
)
from liveavatar.model.fp8 import FIRST_CAPABILITY, Fp8Linear
from liveavatar.plan.transformer_memory import Tokens

_COPY_BYTES = 2**29
_REPEATS = 5


@dataclass(frozen=True)
class Ceilings:
    """Rates per second.

    Attributes:
        product_flops: a matrix product of a block with a feed-forward matrix, bfloat16 on a GPU.
        fp8_flops: the same in e4m3 with row scales, its activations already quantised; None without
            matrix units for it.
        attention_flops: a block against a full window, all heads.
        copy_bytes: of a large copy, read and written.
    """

    product_flops: float
    fp8_flops: float | None
    attention_flops: float
    copy_bytes: float

    def described(self) -> dict[str, float | None]:
        """In TFLOP/s and GB/s."""
        tera = {k: None if v is None else round(v / 1e12, 3) for k, v in asdict(self).items()}
        tera.pop("copy_bytes")
        return {**tera, "copy_gb_per_s": round(self.copy_bytes / 1e9, 1)}


@torch.no_grad()
def measure_ceilings(config: TransformerConfig, tokens: Tokens, device: torch.device) -> Ceilings:
    """Measure all rates; each is the best of a few runs on random data."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dim, wide = config.dim, config.ffn_dim
    with torch.device(device):
        hidden = torch.randn(tokens.block, dim, dtype=dtype)
        linear = torch.nn.Linear(dim, wide, bias=False, dtype=dtype)
        query = torch.randn(tokens.block, config.num_heads, config.head_dim, dtype=dtype)
        keys = tokens.condition + tokens.ring
        window = torch.randn(keys, config.num_heads, config.head_dim, dtype=dtype)
        source = torch.randn(_COPY_BYTES // 4)
    flops = 2 * tokens.block * dim * wide
    shape = AttentionShape(tokens.block, keys, config.num_heads, config.head_dim)
    with preferring(fastest_backend(device, dtype, shape)):
        attention_s = _seconds(device, lambda: attend_window(query, KeyValue(window, window)))
    target = torch.empty_like(source)
    fp8 = None
    if device.type == "cuda" and torch.cuda.get_device_capability() >= FIRST_CAPABILITY:
        layer = Fp8Linear(linear)
        rounded = layer.rule(hidden)
        fp8 = flops / _seconds(device, lambda: layer.multiply(rounded))
    return Ceilings(
        product_flops=flops / _seconds(device, lambda: linear(hidden)),
        fp8_flops=fp8,
        attention_flops=4 * tokens.block * keys * dim / attention_s,
        copy_bytes=2 * _COPY_BYTES / _seconds(device, lambda: target.copy_(source)),
    )


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    """The shortest of a few calls."""
    best = float("inf")
    for _ in range(1 + _REPEATS):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
