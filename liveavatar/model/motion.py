"""Latent frames to tokens: patches of the block, packed tokens of past frames.

A strided convolution whose stride is its kernel is a matrix product over patches, and is written as
one.

Shapes: latents (C, F, H, W): channels, latent frames, rows, columns; L tokens, D model width.

Source: Wan-Video/Wan2.2 wan/modules/s2v at 42bf4cf, frame packing in mode "padd".
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from liveavatar.config import TransformerConfig


class PatchEmbedding(nn.Linear):
    """Patches of (frames, rows, columns) to tokens."""

    def __init__(
        self, channels: int, dim: int, patch: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        self.patch = patch
        super().__init__(channels * patch[0] * patch[1] * patch[2], dim, dtype=dtype)

    def forward(self, latent_CFHW: Tensor) -> Tensor:
        """Embed a latent (C, F, H, W) into tokens (L, D), frame-major, then row-major.

        Rows and columns that do not fill a patch are left out, as a strided convolution does.
        """
        frames, rows, columns = self.patch
        height, width = latent_CFHW.shape[-2:]
        whole = latent_CFHW[..., : height // rows * rows, : width // columns * columns]
        patches = rearrange(
            whole,
            "c (f pf) (h ph) (w pw) -> (f h w) (c pf ph pw)",
            pf=frames,
            ph=rows,
            pw=columns,
        )
        return super().forward(patches.to(self.weight.dtype))


class FramePacker(nn.Module):
    """Past latent frames as tokens, coarser the older they are.

    Of the last 19 frames one keeps its patches ("near"), the two before it are packed by 2 in every
    direction, the sixteen before those by 4.
    """

    def __init__(self, config: TransformerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.buckets = config.zip_frame_buckets
        frames, rows, columns = config.patch_size
        one, two, four = ((frames * k, rows * k, columns * k) for k in (1, 2, 4))
        self.proj = PatchEmbedding(config.in_dim, config.dim, one, dtype)
        self.proj_2x = PatchEmbedding(config.in_dim, config.dim, two, dtype)
        self.proj_4x = PatchEmbedding(config.in_dim, config.dim, four, dtype)

    def forward(self, motion_CFHW: Tensor) -> Tensor:
        """Pack the most recent latent frames of `motion_CFHW`, (C, F, H, W), any F.

        Fewer frames are preceded by zeros.

        Returns:
            Tokens (L, D) in the order near, 2x, 4x.
        """
        wanted = sum(self.buckets)
        recent = motion_CFHW[:, -wanted:]
        recent = F.pad(recent, (0, 0, 0, 0, wanted - recent.shape[1], 0))
        fourfold, double, near = recent.split(self.buckets[::-1], dim=1)
        return torch.cat([self.proj(near), self.proj_2x(double), self.proj_4x(fourfold)])


def unpatch(patches_LX: Tensor, grid: Sequence[int], patch: tuple[int, int, int]) -> Tensor:
    """Put head outputs back into a latent.

    Args:
        patches_LX: (L, patch volume * C), channel fastest.
        grid: token frames, rows and columns.
        patch: patch size.

    Returns:
        Latent (C, F, H, W).
    """
    return rearrange(
        patches_LX,
        "(f h w) (pf ph pw c) -> c (f pf) (h ph) (w pw)",
        f=grid[0],
        h=grid[1],
        w=grid[2],
        pf=patch[0],
        ph=patch[1],
        pw=patch[2],
    )
