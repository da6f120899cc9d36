"""Rings that lie in host memory and come to the device in turn, as layers do from their shelf.

A forward of one layer reads its condition and the blocks before in its step's ring, and writes the
block at hand. So two layers' windows have room on the device: the one at work, and the next one,
which is copied meanwhile on a stream of its own. Only what was written goes back, on another one:
the block's rows. On the CPU the same is done by plain copies. What is computed has the same bits
as with all rings on the device.

Shapes: S denoise steps, K buffer tokens, C condition tokens, R ring tokens, T tokens of a block, N
heads, H head width. A window is held in `columns`, tensors with the tokens in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from liveavatar.model.attention import KeyValue
from liveavatar.model.kv_cache import CacheShape, ExactView, Phase
from liveavatar.model.pinned import HostMemory
from liveavatar.model.quantised_cache import (
    SCALE_DTYPE,
    Int8,
    Int8KeyValue,
    QuantisedView,
    bring_back,
    round_vectors,
)
from liveavatar.model.rope import Rotation, rotate, rotate_into

Column = tuple[tuple[int, ...], torch.dtype]
"""What a token has in one tensor of a window."""

Window = tuple[Tensor, ...]
"""One tensor per column, (tokens, ...)."""


@dataclass(frozen=True)
class _Visit:
    """One forward of one layer."""

    layer: int
    step: int
    block_index: int
    version: int


class RingShelf:
    """Conditions and rings of a job's layers in host memory, two windows on the device.

    Args:
        shape: sizes.
        columns: of a window.
        num_layers: layers, which run in this order.
        device: where they run.
    """

    def __init__(
        self, shape: CacheShape, columns: Sequence[Column], num_layers: int, device: torch.device
    ) -> None:
        self.shape = shape
        self._columns = tuple(columns)
        self._host = HostMemory(device)
        front = (shape.num_steps, shape.tokens - shape.condition_tokens)
        self._rings = [self._on_host(*front) for _ in range(num_layers)]
        self._conditions: dict[tuple[int, int], Window] = {}
        self._rooms = [
            tuple(
                torch.zeros((shape.tokens, *size), dtype=dtype, device=device)
                for size, dtype in columns
            )
            for _ in range(2)
        ]
        self._held: list[_Visit | None] = [None, None]
        self._at_work: int | None = None
        self._item = _Visit(0, 0, 0, 0)
        self._copies = _Copies(device, [tensor for room in self._rooms for tensor in room])

    @property
    def device_bytes(self) -> int:
        """Bytes of windows on the device."""
        return sum(tensor.nbytes for room in self._rooms for tensor in room)

    @property
    def host_bytes(self) -> int:
        """Bytes of rings and stored conditions in host memory."""
        return self._host.num_bytes

    def turn_to(self, step: int, block_index: int, version: int) -> None:
        """All that is brought from now on is for this block, step and version of the condition."""
        self._item = _Visit(0, step, block_index, version)

    def bring(self, layer: int) -> Window:
        """Have a layer's window on the device for all that is run from now on.

        Returns:
            Condition, un-rotated reference in front, and ring, (K, ...); the rows of the block at
            hand hold anything, and what is written there is kept.
        """
        visit = replace(self._item, layer=layer)
        free = 0 if self._at_work is None else 1 - self._at_work
        self._put_back()
        if visit not in self._held:
            self._fetch(visit, free)
        self._at_work = room = self._held.index(visit)
        self._copies.await_arrival(room)
        following = self._following(visit)
        # A ring that is being written is not read ahead.
        if following not in self._held and (following.layer, following.step) != (layer, visit.step):
            self._fetch(following, 1 - room)
        return self._rooms[room]

    def store_condition(self, layer: int, version: int, condition: Window) -> None:
        """Keep a copy of a layer's condition, (C, ...), as `version`."""
        self.settle()
        if (layer, version) not in self._conditions:
            self._conditions[layer, version] = self._on_host(self.shape.condition_tokens)
        for kept, tensor in zip(self._conditions[layer, version], condition, strict=True):
            kept.copy_(tensor)

    def ring(self, layer: int, step: int) -> Window:
        """The ring of a layer and step in host memory, (R, ...), to read and to write."""
        self.settle()
        return tuple(tensor[step] for tensor in self._rings[layer])

    def settle(self) -> None:
        """Have all that was written in host memory, and nothing brought ahead."""
        self._put_back()
        self._copies.wait()
        self._held = [None, None]
        self._at_work = None

    def _on_host(self, *front: int) -> Window:
        return tuple(self._host.zeros((*front, *size), dtype) for size, dtype in self._columns)

    def _following(self, visit: _Visit) -> _Visit:
        """What will likely be asked for next: the next layer, behind the last the next item."""
        if visit.layer + 1 < len(self._rings):
            return replace(visit, layer=visit.layer + 1)
        if visit.step + 1 < self.shape.num_steps:
            return replace(visit, layer=0, step=visit.step + 1)
        return replace(visit, layer=0, step=0, block_index=visit.block_index + 1)

    def _fetch(self, visit: _Visit, room: int) -> None:
        """Begin to copy a window over the one in a room, whose work is started, if not done."""
        front = self.shape.condition_tokens
        condition = self._conditions[visit.layer, visit.version]
        rings = self._rings[visit.layer]
        with self._copies.incoming(room):
            for here, first, ring in zip(self._rooms[room], condition, rings, strict=True):
                here[:front].copy_(first, non_blocking=True)
                for rows in self._earlier(visit.block_index):
                    here[front:][rows].copy_(ring[visit.step, rows], non_blocking=True)
        self._held[room] = visit

    def _put_back(self) -> None:
        """Begin to copy what the layer at work has written to its ring."""
        visit = None if self._at_work is None else self._held[self._at_work]
        if self._at_work is None or visit is None:
            return
        front, slot = self.shape.condition_tokens, self.shape.slot(visit.block_index)
        rows = slice(slot.start - front, slot.stop - front)
        with self._copies.outgoing():
            for here, ring in zip(
                self._rooms[self._at_work], self._rings[visit.layer], strict=True
            ):
                ring[visit.step, rows].copy_(here[slot], non_blocking=True)
        self._held[self._at_work] = None

    def _earlier(self, block_index: int) -> Iterator[slice]:
        """Rows of a ring that hold the blocks before `block_index` in its window."""
        tokens, window = self.shape.block_tokens, self.shape.window_blocks
        own = block_index % window
        yield slice(0, own * tokens)
        if block_index >= window:
            yield slice((own + 1) * tokens, window * tokens)


