"""Tensor parallelism: a finished single-device model cut over heads and widths.

Every rank keeps some heads of each attention and some of the inner width of each feed-forward, and
the whole residual stream. Matrices that make heads or inner width keep some of their rows;
those that read them keep the columns, and their products are added up over the group. The norms of
queries and keys are over all heads, so their sums of squares are added up too.

Source of the plan: Shoeybi et al. 2019, "Megatron-LM"; meta-pytorch/gpt-fast tp.py at 6ecad9b.

Shapes: D model width, N heads, H head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from liveavatar.model.attention import (
    CrossAttention,
    RMSNorm,
    SelfAttention,
    apply_to_attended,
    multiply,
)
from liveavatar.model.checkpoint_files import assign
from liveavatar.model.transformer import Layer
from liveavatar.parallel.group import Group
from liveavatar.parallel.mesh import check_heads, shares


def apply_tensor_parallel(layer: Layer, group: Group) -> None:
    """Cut one layer, in place, to this rank's part of it; the rest of its weights is freed.

    Raises:
        ConfigError: the heads cannot be shared out evenly.
    """
    check_heads(layer.self_attn.num_heads, tp_degree=group.size)
    if group.size == 1:
        return
    self_attn, cross_attn = layer.self_attn, layer.cross_attn
    _keep_rows(self_attn.qkv, group, fused=3)
    _cut_attention(self_attn, group)
    _cut_cross_attention(cross_attn, group)
    _keep_rows(layer.ffn_in, group)
    layer.ffn_out = _summed(layer.ffn_out, group)  # type: ignore[assignment]
    if layer.audio is not None:
        _cut_cross_attention(layer.audio.attention, group)
        layer.audio.total = group.sum
        _keep_rows(layer.audio.adain, group)
        layer.audio.adain = GatheredLinear(layer.audio.adain, group)  # type: ignore[assignment]


class GroupRMSNorm(nn.Module):
    """`RMSNorm` of channels that lie on several ranks.

    Args:
        norm: the whole norm.
        group: ranks that hold equal parts of the channels.
    """

    def __init__(self, norm: RMSNorm, group: Group) -> None:
        super().__init__()
        self.eps = norm.eps
        self.width = norm.weight.shape[0]
        self.group = group
        own = shares(self.width, group.size)[group.rank]
        weight = norm.weight.detach()[own.start : own.stop].clone()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise this rank's channels (..., D / size) by the mean square of all."""
        wide = tokens.float()
        squares = self.group.sum(wide.square().sum(dim=-1, keepdim=True))
        scale = torch.rsqrt(squares / self.width + self.eps)
        return (wide * scale).to(tokens.dtype) * self.weight


class SummedLinear(nn.Module):
    """A linear layer whose input lies on several ranks; every rank gets the whole output.

    Args:
        linear: has kept this rank's columns, and the whole bias.
        group: ranks that hold the other columns.
    """

    def __init__(self, linear: nn.Linear, group: Group) -> None:
        super().__init__()
        self.group = group
        self.linear = linear
        self.bias: nn.Parameter = linear.bias
        linear.register_parameter("bias", None)  # added once, to the sum

    def product(self, tokens: Tensor) -> Tensor:
        """Multiply this rank's channels (..., in / size); (..., out), not added up, no bias."""
        return multiply(self.linear, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Multiply this rank's channels (..., in / size) and add up; (..., out)."""
        return self.group.sum(apply_to_attended(self.linear, tokens)) + self.bias


class GatheredLinear(nn.Module):
    """A linear layer whose output is made in equal parts on several ranks; each gets all of it.

    Args:
        linear: has kept this rank's rows.
        group: ranks that hold the other rows.
    """

    def __init__(self, linear: nn.Linear, group: Group) -> None:
        super().__init__()
        self.group = group
        self.linear = linear

    def forward(self, tokens: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out)."""
        return torch.cat(self.group.gather(self.linear(tokens)), dim=-1)


def _cut_cross_attention(attention: CrossAttention, group: Group) -> None:
    _keep_rows(attention.q, group)
    _keep_rows(attention.kv, group, fused=2)
    _cut_attention(attention, group)


def _cut_attention(attention: SelfAttention | CrossAttention, group: Group) -> None:
    """Keep this rank's heads in all but the matrices that make them."""
    attention.num_heads //= group.size
    attention.norm_q = GroupRMSNorm(attention.norm_q, group)  # type: ignore[assignment]
    attention.norm_k = GroupRMSNorm(attention.norm_k, group)  # type: ignore[assignment]
    attention.o = _summed(attention.o, group)  # type: ignore[assignment]


def _keep_rows(linear: nn.Linear, group: Group, fused: int = 1) -> None:
    """Keep this rank's rows of each of the matrices that are stacked in `linear`."""
    for name in ("weight", "bias"):
        stacked = getattr(linear, name).detach().unflatten(0, (fused, -1))
        own = shares(stacked.shape[1], group.size)[group.rank]
        assign(linear, name, stacked[:, own.start : own.stop].flatten(0, 1).clone())


def _summed(linear: nn.Linear, group: Group) -> SummedLinear:
    """Keep this rank's columns of `linear`."""
    own = shares(linear.weight.shape[1], group.size)[group.rank]
    kept = linear.weight.detach()[:, own.start : own.stop]
    assign(linear, "weight", kept.clone(memory_format=torch.contiguous_format))
    return SummedLinear(linear, group)
