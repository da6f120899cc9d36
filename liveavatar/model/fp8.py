"""Linear layers in 8-bit floating point, as the reference quantises them: one scale per tensor.

Source: Alibaba-Quark/LiveAvatar at 9c2c38d; format e4m3, weights once, activations at every call.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX = 448.0
DTYPE = torch.float8_e4m3fn


@dataclass(frozen=True)
class Quantised:
    """Values in e4m3, and the factor that brings them back: original = values * scale."""

    values: Tensor
    scale: Tensor


def quantise(tensor: Tensor) -> Quantised:
    """Quantise a tensor with one multiplier for all of it.

    The multiplier is capped at 448: a tensor whose largest magnitude is below 1 is multiplied by
    448, not by 448 / largest, as in the reference.

    Args:
        tensor: any shape, float.

    Returns:
        e4m3 values of the same shape, and the float32 scale (1,).
    """
    wide = tensor.float()
    largest = wide.abs().amax().clamp(min=1e-12)
    multiplier = (MAX / largest).clamp(max=MAX)
    # The product is rounded to the tensor's own dtype on the way, as in the reference.
    values = (wide * multiplier).to(tensor.dtype).clamp(-MAX, MAX).to(DTYPE)
    return Quantised(values, multiplier.reciprocal().reshape(1))


class Fp8Linear(nn.Module):
    """A linear layer with an e4m3 weight; activations are quantised at every call.

    Args:
        linear: the layer to replace; its weight is quantised at once.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = quantise(linear.weight.detach())
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.bias = linear.bias

    def forward(self, tokens: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out) in bfloat16."""
        flat = quantise(tokens.flatten(0, -2))
        out = _multiply(flat, Quantised(self.weight, self.weight_scale), self.bias)
        return out.unflatten(0, tokens.shape[:-1])


def _multiply(tokens: Quantised, weight: Quantised, bias: Tensor | None) -> Tensor:
    if tokens.values.is_cuda:
        return torch._scaled_mm(
            tokens.values,
            weight.values.t(),
            scale_a=tokens.scale,
            scale_b=weight.scale,
            bias=None if bias is None else bias.bfloat16(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
    product = (tokens.values.float() @ weight.values.float().t()) * (tokens.scale * weight.scale)
    return (product if bias is None else product + bias.float()).bfloat16()