class _Copies:
    """Orders copies between host and device; on the CPU they are done when they return.

    Args:
        device: where the rooms are.
        rooms: all tensors on the device that are copied from and to.
    """

    def __init__(self, device: torch.device, rooms: Sequence[Tensor]) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        streams: list[Any] = [torch.cuda.Stream(device) if self._on_gpu else None for _ in range(2)]
        self._in, self._out = streams
        self._arrived: dict[int, Any] = {}
        if self._on_gpu:
            for tensor in rooms:  # their memory is not given to others before the copies are done
                tensor.record_stream(self._in)
                tensor.record_stream(self._out)

    @contextmanager
    def incoming(self, room: int) -> Iterator[None]:
        """Copy to a room, when all that was started before is done with it."""
        if not self._on_gpu:
            yield
            return
        self._in.wait_stream(torch.cuda.current_stream(self._device))
        self._in.wait_stream(self._out)
        with torch.cuda.stream(self._in):
            yield
            self._arrived[room] = self._in.record_event()

    @contextmanager
    def outgoing(self) -> Iterator[None]:
        """Copy from a room, when what writes it, which is started, is done."""
        if self._on_gpu:
            self._out.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._out) if self._on_gpu else nullcontext():
            yield

    def await_arrival(self, room: int) -> None:
        """Let all that is started from now on wait for a room's last copy."""
        if self._on_gpu:
            torch.cuda.current_stream(self._device).wait_event(self._arrived[room])

    def wait(self) -> None:
        """Wait here for all copies."""
        if self._on_gpu:
            self._in.synchronize()
            self._out.synchronize()


