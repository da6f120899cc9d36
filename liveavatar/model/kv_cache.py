"""Keys and values of one job: what a layer's cache is, and the exact one.

Every denoise step keeps its own ring, because a block attends to earlier blocks at the same noise
level. The exact cache has one buffer `[condition | ring]` per layer and step, so that one attention
call reads both without a copy; the condition is the same for all steps up to the reference keys,
which move with every forward. `quantised_cache.py` has the one of half the size, `ring_shelf.py`
those of either kind whose rings wait in host memory.

What a forward does on the device depends on its `Phase` alone; where its block is written is a
tensor of rows. So a forward can be recorded once and replayed for other blocks: every tensor that
it touches stays where it is for as long as the cache lives.

Shapes: S denoise steps, K buffer tokens, C condition tokens, T tokens of a block, N heads, H head
width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from liveavatar.model.attention import KeyValue
from liveavatar.model.fp8_attention import rounded_to
from liveavatar.model.rope import Rotation, rotate, rotate_into

CacheKind = Literal["exact", "8-bit", "e4m3"]
"""As computed; int8 with scales, brought back for each forward; e4m3, and attended to as that."""


@dataclass(frozen=True)
class Phase:
    """By what the kernels of one forward differ from those of another.

    Attributes:
        step: denoise step, 0 <= step < S.
        version: condition version, 0 or, from the refresh on, 1.
        window_blocks: blocks in the window, the one at hand included.
    """

    step: int
    version: int
    window_blocks: int


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

    def put_rows(self, block_index: int, rows_T: Tensor) -> None:
        """Fill `rows_T`, int64 (T,), with the tokens of `slot`; the host waits for no device."""
        slot = self.slot(block_index)
        torch.arange(slot.start, slot.stop, out=rows_T)

    def phase(self, step: int, block_index: int, version: int) -> Phase:
        """Phase of the forward of `block_index` at `step` with condition `version`."""
        return Phase(step, version, min(block_index + 1, self.window_blocks))

    def valid_tokens(self, phase: Phase) -> int:
        """Tokens from the front that a block may attend to in `phase`, itself included."""
        return self.condition_tokens + phase.window_blocks * self.block_tokens


class CacheView(Protocol):
    """What one forward of one layer touches; good until the next `open` of any layer's cache."""

    def write(self, own: KeyValue) -> None:
        """Keep the rotated keys and values (T, N, H) of the block at hand."""
        ...

    @property
    def window(self) -> KeyValue:
        """All that the block attends to, (K, N, H): condition, window, and itself once written."""
        ...


class LayerCache(Protocol):
    """Keys and values of one layer of one job, in whatever form they are held."""

    shape: CacheShape

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """Keep a copy of the prefilled condition as `version`.

        Args:
            version: 0, then 1 after the refresh.
            condition: un-rotated keys and values (C, N, H), reference tokens first.
            motion: rotation of the tokens behind the reference; they never move, so it is applied
                here, once.
        """
        ...

    def use_condition(self, step: int, version: int) -> None:
        """Have `version` in front of the ring of `step`; before `open`."""
        ...

    def open(self, phase: Phase, rows_T: Tensor, reference: Rotation) -> CacheView:
        """Prepare a forward.

        Args:
            phase: of the forward.
            rows_T: where in the buffer its block is written, int64 on the cache's device.
            reference: rotation of the reference tokens in this forward.
        """
        ...

    def ring_tensors(self, step: int) -> tuple[Tensor, ...]:
        """The tensors that hold the blocks of a step's window, as views: to keep and to bring back.

        Equal tensors make the next forward equal; conditions are not among them.
        """
        ...

    def forget(self) -> None:
        """Be as good as new for another job of the same sizes, in the same memory."""
        ...


Condition = TypeVar("Condition")


class Versions(Generic[Condition]):
    """The stored versions of a condition, and which one each step uses.

    The refresh after the first clip makes version 1 while blocks of version 0 may still be in
    flight at later steps. What holds a version is made when it first comes, and kept.

    Args:
        num_steps: denoise steps S.
        empty: makes what holds a version.
    """

    def __init__(self, num_steps: int, empty: Callable[[], Condition]) -> None:
        self.stored: dict[int, Condition] = {}
        self._empty = empty
        self._of_step: list[int | None] = [None] * num_steps

    def place(self, version: int) -> Condition:
        """Where `version` is to be stored."""
        if version not in self.stored:
            self.stored[version] = self._empty()
        return self.stored[version]

    def use(self, step: int, version: int) -> bool:
        """Let `step` go on with `version`; tells whether it had another one before."""
        changed = self._of_step[step] != version
        self._of_step[step] = version
        return changed

    def forget(self) -> None:
        """No step has a version."""
        self._of_step = [None] * len(self._of_step)


