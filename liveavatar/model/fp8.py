"""Linear layers in 8-bit floating point: format e4m3, weights once, activations at every call.

The reference has one scale per tensor. Here a row of the weight and a token have one each, which
costs the matrix units nothing and keeps small rows out of e4m3's coarse end; the reference's way is
kept for comparison with its recorded tensors.

Source: Alibaba-Quark/LiveAvatar at 9c2c38d.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX = 448.0
DTYPE = torch.float8_e4m3fn
FIRST_CAPABILITY = (8, 9)
"""First CUDA compute capability with matrix units for e4m3, and row scales for them in torch."""

ATTENDED_SCALE = 8.0
"""Tokens that come in e4m3 come from attention, and are this many times what they stand for.

They are averages of values: small numbers, which e4m3 holds better when they are larger.
"""

_SMALLEST = 1e-12


@dataclass(frozen=True)
class Quantised:
    """Values in e4m3, and the factors that bring them back: original = values * scale."""

    values: Tensor
    scale: Tensor


def quantise_rows(tensor: Tensor) -> Quantised:
    """Quantise a matrix (rows, columns), each row over the whole range of e4m3.

    Returns:
        e4m3 values of the same shape, and float32 scales (rows, 1).
    """
    largest = tensor.abs().amax(dim=-1, keepdim=True).float().clamp(min=_SMALLEST)
    # The largest value becomes MAX up to float32's rounding, which e4m3 rounds away.
    return Quantised((tensor * (MAX / largest)).to(DTYPE), largest / MAX)


def quantise(tensor: Tensor) -> Quantised:
    """Quantise a tensor with one multiplier for all of it, as the reference does.

    The multiplier is capped at 448: a tensor whose largest magnitude is below 1 is multiplied by
    448, not by 448 / largest.

    Args:
        tensor: any shape, float.

    Returns:
        e4m3 values of the same shape, and the float32 scale (1,).
    """
    wide = tensor.float()
    largest = wide.abs().amax().clamp(min=_SMALLEST)
    multiplier = (MAX / largest).clamp(max=MAX)
    # The product is rounded to the tensor's own dtype on the way, as in the reference.
    values = (wide * multiplier).to(tensor.dtype).clamp(-MAX, MAX).to(DTYPE)
    return Quantised(values, multiplier.reciprocal().reshape(1))


class Fp8Linear(nn.Module):
    """A linear layer with an e4m3 weight; activations are quantised at every call.

    Args:
        linear: the layer to replace; its weight is quantised at once.
        rule: how weights and activations get their scales.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(
        self, linear: nn.Linear, rule: Callable[[Tensor], Quantised] = quantise_rows
    ) -> None:
        super().__init__()
        self.rule = rule
        weight = rule(linear.weight.detach())
        self.register_buffer("weight", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.bias = linear.bias
        on_gpu = weight.values.is_cuda
        self.has_units = on_gpu and torch.cuda.get_device_capability() >= FIRST_CAPABILITY

    def forward(self, tokens: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out) in bfloat16."""
        rows = tokens.flatten(0, -2)
        out = self.multiply(_attended(rows) if tokens.dtype == DTYPE else self.rule(rows))
        return out.unflatten(0, tokens.shape[:-1])

    def product(self, tokens: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out) in bfloat16, without the bias."""
        out = self._multiply(self.rule(tokens.flatten(0, -2)), None)
        return out.unflatten(0, tokens.shape[:-1])

    def multiply(self, tokens: Quantised) -> Tensor:
        """Multiply quantised tokens (L, in) to (L, out) in bfloat16."""
        return self._multiply(tokens, self.bias)

    def _multiply(self, tokens: Quantised, bias: Tensor | None) -> Tensor:
        weight = Quantised(self.weight, self.weight_scale)
        return (_multiply if self.has_units else _multiply_wide)(tokens, weight, bias)


def _attended(rows: Tensor) -> Quantised:
    scale = torch.full((len(rows), 1), 1 / ATTENDED_SCALE, device=rows.device)
    return Quantised(rows, scale)


def quantise_linears(module: nn.Module) -> None:
    """Replace every linear layer inside `module`, one after another, so that few are held twice."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, Fp8Linear(child))
        else:
            quantise_linears(child)


def _multiply(tokens: Quantised, weight: Quantised, bias: Tensor | None) -> Tensor:
    return torch._scaled_mm(
        tokens.values,
        weight.values.t(),
        scale_a=tokens.scale,
        scale_b=weight.scale.t(),
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _multiply_wide(tokens: Quantised, weight: Quantised, bias: Tensor | None) -> Tensor:
    """The same numbers in a wider format: slower, but as small in memory."""
    wide = torch.bfloat16 if tokens.values.is_cuda else torch.float32
    product = (tokens.values.to(wide) @ weight.values.to(wide).t()).float()
    product = product * tokens.scale * weight.scale.t()
    return (product if bias is None else product + bias.float()).bfloat16()