class _ShelvedCache:
    """What both kinds share.

    Args:
        shelf: of the job.
        layer: of this cache there.
    """

    def __init__(self, shelf: RingShelf, layer: int) -> None:
        self.shape = shelf.shape
        self._shelf = shelf
        self._layer = layer

    def use_condition(self, step: int, version: int) -> None:
        """See `LayerCache`; it comes with the ring, see `RingShelf.turn_to`."""

    def ring_tensors(self, step: int) -> Window:
        """See `LayerCache`; they lie in host memory."""
        return self._shelf.ring(self._layer, step)

    def forget(self) -> None:
        """See `LayerCache`."""
        self._shelf.settle()


class ShelvedExactCache(_ShelvedCache):
    """`ExactCache` of a layer whose rings are on a shelf of `exact_columns`."""

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """See `LayerCache`."""
        fixed = self.shape.reference_tokens
        key_CNH = condition.key_KNH.clone()
        key_CNH[fixed:] = rotate(condition.key_KNH[fixed:], motion)
        self._shelf.store_condition(self._layer, version, (key_CNH, condition.value_KNH))

    def open(self, phase: Phase, rows_T: Tensor, reference: Rotation) -> ExactView:
        """Turn the reference keys; see `LayerCache`."""
        key_KNH, value_KNH = (tensor.data for tensor in self._shelf.bring(self._layer))
        turned = key_KNH[: self.shape.reference_tokens]
        rotate_into(turned, turned.clone(), reference)
        valid = self.shape.valid_tokens(phase)
        window = KeyValue(key_KNH[:valid], value_KNH[:valid])
        return ExactView(KeyValue(key_KNH, value_KNH), rows_T, window)


class ShelvedQuantisedCache(_ShelvedCache):
    """`QuantisedCache` of a layer whose rings are on a shelf of `int8_columns`.

    Args:
        shelf: of the job.
        layer: of this cache there.
        workspace: (K, N, H); see `QuantisedCache`.
    """

    def __init__(self, shelf: RingShelf, layer: int, workspace: KeyValue) -> None:
        super().__init__(shelf, layer)
        self.workspace = workspace

    def store_condition(self, version: int, condition: KeyValue, motion: Rotation) -> None:
        """See `LayerCache`."""
        fixed = self.shape.reference_tokens
        key_CNH = condition.key_KNH.clone()
        key_CNH[fixed:] = rotate(condition.key_KNH[fixed:], motion)
        key, value = round_vectors(key_CNH), round_vectors(condition.value_KNH)
        columns = (key.values, key.scale, value.values, value.scale)
        self._shelf.store_condition(self._layer, version, columns)

    def open(self, phase: Phase, rows_T: Tensor, reference: Rotation) -> QuantisedView:
        """Bring the window back into the workspace; see `LayerCache`."""
        key, key_scale, value, value_scale = self._shelf.bring(self._layer)
        window = Int8KeyValue(Int8(key, key_scale), Int8(value, value_scale))
        front = self.shape.condition_tokens
        held = window[:front], window[front:]
        valid = self.shape.valid_tokens(phase)
        return bring_back(*held, self.workspace, valid, rows_T, reference)


def exact_columns(num_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Column, ...]:
    """Keys and values as they are computed."""
    return (((num_heads, head_dim), dtype),) * 2


def int8_columns(num_heads: int, head_dim: int) -> tuple[Column, ...]:
    """Keys and their scales, values and theirs."""
    return (((num_heads, head_dim), torch.int8), ((num_heads, 1), SCALE_DTYPE)) * 2
