"""Small host tensors to a GPU, without the host waiting for it.

A plain copy from memory that is not pinned begins when the GPU has done all that was started
before, and the host waits for that.
"""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy a tensor to `device`; from host memory it returns at once, later work sees the copy."""
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
