"""Attention by FlashAttention-3, in bfloat16 or e4m3, on GPUs of the Hopper kind.

The kernel comes with the optional package fa3-fwd. It reads keys and values where a cache holds
them, token by token with all heads of one together, and writes the result as the next matrix
product wants it: nothing is transposed or copied. Torch records it in a CUDA graph like its own.

A multiprocessor takes a tile of 128 queries of one head against all keys, and all of them are done
after a whole number of such rounds. Where the last round would be nearly empty, the last tiles go
into a second call, which also shares out the keys: every part attended to by itself, and the parts
added up. That is the same sum in another order.

In e4m3 the softmax weights are multiplied by 256 and rounded as cuDNN's kernel does it. The result
comes in bfloat16 and is rounded once more.

Shapes: L query tokens, K keys, N heads, H head width.

Source: Dao-AILab/flash-attention hopper/, by way of fa3-fwd 0.0.3.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from liveavatar.model.fp8 import ATTENDED_SCALE, DTYPE
from liveavatar.model.fp8_attention import rounded_to
from liveavatar.model.fusing import fused

DTYPES = (torch.bfloat16, DTYPE)
"""What the package's kernels take."""

_PACKAGE = "fa3_fwd"
_CAPABILITY = (9, 0)  # its code is for this one; on a later GPU it would end the process
_TILE = 128  # queries, for heads of 128
_PARTS = (2, 3, 4)  # of the keys, in a second call
_CALL_ROUNDS = 0.1  # what a second call and adding up cost, in rounds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """Some of the queries, against so many parts of the keys."""

    queries: slice
    parts: int


def cut_queries(num_queries: int, num_heads: int, num_processors: int) -> tuple[Call, ...]:
    """Share queries out over one or two calls so that the rounds of tiles are fewest.

    Args:
        num_queries: L.
        num_heads: N.
        num_processors: multiprocessors of the GPU, which take a tile each at a time.
    """

    def rounds(tiles: int, parts: int = 1) -> float:
        return -(-tiles * num_heads * parts // num_processors) / parts

    tiles = -(-num_queries // _TILE)
    best = rounds(tiles)
    calls: tuple[Call, ...] = (Call(slice(0, num_queries), 1),)
    for front, parts in product(range(tiles - 1, 0, -1), _PARTS):
        cost = rounds(front) + rounds(tiles - front, parts) + _CALL_ROUNDS
        if cost < best:
            end = front * _TILE
            best = cost
            calls = (Call(slice(0, end), 1), Call(slice(end, num_queries), parts))
    return calls


@dataclass(frozen=True)
class Flash3:
    """The kernel on one GPU.

    Attributes:
        forward: the package's operator.
        num_processors: multiprocessors of the GPU.
    """

    forward: Callable[..., Any]
    num_processors: int

    def calls(self, num_queries: int, num_heads: int, *, cut: bool) -> tuple[Call, ...]:
        """How queries are shared out: over one call, or with `cut` as `cut_queries` says."""
        if cut:
            return cut_queries(num_queries, num_heads, self.num_processors)
        return (Call(slice(0, num_queries), 1),)

    def attend(self, query_LNH: Tensor, key_KNH: Tensor, value_KNH: Tensor, *, cut: bool) -> Tensor:
        """Full softmax attention, scale 1/sqrt(H), no mask.

        Args:
            query_LNH: (L, N, H), one of `DTYPES`.
            key_KNH: (K, N, H) of the same dtype; its last axis in one piece, others anyhow.
            value_KNH: likewise.
            cut: whether a second call may take the last tiles.

        Returns:
            (L, N*H) in bfloat16, or, from e4m3, ATTENDED_SCALE times the result in e4m3.

        Raises:
            RuntimeError: the kernel does not take these tensors.
        """
        num_queries, num_heads, width = query_LNH.shape
        out_LNH = torch.empty(query_LNH.shape, dtype=torch.bfloat16, device=query_LNH.device)
        e4m3 = query_LNH.dtype == DTYPE
        descale = _value_scale(query_LNH.device, num_heads) if e4m3 else None
        for call in self.calls(num_queries, num_heads, cut=cut):
            self.forward(
                query_LNH[None, call.queries],
                key_KNH[None],
                value_KNH[None],
                out=out_LNH[None, call.queries],
                v_descale=descale,
                softmax_scale=width**-0.5,
                num_splits=call.parts,
            )
        out_LD = out_LNH.flatten(1)
        return _rounded(out_LD) if e4m3 else out_LD


@functools.cache
def flash3_on(device: torch.device) -> Flash3 | None:
    """The kernel on `device`; None, with a line in the log if it is installed, where it is not."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != _CAPABILITY:
        return None
    if importlib.util.find_spec(_PACKAGE) is None:
        return None
    try:
        importlib.import_module(f"{_PACKAGE}._C")  # registers the operator
        forward = torch.ops.fa3_fwd.fwd
    except (ImportError, OSError, AttributeError) as error:
        logger.warning("FlashAttention-3 is installed but left out: %s", error)
        return None
    return Flash3(forward, torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _value_scale(device: torch.device, num_heads: int) -> Tensor:
    return torch.full((1, num_heads), ATTENDED_SCALE, device=device)


@fused
def _rounded(out_LD: Tensor) -> Tensor:
    return rounded_to(out_LD, DTYPE)
