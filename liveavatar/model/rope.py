"""Three-dimensional rotary positions of block, reference and motion tokens.

A token sits at (frame, row, column). Frames count latent frames from the start of the video, rows
and columns count patches of 2 x 2 latent pixels. A negative frame rotates the other way round.

Shapes: L tokens, N heads, H head width, R = H/2 rotation pairs.

Source: Alibaba-Quark/LiveAvatar at 9c2c38d, positions of S2V tokens; Wan-Video/Wan2.2 at 42bf4cf.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liveavatar.model.fp8_attention import rounded_to
from liveavatar.model.fusing import fused
from liveavatar.model.upload import upload

THETA = 10000.0
PREFILL_REFERENCE_FRAME = 30


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines of L tokens, (L, R) float32."""

    cos_LR: Tensor
    sin_LR: Tensor

    def fill(self, other: "Rotation") -> None:
        """Take the numbers of a table of the same size."""
        self.cos_LR.copy_(other.cos_LR)
        self.sin_LR.copy_(other.sin_LR)


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Split a head of `head_dim` channels over frame, row and column; 128 gives 44, 42, 42."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def reference_frame(first_frame: int, relative_distance: int) -> int:
    """Frame at which the reference stands while the block starting at `first_frame` is denoised.

    Args:
        first_frame: absolute latent frame of the block's start, >= 0.
        relative_distance: distance in latent frames kept once the video is long, 4..30.
    """
    start = PREFILL_REFERENCE_FRAME - relative_distance
    return PREFILL_REFERENCE_FRAME + max(0, first_frame - start)


def grid_positions(
    frames: Sequence[int], rows: Sequence[int], columns: Sequence[int]
) -> np.ndarray:
    """Positions of a frame-major, then row-major grid of tokens, int64 (L, 3)."""
    mesh = np.meshgrid(np.asarray(frames), np.asarray(rows), np.asarray(columns), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in mesh], axis=1).astype(np.int64)


def block_positions(first_frame: int, num_frames: int, rows: int, columns: int) -> np.ndarray:
    """Positions of a noisy block, int64 (num_frames * rows * columns, 3)."""
    frames = range(first_frame, first_frame + num_frames)
    return grid_positions(frames, range(rows), range(columns))


def motion_positions(rows: int, columns: int, buckets: Sequence[int] = (1, 2, 16)) -> np.ndarray:
    """Positions of the packed motion tokens, int64 (L, 3), order near, 2x, 4x.

    They never move: motion recedes as the video grows. Coarse tokens take evenly spaced frames,
    rows and columns of what they pack, end points included, truncated: with the default buckets
    the frames are -1, then -3, then -19, -14, -9, -4.

    Args:
        rows: token rows of a full-resolution frame (latent height / 2).
        columns: token columns of a full-resolution frame (latent width / 2).
        buckets: latent frames kept whole, packed by 2 and packed by 4.
    """
    parts, end = [], 0
    for frames, packed_by in zip(buckets, (1, 2, 4), strict=True):
        parts.append(
            grid_positions(
                _spread(end - frames, end - 1, frames // packed_by),
                _spread(0, rows - 1, rows // packed_by),
                _spread(0, columns - 1, columns // packed_by),
            )
        )
        end -= frames
    return np.concatenate(parts)


def condition_positions(
    frame: int, rows: int, columns: int, buckets: Sequence[int] = (1, 2, 16)
) -> np.ndarray:
    """Positions of all condition tokens with the reference at `frame`, int64 (L, 3)."""
    reference = grid_positions([frame], range(rows), range(columns))
    return np.concatenate([reference, motion_positions(rows, columns, buckets)])


def rotation_at(
    positions: np.ndarray,
    head_dim: int,
    device: torch.device | str = "cpu",
    theta: float = THETA,
) -> Rotation:
    """Cosines and sines at given positions.

    Angles are float64; cosine and sine are rounded to float32, then to float16, as the reference
    does: leaving the rounding out costs 2e-5 of relative error against it.

    Args:
        positions: integers (L, 3).
        head_dim: head width H, even.
        device: where the table is wanted.
        theta: base of the frequencies.

    Returns:
        float32 tables (L, H/2) that hold float16-exact numbers.
    """
    angles = []
    for axis, width in enumerate(axis_widths(head_dim)):
        values, index = np.unique(positions[:, axis], return_inverse=True)
        frequency = theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        angles.append((np.outer(values, frequency), index.reshape(-1)))
    cos = np.concatenate([_rounded(np.cos(angle))[index] for angle, index in angles], axis=1)
    sin = np.concatenate([_rounded(np.sin(angle))[index] for angle, index in angles], axis=1)
    return Rotation(*(upload(torch.from_numpy(table), device).float() for table in (cos, sin)))


def rotate(heads_LNH: Tensor, rotation: Rotation) -> Tensor:
    """Turn adjacent channel pairs of every head by the angles of its token.

    Args:
        heads_LNH: queries or keys, (L, N, H), any float dtype.
        rotation: table of the same L tokens.

    Returns:
        Rotated tensor of the same shape and dtype; arithmetic in float32.
    """
    # Written as a sum over a token and its swapped pairs, which a compiler makes one pass of.
    wide_LNH = heads_LNH.float()
    swapped_LNH = wide_LNH.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    cos_L1H = rotation.cos_LR.repeat_interleave(2, -1)[:, None]
    sin_L1H = torch.stack((-rotation.sin_LR, rotation.sin_LR), dim=-1).flatten(-2)[:, None]
    return swapped_LNH.mul_(sin_L1H).add_(wide_LNH * cos_L1H).to(heads_LNH.dtype)


@fused
def rotate_into(out_LNH: Tensor, heads_LNH: Tensor, rotation: Rotation) -> None:
    """Write `rotate(heads_LNH, rotation)` to `out_LNH`, memory of its own."""
    out_LNH.copy_(rounded_to(rotate(heads_LNH, rotation), out_LNH.dtype))


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(np.float16)


def _spread(first: int, last: int, count: int) -> list[int]:
    """`count` positions from `first` to `last`, end points included, truncated towards zero."""
    return np.linspace(first, last, count).astype(np.int64).tolist()
