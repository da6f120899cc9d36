"""Keys and values in 8 bits, brought back for one layer at a time.

Rings and conditions are held as int8 with one scale per token and head. Before a layer's forward
its window is brought back into a workspace `[condition | ring]` that all layers of a job share; the
condition is held once per version, not once per step. The block at hand attends to its own keys
and values as they were computed; only later blocks see the rounded ones.

int8 with a scale per token and head is off by 0.6 % of a normal vector, e4m3 by 2.6 % whatever its
scale: three bits behind the point are the limit there.

Shapes: S denoise steps, R ring tokens, K buffer tokens, C condition tokens, T tokens of a block, N
heads, H head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from liveavatar.model.attention import KeyValue
from liveavatar.model.fusing import fused
from liveavatar.model.kv_cache import CacheShape, Versions
from liveavatar.model.rope import Rotation, rotate, rotate_fused

LARGEST = 127
SCALE_DTYPE = torch.bfloat16
_SMALLEST_SCALE = 1e-30


@dataclass(frozen=True)
class Int8:
    """Vectors of H values, (..., H) int8, and a factor for each, (..., 1) bfloat16."""

    values: Tensor
    scale: Tensor

    def __getitem__(self, where: int | slice) -> "Int8":
        """Views of some of the first axis."""
        return Int8(self.values[where], self.scale[where])

    def store(self, vectors: Tensor) -> None:
        """Round vectors (..., H) of the same shape into these tensors.

        Even the largest value of a vector is off by half a step at most: the scale's own rounding,
        2^-9, moves it by a quarter of one.
        """
        _round_into(vectors, self.values, self.scale)

    def restore(self, out: Tensor) -> None:
        """Write the vectors back into `out`, float of any kind and the same shape."""
        _restore_into(out, self.values, self.scale)


@dataclass(frozen=True)
class Int8KeyValue:
    """Keys and values of K tokens, each (K, N, H)."""

    key: Int8
    value: Int8

    def __getitem__(self, where: int | slice) -> "Int8KeyValue":
        """Views of some of the first axis."""
        return Int8KeyValue(self.key[where], self.value[where])

    def store(self, kv: KeyValue) -> None:
        """Round keys and values into these tensors."""
        self.key.store(kv.key_KNH)
        self.value.store(kv.value_KNH)

    def restore(self, out: KeyValue) -> None:
        """Write keys and values back into `out`."""
        self.key.restore(out.key_KNH)
        self.value.restore(out.value_KNH)


@dataclass(frozen=True)
class QuantisedView:
    """Where the block at hand goes, in 8 bits and in the workspace, and all it attends to."""

    kept: Int8KeyValue
    own: KeyValue
    window: KeyValue

    def write(self, own: KeyValue) -> KeyValue:
        """See `CacheView`."""
        self.own.key_KNH.copy_(own.key_KNH)
        self.own.value_KNH.copy_(own.value_KNH)
        self.kept.store(own)
        return self.window


class QuantisedCache:
    """Keys and values of one layer of one job in 8 bits.

    Args:
        shape: sizes.
        workspace: (K, N, H) at least; written by every `open`, shared with other layers.
    """

    def __init__(self, shape: CacheShape, workspace: KeyValue) -> None:
        self.shape = shape
        self.workspace = workspace
        ring_tokens = shape.tokens - shape.condition_tokens
        self.ring = self._zeros(shape.num_steps, ring_tokens)
        self._versions: Versions[Int8KeyValue] = Versions(shape.num_steps)

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """See `LayerCache`."""
        fixed = self.shape.reference_tokens
        stored = self._zeros(self.shape.condition_tokens)
        stored.value.store(condition.value_KNH)
        stored.key[:fixed].store(condition.key_KNH[:fixed])
        stored.key[fixed:].store(rotate(condition.key_KNH[fixed:], motion))
        self._versions.stored[version] = stored

    def open(self, step: int, block_index: int, version: int, reference: Rotation) -> QuantisedView:
        """Bring condition and earlier blocks into the workspace, and turn the reference keys."""
        shape = self.shape
        self._versions.use(step, version).restore(self._buffer(slice(0, shape.condition_tokens)))
        moving = self.workspace.key_KNH[: shape.reference_tokens]
        moving.copy_(rotate_fused(moving, reference))
        ring, start = self.ring[step], shape.condition_tokens
        for part in self._earlier(block_index):
            ring[part].restore(self._buffer(slice(start + part.start, start + part.stop)))
        slot = shape.slot(block_index)
        return QuantisedView(
            kept=ring[slot.start - start : slot.stop - start],
            own=self._buffer(slot),
            window=self._buffer(slice(0, shape.valid_tokens(block_index))),
        )

    def ring_tensors(self, step: int) -> tuple[Tensor, ...]:
        """See `LayerCache`."""
        ring = self.ring[step]
        return ring.key.values, ring.key.scale, ring.value.values, ring.value.scale

    def _earlier(self, block_index: int) -> Iterator[slice]:
        """Ring tokens of the earlier blocks in the window: those around the block's own slot."""
        start = self.shape.condition_tokens
        slot, valid = self.shape.slot(block_index), self.shape.valid_tokens(block_index)
        for part in (slice(0, slot.start - start), slice(slot.stop - start, valid - start)):
            if part.start < part.stop:
                yield part

    def _buffer(self, where: slice) -> KeyValue:
        return KeyValue(self.workspace.key_KNH[where], self.workspace.value_KNH[where])

    def _zeros(self, *leading: int) -> Int8KeyValue:
        like = self.workspace.key_KNH
        size = (*leading, *like.shape[1:])
        key, value = (
            Int8(
                torch.zeros(size, dtype=torch.int8, device=like.device),
                torch.zeros((*size[:-1], 1), dtype=SCALE_DTYPE, device=like.device),
            )
            for _ in range(2)
        )
        return Int8KeyValue(key, value)


@fused
def _round_into(vectors: Tensor, values: Tensor, scale: Tensor) -> None:
    low, high = torch.aminmax(vectors, dim=-1, keepdim=True)
    largest = torch.maximum(high, -low).float()
    scale.copy_((largest / LARGEST).clamp(min=_SMALLEST_SCALE))
    # A bfloat16 scale keeps float32's range, so the division is safe.
    values.copy_((vectors / scale.float()).round_().clamp_(-LARGEST, LARGEST))


@fused
def _restore_into(out: Tensor, values: Tensor, scale: Tensor) -> None:
    torch.mul(values, scale.float(), out=out)
