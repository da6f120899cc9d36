"""Layers whose weights lie in host memory and come to the device in turn.

Two layers have room on the device: the one at work, and the next one, which is copied meanwhile on
a stream of its own, so that the copy hides behind the work where that takes as long. On a GPU the
host memory is pinned. On the CPU the same is done by plain copies. What is computed has the same
bits as with all weights on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from liveavatar.model.attention import KeyValue, SelfAttention
from liveavatar.model.audio_injection import BlockAudio, InjectedAudio
from liveavatar.model.pinned import HostMemory
from liveavatar.model.transformer import Layer, LayerConstants, TimeTable, Transformer

_ALIGNMENT = 256  # bytes, as of what the device's allocator gives out


@dataclass(frozen=True)
class _Parcel:
    """All weights of one layer, side by side in host memory.

    Attributes:
        tensors: parameters and buffers of the layer.
        starts: where each lies, bytes.
        packed: (num_bytes,) uint8, on the host.
    """

    tensors: tuple[Tensor, ...]
    starts: tuple[int, ...]
    packed: Tensor

    def unfold(self, into: Tensor) -> Iterator[Tensor]:
        """Each tensor as a view of a copy of `packed`."""
        for tensor, start in zip(self.tensors, self.starts, strict=True):
            flat = into[start : start + tensor.nbytes].view(tensor.dtype)
            yield flat.view(tensor.shape)

    def lie_in(self, place: Tensor) -> None:
        """Let the layer's weights be the copy in `place`."""
        for tensor, view in zip(self.tensors, list(self.unfold(place)), strict=True):
            tensor.data = view


class LayerShelf:
    """Weights of layers, all in host memory, two layers of them on the device as well.

    Args:
        device: where the layers run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._parcels: list[_Parcel] = []
        self._rooms: list[Tensor] = []
        self._held: list[int | None] = [None, None]
        self._copied: list[Any] = [None, None]
        self._at_work = 0
        self._host = HostMemory(device)
        self._stream: Any = torch.cuda.Stream(device) if self._on_gpu else None

    @property
    def device_bytes(self) -> int:
        """Bytes of weights on the device."""
        return sum(room.nbytes for room in self._rooms)

    def put(self, layer: Layer) -> None:
        """Take a finished layer, behind those that were put before, off its device."""
        tensors = (*layer.parameters(), *layer.buffers())
        starts, end = [], 0
        for tensor in tensors:
            starts.append(end)
            end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        packed = self._host.zeros((end,), torch.uint8)
        parcel = _Parcel(tensors, tuple(starts), packed)
        for tensor, view in zip(tensors, parcel.unfold(packed), strict=True):
            view.copy_(tensor.data)
        parcel.lie_in(packed)
        self._parcels.append(parcel)

    def bring(self, index: int, *, ahead: bool = True) -> None:
        """Have a layer on the device for all that is run from now on.

        Args:
            index: in the order in which layers were put.
            ahead: whether the next layer is to follow meanwhile.
        """
        if not self._rooms:
            size = max(len(parcel.packed) for parcel in self._parcels)
            self._rooms = [
                torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)
            ]
        if index not in self._held:
            self._fetch(index, 1 - self._at_work)
        self._at_work = self._held.index(index)
        if self._on_gpu:
            torch.cuda.current_stream(self._device).wait_event(self._copied[self._at_work])
        following = (index + 1) % len(self._parcels)
        if ahead and following not in self._held:
            self._fetch(following, 1 - self._at_work)

    def _fetch(self, index: int, room: int) -> None:
        """Begin to copy a layer over the one in a room, whose work is started, if not done."""
        before = self._held[room]
        if before is not None:
            self._parcels[before].lie_in(self._parcels[before].packed)
        parcel, place = self._parcels[index], self._rooms[room]
        if self._on_gpu:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                place[: len(parcel.packed)].copy_(parcel.packed, non_blocking=True)
                self._copied[room] = self._stream.record_event()
        else:
            place[: len(parcel.packed)].copy_(parcel.packed)
        parcel.lie_in(place)
        self._held[room] = index


class ShelvedLayer(nn.Module):
    """A `Layer` that is brought to the device before it is used.

    Args:
        layer: was put on the shelf.
        shelf: which.
        index: of the layer there.
    """

    def __init__(self, layer: Layer, shelf: LayerShelf, index: int) -> None:
        super().__init__()
        self.layer = layer
        self._shelf = shelf
        self._index = index

    @property
    def self_attn(self) -> SelfAttention:
        """Of the layer."""
        return self.layer.self_attn

    @property
    def audio(self) -> ShelvedLayer | None:
        """What prepares speech, where the layer injects it."""
        return None if self.layer.audio is None else self

    def forward(self, *args: Any) -> Tensor:
        """See `Layer.forward`."""
        self._shelf.bring(self._index)
        return self.layer(*args)

    def prefill(self, *args: Any) -> tuple[Tensor, KeyValue]:
        """See `Layer.prefill`."""
        self._shelf.bring(self._index)
        return self.layer.prefill(*args)

    def constants(self, time: TimeTable, text_LD: Tensor) -> LayerConstants:
        """See `Layer.constants`."""
        self._shelf.bring(self._index)
        return self.layer.constants(time, text_LD)

    def prepare(
        self, audio: BlockAudio, frame_tokens: tuple[int, ...] | None = None
    ) -> InjectedAudio:
        """See `AudioInjection.prepare`; few layers do this, and not one behind the other."""
        self._shelf.bring(self._index, ahead=False)
        assert self.layer.audio is not None
        return self.layer.audio.prepare(audio, frame_tokens)


def run_from_shelf(transformer: Transformer, shelf: LayerShelf) -> None:
    """Let a range of layers, all of which were put on a shelf in order, run from there."""
    for index, name in enumerate(list(transformer.layers)):
        layer = transformer.layers[name]
        assert isinstance(layer, Layer)
        transformer.layers[name] = ShelvedLayer(layer, shelf, index)
