"""Keys and values of one job: what a layer's cache is, and the exact one.

Every denoise step keeps its own ring, because a block attends to earlier blocks at the same noise
level. The exact cache has one buffer `[condition | ring]` per layer and step, so that one attention
call reads both without a copy; the condition is the same for all steps up to the reference keys,
which move with every forward. `quantised_cache.py` has the one of half the size.

Shapes: S denoise steps, K buffer tokens, C condition tokens, T tokens of a block, N heads, H head
width.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from liveavatar.model.attention import KeyValue
from liveavatar.model.rope import Rotation, rotate, rotate_fused


@dataclass(frozen=True)
class CacheShape:
    """Sizes shared by the caches of all layers of one job.

    Attributes:
        num_steps: denoise steps S, one ring each.
        condition_tokens: C, reference and motion tokens together.
        reference_tokens: how many of them, in front, are the reference: their keys move.
        block_tokens: T, tokens of a block of latent frames.
        window_blocks: blocks a ring holds, the current one included.
    """

    num_steps: int
    condition_tokens: int
    reference_tokens: int
    block_tokens: int
    window_blocks: int

    @property
    def tokens(self) -> int:
        """Tokens of one buffer, K."""
        return self.condition_tokens + self.window_blocks * self.block_tokens

    def slot(self, block_index: int) -> slice:
        """Where in the buffer block `block_index` writes: over the block that left the window."""
        start = self.condition_tokens + block_index % self.window_blocks * self.block_tokens
        return slice(start, start + self.block_tokens)

    def valid_tokens(self, block_index: int) -> int:
        """Tokens from the front that `block_index` may attend to, itself included."""
        blocks = min(block_index + 1, self.window_blocks)
        return self.condition_tokens + blocks * self.block_tokens


class CacheView(Protocol):
    """What one forward of one layer touches; good until the next `open` of any layer's cache."""

    def write(self, own: KeyValue) -> KeyValue:
        """Keep the rotated keys and values (T, N, H) of the block at hand.

        Returns:
            All it attends to, (K, N, H): condition, earlier blocks of the window and itself.
        """
        ...


class LayerCache(Protocol):
    """Keys and values of one layer of one job, in whatever form they are held."""

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """Keep a copy of the prefilled condition as `version`.

        Args:
            version: 0, then 1 after the refresh.
            condition: un-rotated keys and values (C, N, H), reference tokens first.
            motion: rotation of the tokens behind the reference; they never move, so it is applied
                here, once.
        """
        ...

    def open(self, step: int, block_index: int, version: int, reference: Rotation) -> CacheView:
        """Prepare a forward of `block_index` at `step`.

        Args:
            step: denoise step, 0 <= step < S.
            block_index: block number since the start of the video.
            version: condition version this block uses.
            reference: rotation of the reference tokens in this forward.
        """
        ...

    def ring_tensors(self, step: int) -> tuple[Tensor, ...]:
        """The tensors that hold the blocks of a step's window, as views: to keep and to bring back.

        Equal tensors make the next forward equal; conditions are not among them.
        """
        ...


Condition = TypeVar("Condition")


class Versions(Generic[Condition]):
    """The stored versions of a condition; one is kept until every step has moved on.

    The refresh after the first clip makes version 1 while blocks of version 0 may still be in
    flight at later steps.
    """

    def __init__(self, num_steps: int) -> None:
        self.stored: dict[int, Condition] = {}
        self._of_step: list[int | None] = [None] * num_steps

    def use(self, step: int, version: int) -> Condition:
        """Return `version`, and drop what no step will use again."""
        condition = self.stored[version]
        self._of_step[step] = version
        in_use = [used for used in self._of_step if used is not None]
        if len(in_use) == len(self._of_step):
            self.stored = {v: kept for v, kept in self.stored.items() if v >= min(in_use)}
        return condition

    def is_used(self, step: int, version: int) -> bool:
        """Whether the last `use` of `step` was of `version`."""
        return self._of_step[step] == version


@dataclass(frozen=True)
class ExactView:
    """Views of a buffer: where the block at hand goes, and all it attends to."""

    own: KeyValue
    window: KeyValue

    def write(self, own: KeyValue) -> KeyValue:
        """See `CacheView`."""
        self.own.key_KNH.copy_(own.key_KNH)
        self.own.value_KNH.copy_(own.value_KNH)
        return self.window


class ExactCache:
    """Keys and values of one layer of one job as they were computed.

    Args:
        shape: sizes.
        num_heads: heads held here (a shard of them under tensor or sequence parallelism).
        head_dim: head width H.
        dtype: of keys and values.
        device: of the buffers.
    """

    def __init__(
        self,
        shape: CacheShape,
        num_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.shape = shape
        size = (shape.num_steps, shape.tokens, num_heads, head_dim)
        self.key_SKNH = torch.zeros(size, dtype=dtype, device=device)
        self.value_SKNH = torch.zeros(size, dtype=dtype, device=device)
        self._versions: Versions[KeyValue] = Versions(shape.num_steps)

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """See `LayerCache`."""
        fixed = self.shape.reference_tokens
        key_CNH = condition.key_KNH.clone()
        key_CNH[fixed:] = rotate(key_CNH[fixed:], motion)
        self._versions.stored[version] = KeyValue(key_CNH, condition.value_KNH.clone())

    def open(self, step: int, block_index: int, version: int, reference: Rotation) -> ExactView:
        """Bring the condition region to `version` and turn its reference keys."""
        key_KNH, value_KNH = self.key_SKNH[step], self.value_SKNH[step]
        there = self._versions.is_used(step, version)
        condition = self._versions.use(step, version)
        if not there:
            key_KNH[: self.shape.condition_tokens] = condition.key_KNH
            value_KNH[: self.shape.condition_tokens] = condition.value_KNH
        moving = slice(0, self.shape.reference_tokens)
        key_KNH[moving] = rotate_fused(condition.key_KNH[moving], reference)
        slot, valid = self.shape.slot(block_index), self.shape.valid_tokens(block_index)
        return ExactView(
            own=KeyValue(key_KNH[slot], value_KNH[slot]),
            window=KeyValue(key_KNH[:valid], value_KNH[:valid]),
        )

    def ring_tensors(self, step: int) -> tuple[Tensor, ...]:
        """See `LayerCache`."""
        first = self.shape.condition_tokens
        return self.key_SKNH[step, first:], self.value_SKNH[step, first:]
