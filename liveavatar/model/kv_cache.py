"""Keys and values of one job: per layer and denoise step one buffer `[condition | ring]`.

Every denoise step keeps its own ring, because a block attends to earlier blocks at the same noise
level. The condition region lies in front of each ring, so that one attention call reads both
without a copy; it is the same for all steps up to the reference keys, which move with every
forward.

Shapes: S denoise steps, K buffer tokens, C condition tokens, T tokens of a block, N heads, H head
width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from liveavatar.model.attention import KeyValue
from liveavatar.model.rope import Rotation, rotate


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


@dataclass(frozen=True)
class CacheView:
    """What one forward of one layer touches: where to write, and all it attends to."""

    own: KeyValue
    window: KeyValue


class LayerCache:
    """Keys and values of one layer of one job.

    Conditions come in versions: the refresh after the first clip makes version 1 while blocks of
    version 0 may still be in flight at later steps. A version is kept until every step has moved
    on.

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
        self._conditions: dict[int, KeyValue] = {}
        self._version_of_step: list[int | None] = [None] * shape.num_steps

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """Keep the prefilled condition as `version`.

        Args:
            version: 0, then 1 after the refresh.
            condition: un-rotated keys and values (C, N, H), reference tokens first.
            motion: rotation of the tokens behind the reference; they never move, so it is applied
                here, once.
        """
        fixed = self.shape.reference_tokens
        key_CNH = condition.key_KNH.clone()
        key_CNH[fixed:] = rotate(key_CNH[fixed:], motion)
        self._conditions[version] = KeyValue(key_CNH, condition.value_KNH.clone())

    def open(self, step: int, block_index: int, version: int, reference: Rotation) -> CacheView:
        """Prepare the buffer of `step` for a forward of `block_index` and return its views.

        Brings the condition region to `version` and turns the reference keys.

        Args:
            step: denoise step, 0 <= step < S.
            block_index: block number since the start of the video.
            version: condition version this block uses.
            reference: rotation of the reference tokens in this forward.
        """
        condition = self._conditions[version]
        key_KNH, value_KNH = self.key_SKNH[step], self.value_SKNH[step]
        if self._version_of_step[step] != version:
            key_KNH[: self.shape.condition_tokens] = condition.key_KNH
            value_KNH[: self.shape.condition_tokens] = condition.value_KNH
            self._version_of_step[step] = version
            self._drop_unused_versions()
        moving = slice(0, self.shape.reference_tokens)
        key_KNH[moving] = rotate(condition.key_KNH[moving], reference)
        slot, valid = self.shape.slot(block_index), self.shape.valid_tokens(block_index)
        return CacheView(
            own=KeyValue(key_KNH[slot], value_KNH[slot]),
            window=KeyValue(key_KNH[:valid], value_KNH[:valid]),
        )

    def _drop_unused_versions(self) -> None:
        in_use = {version for version in self._version_of_step if version is not None}
        if None in self._version_of_step:
            return
        for version in [v for v in self._conditions if v < min(in_use)]:
            del self._conditions[version]


def new_caches(
    shape: CacheShape,
    heads_per_layer: Sequence[int],
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[LayerCache]:
    """Make the zeroed caches of a range of layers for one job."""
    return [
        LayerCache(shape, heads, head_dim, dtype=dtype, device=device) for heads in heads_per_layer
    ]
