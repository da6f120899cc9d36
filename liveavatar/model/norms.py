"""Norms of the transformer, as the GPU likes to compute them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(tokens: Tensor, eps: float) -> Tensor:
    """Layer norm of the last axis without parameters.

    Where a compiler makes the kernel, the variance is the mean square less the squared mean: both
    sums come from one pass, and a row is read again from the cache. In float32 that is as good as
    centring first unless a row's mean is hundreds of times its spread.

    Args:
        tokens: (..., D), any float dtype.
        eps: added to the variance.

    Returns:
        (..., D) in float32.
    """
    wide = tokens.float()
    if not torch.compiler.is_compiling():
        return F.layer_norm(wide, wide.shape[-1:], eps=eps)
    mean = wide.mean(dim=-1, keepdim=True)
    variance = wide.square().mean(dim=-1, keepdim=True) - mean.square()
    return (wide - mean) * torch.rsqrt(variance.clamp(min=0) + eps)
