"""One job on a range of layers: its caches, its constants, and where its tokens stand.

The same object runs all layers on one device and one pipeline stage's layers on its rank. A forward
has two halves: `prepare` puts all that is particular to an item into tensors that never move, `run`
works on these. The second half can be recorded and replayed, see `parallel/recorded.py`.

Shapes: L block tokens, C condition tokens, D model width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liveavatar.config import LATENT_FRAMES_PER_BLOCK
from liveavatar.model.attention import KeyValue
from liveavatar.model.attention_backend import (
    AttentionShape,
    fastest_backend,
    measured_ms,
    preferring,
)
from liveavatar.model.audio_injection import BlockAudio, InjectedAudio, fill_audio
from liveavatar.model.fp8 import DTYPE as E4M3
from liveavatar.model.kv_cache import CacheShape, ExactCache, LayerCache, Phase
from liveavatar.model.quantised_cache import QuantisedCache
from liveavatar.model.ring_shelf import (
    RingShelf,
    ShelvedExactCache,
    ShelvedQuantisedCache,
    exact_columns,
    int8_columns,
)
from liveavatar.model.rope import (
    PREFILL_REFERENCE_FRAME,
    Rotation,
    block_positions,
    condition_positions,
    grid_positions,
    motion_positions,
    reference_frame,
    rotation_at,
)
from liveavatar.model.transformer import TimeTable, Transformer


@dataclass(frozen=True)
class TokenGrid:
    """Token rows and columns of one latent frame: pixels / 16."""

    rows: int
    columns: int

    @classmethod
    def of_latent(cls, latent: Tensor) -> "TokenGrid":
        """Grid of a latent whose last two axes are rows and columns."""
        return cls(latent.shape[-2] // 2, latent.shape[-1] // 2)

    @property
    def frame_tokens(self) -> int:
        """Tokens of one latent frame."""
        return self.rows * self.columns

    @property
    def block_tokens(self) -> int:
        """Tokens of a block."""
        return LATENT_FRAMES_PER_BLOCK * self.frame_tokens

    def frame_tokens_in(self, tokens: range) -> tuple[int, ...]:
        """How many of some tokens of a block are of each of its latent frames."""
        starts = range(0, self.block_tokens, self.frame_tokens)
        return tuple(
            len(range(max(start, tokens.start), min(start + self.frame_tokens, tokens.stop)))
            for start in starts
        )

    def cache_shape(self, num_steps: int, window_blocks: int, buckets: Sequence[int]) -> CacheShape:
        """Token counts of a job's caches at this size."""
        motion_tokens = len(motion_positions(self.rows, self.columns, buckets))
        return CacheShape(
            num_steps=num_steps,
            condition_tokens=self.frame_tokens + motion_tokens,
            reference_tokens=self.frame_tokens,
            block_tokens=self.block_tokens,
            window_blocks=window_blocks,
        )


@dataclass(frozen=True)
class Item:
    """One forward: block `block_index` at denoise step `step`.

    Attributes:
        block_index: since the start of the video.
        step: denoise step.
        version: condition version, 0 or, from the refresh on, 1.
        relative_distance: of the reference, latent frames, 4..30.
    """

    block_index: int
    step: int
    version: int
    relative_distance: int


@dataclass
class _Inputs:
    """What a forward reads beside weights, constants and caches; filled for each item, in place.

    Attributes:
        block: positions of the block's tokens.
        reference: of the reference's.
        rows_T: where in the caches the block is written.
        audio: the block's speech; empty before the first block is heard.
        block_index: the block that all but `reference` is of; None at the beginning of a job.
    """

    block: Rotation
    reference: Rotation
    rows_T: Tensor
    audio: tuple[InjectedAudio | None, ...] = ()
    block_index: int | None = None