@dataclass(frozen=True)
class ExactView:
    """Views of a buffer: all of it, and what the block at hand attends to.

    Attributes:
        buffer: (K, N, H).
        rows_T: where in it the block is written.
        window: its valid front.
    """

    buffer: KeyValue
    rows_T: Tensor
    window: KeyValue

    def write(self, own: KeyValue) -> None:
        """See `CacheView`."""
        dtype = self.buffer.key_KNH.dtype
        self.buffer.key_KNH[self.rows_T] = rounded_to(own.key_KNH, dtype)
        self.buffer.value_KNH[self.rows_T] = rounded_to(own.value_KNH, dtype)


class ExactCache:
    """Keys and values of one layer of one job as they are attended to, and mostly were computed.

    With a `kept` dtype of e4m3 they are rounded when they are written, and attention works on that;
    conditions, whose reference is turned again for each forward, stay in `dtype`.

    Args:
        shape: sizes.
        num_heads: heads held here (a shard of them under tensor or sequence parallelism).
        head_dim: head width H.
        dtype: of keys and values as they come.
        device: of the buffers.
        kept: dtype of the buffers, `dtype` by default.
    """

    def __init__(
        self,
        shape: CacheShape,
        num_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        kept: torch.dtype | None = None,
    ) -> None:
        self.shape = shape
        size = (shape.num_steps, shape.tokens, num_heads, head_dim)
        self.key_SKNH = torch.zeros(size, dtype=kept or dtype, device=device)
        self.value_SKNH = torch.zeros(size, dtype=kept or dtype, device=device)
        # A name of this object in it would keep the memory from being freed when the job ends.
        self._versions = Versions(
            shape.num_steps,
            partial(_empty_like, self.key_SKNH[0, : shape.condition_tokens], dtype),
        )

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """See `LayerCache`."""
        fixed = self.shape.reference_tokens
        stored = self._versions.place(version)
        stored.key_KNH[:fixed] = condition.key_KNH[:fixed]
        stored.key_KNH[fixed:] = rotate(condition.key_KNH[fixed:], motion)
        stored.value_KNH.copy_(condition.value_KNH)

    def use_condition(self, step: int, version: int) -> None:
        """See `LayerCache`."""
        if self._versions.use(step, version):
            condition, count = self._versions.stored[version], self.shape.condition_tokens
            dtype = self.key_SKNH.dtype
            self.key_SKNH[step, :count] = rounded_to(condition.key_KNH, dtype)
            self.value_SKNH[step, :count] = rounded_to(condition.value_KNH, dtype)

    def open(self, phase: Phase, rows_T: Tensor, reference: Rotation) -> ExactView:
        """Turn the reference keys; see `LayerCache`."""
        buffer = KeyValue(self.key_SKNH[phase.step].data, self.value_SKNH[phase.step].data)
        condition, fixed = self._versions.stored[phase.version], self.shape.reference_tokens
        rotate_into(buffer.key_KNH[:fixed], condition.key_KNH[:fixed], reference)
        valid = self.shape.valid_tokens(phase)
        window = KeyValue(buffer.key_KNH[:valid], buffer.value_KNH[:valid])
        return ExactView(buffer, rows_T, window)

    def ring_tensors(self, step: int) -> tuple[Tensor, ...]:
        """See `LayerCache`."""
        first = self.shape.condition_tokens
        return self.key_SKNH[step, first:], self.value_SKNH[step, first:]

    def forget(self) -> None:
        """See `LayerCache`."""
        self._versions.forget()


def _empty_like(tokens_CNH: Tensor, dtype: torch.dtype) -> KeyValue:
    key_CNH, value_CNH = (torch.empty_like(tokens_CNH, dtype=dtype) for _ in range(2))
    return KeyValue(key_CNH, value_CNH)
