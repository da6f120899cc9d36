"""Sequence parallelism: the tokens of a block shared out over ranks, Ulysses style.

Every rank keeps some tokens of the residual stream, in a row, and whole weights. For self-attention
they trade: a rank gives away its tokens' queries, keys and values of other ranks' heads and gets
all tokens of its own heads, which is what its KV rings hold. The results go back the same way.
Everything else looks at one token at a time; speech is heard by the latent frames a rank's tokens
are of. Neither tokens nor heads have to divide evenly.

Source: Jacobs et al. 2023, "DeepSpeed Ulysses".

Shapes: T all tokens, L this rank's, N all heads, n this rank's, H head width, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from liveavatar.model.attention import KeyValue, SelfAttention
from liveavatar.model.motion import unpatch
from liveavatar.model.rope import Rotation, rotate
from liveavatar.model.transformer import Head, TimeTable, Transformer
from liveavatar.parallel.group import Group
from liveavatar.parallel.mesh import check_heads, shares


def apply_sequence_parallel(transformer: Transformer, group: Group) -> None:
    """Let a range of layers, and the head where it has one, work on this rank's tokens, in place.

    The residual stream that goes in and out is this rank's part of the tokens, see `mesh.shares`;
    rotations and caches are of all of them.

    Raises:
        ConfigError: there are fewer heads than ranks.
    """
    if group.size == 1:
        return
    for layer in transformer.stack:
        layer.self_attn = UlyssesSelfAttention(layer.self_attn, group)  # type: ignore[assignment]
    if transformer.head is not None:
        transformer.head = GatheredHead(transformer.head, group)  # type: ignore[assignment]


class UlyssesSelfAttention(nn.Module):
    """`SelfAttention` of this rank's heads over the tokens of all ranks.

    Args:
        attention: of all heads, or of a tensor parallel rank's.
        group: ranks that hold the other tokens.
    """

    def __init__(self, attention: SelfAttention, group: Group) -> None:
        super().__init__()
        check_heads(attention.num_heads, sp_degree=group.size)
        self.attention = attention
        self.group = group
        self.heads = shares(attention.num_heads, group.size)
        self.num_heads = len(self.heads[group.rank])
        self.o = TokensFirst(attention.o, self.heads, group)

    def project(self, tokens_LD: Tensor, rotation: Rotation) -> tuple[Tensor, KeyValue]:
        """Make rotated queries (T, n, H) and un-rotated keys and values of this rank's tokens.

        Args:
            tokens_LD: this rank's tokens.
            rotation: positions of all T tokens.
        """
        query_LNH, own = self.attention.split_heads(tokens_LD)
        local = torch.stack((query_LNH, own.key_KNH, own.value_KNH))
        shares_T = shares(len(rotation.cos_LR), self.group.size)
        received = self.group.exchange(
            [local[:, :, heads.start : heads.stop] for heads in self.heads],
            [(3, len(tokens), self.num_heads, local.shape[-1]) for tokens in shares_T],
        )
        query_TNH, key_TNH, value_TNH = torch.cat(received, dim=1)
        return rotate(query_TNH, rotation), KeyValue(key_TNH, value_TNH)


class TokensFirst(nn.Module):
    """The projection behind self-attention: trades heads for tokens, then multiplies.

    Args:
        linear: the projection.
        heads: which heads each rank has.
        group: ranks that hold the other tokens.
    """

    def __init__(self, linear: nn.Module, heads: Sequence[range], group: Group) -> None:
        super().__init__()
        self.linear = linear
        self.heads = heads
        self.group = group

    def forward(self, attended_TC: Tensor) -> Tensor:
        """Attended values (T, n*H) of this rank's heads to (L, D) of this rank's tokens."""
        rank = self.group.rank
        tokens = shares(len(attended_TC), self.group.size)
        width = attended_TC.shape[1] // len(self.heads[rank])
        received = self.group.exchange(
            [attended_TC[part.start : part.stop] for part in tokens],
            [(len(tokens[rank]), len(heads) * width) for heads in self.heads],
        )
        return self.linear(torch.cat(received, dim=1))


class GatheredHead(nn.Module):
    """`Head` over the tokens of all ranks; every rank gets the whole velocity.

    Args:
        head: the head.
        group: ranks that hold the other tokens.
    """

    def __init__(self, head: Head, group: Group) -> None:
        super().__init__()
        self.head = head
        self.group = group

    def constants(self, time: TimeTable) -> Tensor:
        """See `Head.constants`."""
        return self.head.constants(time)

    def forward(self, hidden_LD: Tensor, modulation_2D: Tensor, grid: Sequence[int]) -> Tensor:
        """Predict the velocity (C, F, H, W) of a grid from this rank's tokens (L, D)."""
        counts = [len(tokens) for tokens in shares(math.prod(grid), self.group.size)]
        parts = self.group.gather(self.head.patches(hidden_LD, modulation_2D), counts)
        return unpatch(torch.cat(parts), grid, self.head.patch).to(hidden_LD.dtype)
