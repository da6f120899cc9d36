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

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from liveavatar.model.attention import KeyValue
from liveavatar.model.fusing import fused, fused_by_rows
from liveavatar.model.kv_cache import CacheShape, Phase, Versions
from liveavatar.model.rope import Rotation, rotate

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
        # Without their history views are tensors like others to a compiler.
        return Int8(self.values[where].data, self.scale[where].data)

    def store(self, vectors: Tensor) -> None:
        """Round vectors (..., H) of the same shape into these tensors."""
        rounded = round_vectors(vectors)
        self.values.copy_(rounded.values)
        self.scale.copy_(rounded.scale)

    def store_rows(self, rows_T: Tensor, vectors: Tensor) -> None:
        """Round vectors (T, ..., H) into some of the first axis."""
        rounded = round_vectors(vectors)
        self.values[rows_T] = rounded.values
        self.scale[rows_T] = rounded.scale

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
    """Where the block at hand goes, in 8 bits and in the workspace, and all it attends to.

    Attributes:
        ring: of the step at hand, (R, N, H) in 8 bits.
        workspace: (K, N, H).
        rows_T: where in the workspace the block is written.
        window: its valid front.
    """

    ring: Int8KeyValue
    workspace: KeyValue
    rows_T: Tensor
    window: KeyValue

    def write(self, own: KeyValue) -> None:
        """See `CacheView`."""
        self.workspace.key_KNH[self.rows_T] = own.key_KNH
        self.workspace.value_KNH[self.rows_T] = own.value_KNH
        in_front = self.workspace.key_KNH.shape[0] - self.ring.key.values.shape[0]
        self.ring.key.store_rows(self.rows_T - in_front, own.key_KNH)
        self.ring.value.store_rows(self.rows_T - in_front, own.value_KNH)


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
        vector_NH = workspace.key_KNH[0]
        self.ring = _zeros(vector_NH, shape.num_steps, ring_tokens)
        # A name of this object in it would keep the memory from being freed when the job ends.
        self._versions = Versions(
            shape.num_steps, partial(_zeros, vector_NH, shape.condition_tokens)
        )

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """See `LayerCache`."""
        fixed = self.shape.reference_tokens
        stored = self._versions.place(version)
        stored.value.store(condition.value_KNH)
        stored.key[:fixed].store(condition.key_KNH[:fixed])
        stored.key[fixed:].store(rotate(condition.key_KNH[fixed:], motion))

    def use_condition(self, step: int, version: int) -> None:
        """See `LayerCache`; `open` brings it back every time."""
        self._versions.use(step, version)

    def ring_tensors(self, step: int) -> tuple[Tensor, ...]:
        """See `LayerCache`."""
        ring = self.ring[step]
        return ring.key.values, ring.key.scale, ring.value.values, ring.value.scale

    def open(self, phase: Phase, rows_T: Tensor, reference: Rotation) -> QuantisedView:
        """See `bring_back`."""
        held = self._versions.stored[phase.version], self.ring[phase.step]
        valid = self.shape.valid_tokens(phase)
        return bring_back(*held, self.workspace, valid, rows_T, reference)

    def forget(self) -> None:
        """See `LayerCache`."""
        self._versions.forget()


def bring_back(
    condition: Int8KeyValue,
    ring: Int8KeyValue,
    workspace: KeyValue,
    valid: int,
    rows_T: Tensor,
    reference: Rotation,
) -> QuantisedView:
    """Bring condition and window into the workspace, and turn the reference keys.

    What is in the block's own slot comes too; the block is written over it.

    Args:
        condition: (C, N, H), reference tokens first.
        ring: (R, N, H).
        workspace: (K, N, H) at least.
        valid: tokens of the window with the condition in front.
        rows_T: where in the workspace the block is written.
        reference: rotation of the reference tokens.
    """
    fixed, front = len(reference.cos_LR), len(condition.key.values)
    in_front = _part(workspace, slice(0, front))
    turned = condition.key[:fixed]
    _restore_turned(in_front.key_KNH[:fixed], turned.values, turned.scale, reference)
    condition.key[fixed:].restore(in_front.key_KNH[fixed:])
    condition.value.restore(in_front.value_KNH)
    ring[: valid - front].restore(_part(workspace, slice(front, valid)))
    whole = _part(workspace, slice(0, front + len(ring.key.values)))
    return QuantisedView(ring, whole, rows_T, _part(workspace, slice(0, valid)))


def _part(workspace: KeyValue, where: slice) -> KeyValue:
    return KeyValue(workspace.key_KNH[where].data, workspace.value_KNH[where].data)


def _zeros(vector_NH: Tensor, *leading: int) -> Int8KeyValue:
    """Zeros for tokens like `vector_NH`, with leading axes."""
    heads, _ = vector_NH.shape
    key, value = (
        Int8(
            torch.zeros((*leading, *vector_NH.shape), dtype=torch.int8, device=vector_NH.device),
            torch.zeros((*leading, heads, 1), dtype=SCALE_DTYPE, device=vector_NH.device),
        )
        for _ in range(2)
    )
    return Int8KeyValue(key, value)


def round_vectors(vectors: Tensor) -> Int8:
    """Round vectors (..., H) to 8 bits.

    Even the largest value of a vector is off by half a step at most: the scale's own rounding,
    2^-9, moves it by a quarter of one.
    """
    largest = vectors.abs().amax(dim=-1, keepdim=True).float()
    scale = (largest / LARGEST).clamp(min=_SMALLEST_SCALE).to(SCALE_DTYPE)
    # A bfloat16 scale keeps float32's range, so the division is safe.
    values = (vectors / scale.float()).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    return Int8(values, scale)


@fused_by_rows
def _restore_into(out: Tensor, values: Tensor, scale: Tensor) -> None:
    torch.mul(values, scale.float(), out=out)


@fused
def _restore_turned(out: Tensor, values: Tensor, scale: Tensor, rotation: Rotation) -> None:
    restored = (values * scale.float()).to(out.dtype)
    out.copy_(rotate(restored, rotation))
