"""Tensors between a GPU and pinned host memory, on a stream that is not the one that computes.

A sender's copy waits for the kernels that make its tensor and for no others; a receiver's waits for
none. Each end of a link has one of these, used by its thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from liveavatar.errors import EngineError


class Departure:
    """A tensor on its way out, taken in the thread that computes.

    Args:
        tensor: on a CPU or GPU; not written to until it has left.
    """

    def __init__(self, tensor: Tensor) -> None:
        if tensor.device.type not in ("cpu", "cuda"):
            raise EngineError(f"cannot send a tensor on {tensor.device}; move it to the CPU first")
        self.tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        self._made: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._made = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._made.record()

    def wait_until_made(self) -> None:
        """Wait, in the sending thread, until the values are computed."""
        if self._made is not None:
            self._made.synchronize()

    def on_host(self) -> Tensor:
        """The values in host memory; called in the sending thread, waits until they are there."""
        if self._made is None:
            return self.tensor
        hosted = torch.empty(self.tensor.shape, dtype=self.tensor.dtype, pin_memory=True)
        stream = torch.cuda.current_stream(self.tensor.device)
        stream.wait_event(self._made)
        hosted.copy_(self.tensor, non_blocking=True)
        stream.synchronize()
        return hosted


def use_own_stream(device: torch.device) -> None:
    """Give this thread the device and a stream of its own; does nothing on the CPU."""
    if device.type == "cuda":
        # A new thread has device 0, where pinned memory would open a context in every rank.
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def host_buffer(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host memory to read into, pinned if it goes on to a GPU."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def to_device(hosted: Tensor, device: torch.device) -> Tensor:
    """Put a buffer on a device, for the thread that computes there; waits until it is there."""
    if device.type != "cuda":
        return hosted
    tensor = hosted.to(device, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    give_to_compute(tensor)
    return tensor


def give_to_compute(tensor: Tensor) -> None:
    """Hand a tensor made on this thread's stream to the thread that computes."""
    if tensor.device.type == "cuda":
        # Its memory belongs to this stream: not to be used again while kernels of the other read.
        tensor.record_stream(torch.cuda.default_stream(tensor.device))
