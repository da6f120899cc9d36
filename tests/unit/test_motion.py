"""Latents to tokens and back, against strided convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from liveavatar.model.motion import FramePacker, PatchEmbedding, unpatch
from liveavatar.random_checkpoint import TINY
from tests.unit.tiny import randomised, seeded

# float32 sums of at most 16*4*8*8 = 4096 products with weights of 1/sqrt(4096).
ROUNDING = 1e-5


def convolved(embedding: PatchEmbedding, latent_CFHW: Tensor) -> Tensor:
    """The strided convolution in float64, tokens (L, D)."""
    channels = latent_CFHW.shape[0]
    kernel = embedding.weight.double().reshape(-1, channels, *embedding.patch)
    out = F.conv3d(
        latent_CFHW.double()[None], kernel, embedding.bias.double(), stride=embedding.patch
    )
    return out[0].flatten(1).T


@pytest.fixture(scope="module")
def packer() -> FramePacker:
    return randomised(FramePacker(TINY, torch.float32))


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 4, 4), (4, 8, 8)])
@pytest.mark.parametrize(("height", "width"), [(8, 16), (11, 9), (86, 46)])
def test_a_patch_embedding_is_a_strided_convolution(
    patch: tuple[int, int, int], height: int, width: int
) -> None:
    embedding = randomised(PatchEmbedding(16, 24, patch, torch.float32))
    latent = seeded(16, patch[0] * 2, height, width)
    ours, expected = embedding(latent), convolved(embedding, latent)
    assert ours.shape == expected.shape
    assert torch.allclose(ours.double(), expected, atol=ROUNDING)


def test_motion_is_packed_near_then_double_then_fourfold(packer: FramePacker) -> None:
    motion = seeded(16, 19, 16, 8)
    expected = torch.cat(
        [
            convolved(packer.proj, motion[:, 18:]),
            convolved(packer.proj_2x, motion[:, 16:18]),
            convolved(packer.proj_4x, motion[:, :16]),
        ]
    )
    assert expected.shape == (32 + 8 + 4 * 2, TINY.dim)
    assert torch.allclose(packer(motion).double(), expected, atol=ROUNDING)


@pytest.mark.parametrize("frames", [0, 1, 2, 7, 18])
def test_fewer_frames_are_preceded_by_zeros(packer: FramePacker, frames: int) -> None:
    motion = seeded(16, frames, 8, 8)
    padded = torch.cat([torch.zeros(16, 19 - frames, 8, 8), motion], dim=1)
    assert torch.equal(packer(motion), packer(padded))


def test_only_the_last_19_frames_count(packer: FramePacker) -> None:
    motion = seeded(16, 25, 8, 8)
    assert torch.equal(packer(motion), packer(motion[:, -19:]))
    changed = motion.clone()
    changed[:, 6] += 1
    assert not torch.equal(packer(changed), packer(motion))


def test_head_outputs_go_back_row_column_then_channel() -> None:
    frames, rows, columns, channels = 3, 2, 5, 4
    patches = seeded(frames * rows * columns, 4 * channels)
    latent = unpatch(patches, (frames, rows, columns), (1, 2, 2))
    assert latent.shape == (channels, frames, 2 * rows, 2 * columns)
    for f in range(frames):
        for i in range(rows):
            for j in range(columns):
                token = patches[(f * rows + i) * columns + j]
                for a in range(2):
                    for b in range(2):
                        pixel = latent[:, f, 2 * i + a, 2 * j + b]
                        start = (2 * a + b) * channels
                        assert torch.equal(pixel, token[start : start + channels])
