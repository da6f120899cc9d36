"""Attention and its projections.

Shapes: L query tokens, K keys, D model width, N heads, H head width, F latent frames.

Source: Wan-Video/Wan2.2 wan/modules/model.py at 42bf4cf.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from liveavatar.model.fp8 import ATTENDED_SCALE
from liveavatar.model.fp8 import DTYPE as E4M3
from liveavatar.model.fp8_attention import attend_e4m3
from liveavatar.model.rope import Rotation, rotate


@dataclass(frozen=True)
class KeyValue:
    """Keys and values of K tokens, each (K, N, H); a leading frame axis where stated."""

    key_KNH: Tensor
    value_KNH: Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm over all channels of a token, before they are split into heads.

    Statistics in float32, the result rounded to the input's dtype, then weighted.
    """

    def __init__(self, dim: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise the last axis of `tokens`, (..., D); shape and dtype stay."""
        wide = tokens.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * scale).to(tokens.dtype) * self.weight


def attend(query_LNH: Tensor, kv: KeyValue) -> Tensor:
    """Full softmax attention, scale 1/sqrt(H), no mask.

    Args:
        query_LNH: (L, N, H), or (F, L, N, H) with keys and values (F, K, N, H) of each frame.
        kv: keys and values of the same dtype and device.

    Returns:
        (L, N*H) or (F, L, N*H), dtype of the query; see `attend_e4m3` for one in e4m3.
    """
    if query_LNH.dtype == E4M3:
        return attend_e4m3(query_LNH, kv.key_KNH, kv.value_KNH)
    # The fused kernels take four axes only; with three the scores would be written out.
    query, key, value = (
        tokens.transpose(-3, -2) if tokens.ndim == 4 else tokens.transpose(-3, -2)[None]
        for tokens in (query_LNH, kv.key_KNH, kv.value_KNH)
    )
    out = F.scaled_dot_product_attention(query, key, value).transpose(-3, -2).flatten(-2)
    return out if query_LNH.ndim == 4 else out[0]


def multiply(linear: nn.Module, tokens: Tensor) -> Tensor:
    """Multiply tokens (..., in) by the matrix of a linear layer of any kind, without its bias."""
    if isinstance(linear, nn.Linear):
        return F.linear(tokens, linear.weight)
    product = cast(Callable[[Tensor], Tensor], linear.product)
    return product(tokens)


def apply_to_attended(linear: nn.Module, attended: Tensor) -> Tensor:
    """Apply a linear layer to what `attend` gave (..., in), also where that came in e4m3."""
    if attended.dtype == E4M3 and isinstance(linear, nn.Linear):
        attended = attended.to(linear.weight.dtype) / ATTENDED_SCALE
    return linear(attended)


class SelfAttention(nn.Module):
    """Projections around self-attention; q, k and v are one matrix of 3D rows."""

    def __init__(self, dim: int, num_heads: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, dtype=dtype)
        self.norm_q = RMSNorm(dim, eps, dtype)
        self.norm_k = RMSNorm(dim, eps, dtype)
        self.o = nn.Linear(dim, dim, dtype=dtype)

    def project(self, tokens_LD: Tensor, rotation: Rotation) -> tuple[Tensor, KeyValue]:
        """Make rotated queries (L, N, H) and un-rotated keys and values of the same tokens.

        Args:
            tokens_LD: (L, D).
            rotation: positions of the L tokens.
        """
        query_LNH, own = self.split_heads(tokens_LD)
        return rotate(query_LNH, rotation), own

    def split_heads(self, tokens_LD: Tensor) -> tuple[Tensor, KeyValue]:
        """Make queries (L, N, H), keys and values of tokens (L, D), nothing rotated."""
        query, key, value = self.qkv(tokens_LD).chunk(3, dim=-1)
        heads = (self.num_heads, -1)
        return self.norm_q(query).unflatten(-1, heads), KeyValue(
            self.norm_k(key).unflatten(-1, heads), value.unflatten(-1, heads)
        )


class CrossAttention(nn.Module):
    """Attention from video tokens to a few tokens of another kind; k and v are one matrix."""

    def __init__(self, dim: int, num_heads: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, dtype=dtype)
        self.kv = nn.Linear(dim, 2 * dim, dtype=dtype)
        self.norm_q = RMSNorm(dim, eps, dtype)
        self.norm_k = RMSNorm(dim, eps, dtype)
        self.o = nn.Linear(dim, dim, dtype=dtype)

    def project_context(self, context: Tensor) -> KeyValue:
        """Make keys and values of context tokens (..., K, D): once per context, not per forward."""
        key, value = self.kv(context.to(self.norm_k.weight.dtype)).chunk(2, dim=-1)
        heads = (self.num_heads, -1)
        # A view of the values would keep the whole product alive for the length of a job.
        return KeyValue(
            self.norm_k(key).unflatten(-1, heads), value.contiguous().unflatten(-1, heads)
        )

    def weigh(self, tokens: Tensor, key_FKNH: Tensor) -> Tensor:
        """Weights of each head for few keys, from tokens (F, L, D); (F, L, N*K), dtype of both.

        Raises:
            ValueError: there are more keys than a head is wide.
        """
        query = self.norm_q(self.q(tokens)).unflatten(-1, (self.num_heads, -1))
        count, width = key_FKNH.shape[1], key_FKNH.shape[-1]
        if count > width:
            raise ValueError(f"expected at most {width} keys, as a head is wide, got {count}")
        # Attention to unit vectors gives the weights themselves.
        units_KH = torch.eye(count, width, dtype=query.dtype, device=query.device)
        value_FKNH = units_KH[:, None].expand_as(key_FKNH)
        weights = attend(query, KeyValue(key_FKNH, value_FKNH)).unflatten(-1, (-1, width))
        return weights[..., :count].flatten(-2)

    def tell(self, value_FKNH: Tensor) -> Tensor:
        """Take the values of each head, alone, through the output matrix, its bias left out.

        Returns:
            (F, N*K, D), for the weights of `weigh`.
        """
        apart_FNKNH = torch.diag_embed(value_FKNH.transpose(-1, -2), dim1=1, dim2=3)
        return multiply(self.o, apart_FNKNH.flatten(3).flatten(1, 2))

    def forward(self, tokens: Tensor, context: KeyValue) -> Tensor:
        """Attend from `tokens` (L, D) or (F, L, D) to `context`; the result has the same shape."""
        query = self.norm_q(self.q(tokens)).unflatten(-1, (self.num_heads, -1))
        return self.o(attend(query, context))
