"""Host memory that a GPU copies from and to by itself, not larger than was asked for.

torch rounds pinned memory up to a power of two (pytorch/pytorch#150517): a layer of 0.65 GiB would
take one, all layers of the 14B model 40 GiB in place of 30. So pages of the system are registered
with the driver here, whole ones, since a page cannot be registered twice.
"""

from __future__ import annotations

import math
import mmap
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
        """Make a tensor, which is not empty.

        Raises:
            MemoryShortError: the system pins no more memory.
        """
        num_bytes = math.prod(size) * dtype.itemsize
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        packed = torch.frombuffer(pages, dtype=torch.uint8)
        if self._device.type == "cuda":
            cudart = torch.cuda.cudart()
            status = int(cudart.cudaHostRegister(packed.data_ptr(), num_bytes, 0))
            if status:
                raise MemoryShortError(
                    f"out of host memory: {num_bytes / 2**30:.2f} GiB more cannot be pinned "
                    f"beside {self.num_bytes / 2**30:.2f} (CUDA error {status}); use a smaller "
                    "size, fewer steps or more cards"
                )
        self._taken.append(packed)
        return packed.view(dtype).view(size)


def _unpin(taken: list[Tensor], device: torch.device) -> None:
    """Let the GPU finish its copies, and the system have the memory."""
    torch.cuda.synchronize(device)
    for tensor in taken:
        torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
    taken.clear()
