"""Host memory that a GPU copies from and to by itself, not larger than was asked for.

torch rounds pinned memory up to a power of two (pytorch/pytorch#150517): a layer of 0.65 GiB would
take one, all layers of the 14B model 40 GiB in place of 30. So ordinary memory is registered with
the driver here.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from liveavatar.errors import MemoryShortError


class HostMemory:
    """Memory of one owner, given back when the owner lets go of this object.

    Args:
        device: what copies from and to it; memory for the CPU is not pinned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._taken: list[Tensor] = []
        if device.type == "cuda":
            # Interpreters end without this: the driver takes all of it back then.
            weakref.finalize(self, _unpin, self._taken, device).atexit = False

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._taken)

    def zeros(self, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Make a tensor.

        Raises:
            MemoryShortError: the system pins no more memory.
        """
        tensor = torch.zeros(size, dtype=dtype)
        if self._device.type == "cuda" and tensor.nbytes:
            cudart = torch.cuda.cudart()
            status = int(cudart.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
            if status:
                raise MemoryShortError(
                    f"out of host memory: {tensor.nbytes / 2**30:.2f} GiB more cannot be pinned "
                    f"beside {self.num_bytes / 2**30:.2f} (CUDA error {status}); use a smaller "
                    "size, fewer steps or more cards"
                )
        self._taken.append(tensor)
        return tensor


def _unpin(taken: list[Tensor], device: torch.device) -> None:
    """Let the GPU finish its copies, and the system have the memory."""
    torch.cuda.synchronize(device)
    for tensor in taken:
        if tensor.nbytes:
            torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
    taken.clear()