class Denoiser:
    """State of one job on one range of layers; may go on with another job of the same sizes.

    Args:
        transformer: the range of layers.
        time: time table of the job's schedule.
        text_LD: embedded prompt, (text_len, D).
        grid: tokens of a latent frame.
        window_blocks: blocks in a KV ring.
        tokens: tokens of a block whose residual stream is at hand, where a group shares them out;
            None for all.
    """

    def __init__(
        self,
        transformer: Transformer,
        time: TimeTable,
        text_LD: Tensor,
        grid: TokenGrid,
        window_blocks: int,
        tokens: range | None = None,
    ) -> None:
        self.transformer = transformer
        self.grid = grid
        self.device = text_LD.device
        self.constants = transformer.constants(time, text_LD)
        self.num_steps = time.head_SD.shape[0] - 1
        self.cache_shape = shape = grid.cache_shape(
            self.num_steps, window_blocks, transformer.config.zip_frame_buckets
        )
        self._attention = _attention_sizes(transformer, shape, text_LD)
        self.backend = fastest_backend(*self._attention)
        self._ring_shelf = _new_ring_shelf(transformer, shape, text_LD)
        self.caches = _new_caches(transformer, shape, text_LD, self._ring_shelf)
        self._frame_tokens = None if tokens is None else grid.frame_tokens_in(tokens)
        self._inputs = _Inputs(
            self._empty_rotation(shape.block_tokens),
            self._empty_rotation(shape.reference_tokens),
            torch.empty(shape.block_tokens, dtype=torch.int64, device=self.device),
        )
        self._block_rotations: dict[int, Rotation] = {}
        self._audio: dict[int, tuple[InjectedAudio | None, ...]] = {}

    def attention_ms(self) -> Mapping[str, float]:
        """What `backend` was chosen by: each one's time for a full window; none on the CPU."""
        return measured_ms(*self._attention)

    def prefill(
        self,
        hidden_CD: Tensor,
        version: int,
        watch: Callable[[int, KeyValue], None] | None = None,
    ) -> Tensor:
        """Run condition tokens through the range and keep their keys and values as `version`.

        Args:
            hidden_CD: embedded condition tokens, or the previous stage's output.
            version: 0 at the start, 1 for the refresh.
            watch: is shown each layer's place and un-rotated keys and values.

        Returns:
            The residual stream for the next stage.
        """
        rows, columns = self.grid.rows, self.grid.columns
        buckets = self.transformer.config.zip_frame_buckets
        positions_C3 = condition_positions(PREFILL_REFERENCE_FRAME, rows, columns, buckets)
        motion = self._rotation(positions_C3[self.grid.frame_tokens :])

        def store(place: int, condition: KeyValue) -> None:
            self.caches[place].store_condition(version, condition, motion)
            if watch is not None:
                watch(place, condition)

        everything = self._rotation(positions_C3)
        return self.transformer.prefill(hidden_CD, self.constants, everything, store)

    def hear(self, block_index: int, audio: BlockAudio) -> None:
        """Take the speech of a block, before its first step."""
        heard = self.transformer.prepare_audio(audio, self._frame_tokens)
        if not self._inputs.audio:
            self._inputs.audio = tuple(one and one.copy() for one in heard)
        self._audio[block_index] = heard

    def forward(self, hidden_LD: Tensor, item: Item) -> Tensor:
        """Run the range on the residual stream (L, D) of `item`."""
        return self.run(hidden_LD, self.prepare(item))

    def prepare(self, item: Item) -> Phase:
        """Put what is particular to `item` into the inputs of `run`; returns what is left of it."""
        shape, inputs = self.cache_shape, self._inputs
        first_frame = item.block_index * LATENT_FRAMES_PER_BLOCK
        frame = reference_frame(first_frame, item.relative_distance)
        rows, columns = range(self.grid.rows), range(self.grid.columns)
        inputs.reference.fill(self._rotation(grid_positions([frame], rows, columns)))
        if inputs.block_index != item.block_index:  # else all steps of a block came in a row
            inputs.block_index = item.block_index
            inputs.block.fill(self._rotation_of_block(item.block_index))
            shape.put_rows(item.block_index, inputs.rows_T)
            fill_audio(inputs.audio, self._audio[item.block_index])
        for cache in self.caches:
            cache.use_condition(item.step, item.version)
        if self._ring_shelf is not None:
            self._ring_shelf.turn_to(item.step, item.block_index, item.version)
        return shape.phase(item.step, item.block_index, item.version)

    def run(self, hidden_LD: Tensor, phase: Phase) -> Tensor:
        """Run the range on the residual stream (L, D) of the item that was prepared.

        Reads and writes the same tensors for every item of a phase.
        """
        inputs = self._inputs
        views = (cache.open(phase, inputs.rows_T, inputs.reference) for cache in self.caches)
        with preferring(self.backend):
            return self.transformer(
                hidden_LD, phase.step, self.constants, inputs.block, views, inputs.audio
            )

    def head(self, hidden_LD: Tensor, step: int) -> Tensor:
        """Velocity (C, F, H, W) of a block.

        Raises:
            ValueError: the range does not end with the last layer.
        """
        grid = (LATENT_FRAMES_PER_BLOCK, self.grid.rows, self.grid.columns)
        head, modulation_S2D = self.transformer.head, self.constants.head_S2D
        if head is None or modulation_S2D is None:
            raise ValueError("this range of layers does not end with the head")
        return head(hidden_LD, modulation_S2D[step], grid)

    def finish_block(self, block_index: int) -> None:
        """Drop what only `block_index` needed, after its last step."""
        self._audio.pop(block_index, None)
        self._block_rotations.pop(block_index, None)

    def rings(self, step: int) -> Iterator[Tensor]:
        """All tensors that hold the window of a step, views, always in the same order."""
        for cache in self.caches:
            yield from cache.ring_tensors(step)

    def renew(self, time: TimeTable, text_LD: Tensor) -> None:
        """Begin another job of the same sizes in the same memory."""
        self.transformer.refill(self.constants, time, text_LD)
        for cache in self.caches:
            cache.forget()
        self._block_rotations.clear()
        self._audio.clear()
        self._inputs.block_index = None

    def _rotation_of_block(self, block_index: int) -> Rotation:
        if block_index not in self._block_rotations:
            first_frame = block_index * LATENT_FRAMES_PER_BLOCK
            positions_L3 = block_positions(
                first_frame, LATENT_FRAMES_PER_BLOCK, self.grid.rows, self.grid.columns
            )
            self._block_rotations[block_index] = self._rotation(positions_L3)
        return self._block_rotations[block_index]

    def _empty_rotation(self, num_tokens: int) -> Rotation:
        size = (num_tokens, self.transformer.config.head_dim // 2)
        return Rotation(*(torch.empty(size, device=self.device) for _ in range(2)))

    def _rotation(self, positions_L3: np.ndarray) -> Rotation:
        return rotation_at(positions_L3, self.transformer.config.head_dim, self.device)


def _attended_dtype(transformer: Transformer, like: Tensor) -> torch.dtype:
    """Of the queries, keys and values that the layers attend with, where activations are `like`."""
    return E4M3 if transformer.cache_kind == "e4m3" else like.dtype


def _attention_sizes(
    transformer: Transformer, shape: CacheShape, like: Tensor
) -> tuple[torch.device, torch.dtype, AttentionShape]:
    """Of a block to a full window; a share of the heads where a group shares them out."""
    heads = max((layer.self_attn.num_heads for layer in transformer.stack), default=1)
    sizes = AttentionShape(shape.block_tokens, shape.tokens, heads, transformer.config.head_dim)
    return like.device, _attended_dtype(transformer, like), sizes


def _new_ring_shelf(transformer: Transformer, shape: CacheShape, like: Tensor) -> RingShelf | None:
    """Make the shelf of a range of whole layers whose rings wait in host memory."""
    if not transformer.rings_on_shelf:
        return None
    heads, head_dim = transformer.config.num_heads, transformer.config.head_dim
    columns = exact_columns(heads, head_dim, like.dtype)
    if transformer.cache_kind == "8-bit":
        columns = int8_columns(heads, head_dim)
    return RingShelf(shape, columns, len(transformer.stack), like.device)


def _new_caches(
    transformer: Transformer, shape: CacheShape, like: Tensor, shelf: RingShelf | None
) -> list[LayerCache]:
    """Make the zeroed caches of a range of layers, with the dtype and device of `like`."""
    heads = [layer.self_attn.num_heads for layer in transformer.stack]
    head_dim = transformer.config.head_dim
    if transformer.cache_kind != "8-bit":
        if shelf is not None:
            return [ShelvedExactCache(shelf, layer) for layer in range(len(heads))]
        kept = _attended_dtype(transformer, like)
        return [
            ExactCache(shape, count, head_dim, dtype=like.dtype, device=like.device, kept=kept)
            for count in heads
        ]
    # One layer runs at a time, so that one workspace does for all.
    size = (shape.tokens, max(heads), head_dim)
    workspace = KeyValue(like.new_zeros(size), like.new_zeros(size))
    if shelf is not None:
        return [ShelvedQuantisedCache(shelf, layer, workspace) for layer in range(len(heads))]
    return [
        QuantisedCache(
            shape, KeyValue(workspace.key_KNH[:, :count], workspace.value_KNH[:, :count])
        )
        for count in heads
    ]
