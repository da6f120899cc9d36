"""Rotary positions: where tokens stand, how far the reference is, what a turn does."""

import random

import numpy as np
import pytest
import torch

from liveavatar.model.motion import FramePacker
from liveavatar.model.rope import (
    Rotation,
    axis_widths,
    block_positions,
    condition_positions,
    grid_positions,
    motion_positions,
    reference_frame,
    rotate,
    rotation_at,
)
from liveavatar.random_checkpoint import TINY
from tests.unit.tiny import randomised, seeded

# cos and sin are rounded to float16: half of its spacing just below 1.
HALF_ULP = 2.0**-12


def turned_by(vector: torch.Tensor, frame: int, row: int = 0, column: int = 0) -> torch.Tensor:
    """Rotate one head vector (H,) as a token at that position."""
    rotation = rotation_at(grid_positions([frame], [row], [column]), vector.shape[0])
    return rotate(vector[None, None], rotation)[0, 0]


def test_a_head_of_128_is_split_into_44_42_42() -> None:
    assert axis_widths(128) == (44, 42, 42)


@pytest.mark.parametrize("head_dim", range(2, 258, 2))
def test_axis_widths_are_even_and_fill_the_head(head_dim: int) -> None:
    widths = axis_widths(head_dim)
    assert sum(widths) == head_dim
    assert all(width % 2 == 0 and width >= 0 for width in widths)
    assert widths[1] == widths[2] == 2 * (head_dim // 6)


def test_the_table_is_the_float64_angle_rounded_to_float16() -> None:
    positions = np.array([[0, 0, 0], [7, 3, 5], [-19, 2, 1], [44_000, 39, 23], [10**6, 0, 0]])
    table = rotation_at(positions, 128)
    assert table.cos_LR.dtype == table.sin_LR.dtype == torch.float32
    for row, (frame, line, column) in enumerate(positions):
        angles = [
            value * 10000.0 ** (-2 * pair / width)
            for value, width in zip((frame, line, column), (44, 42, 42), strict=True)
            for pair in range(width // 2)
        ]
        exact = np.exp(1j * np.array(angles))
        ours = table.cos_LR[row].numpy() + 1j * table.sin_LR[row].numpy()
        # 1e-9 covers the angle's own float64 rounding at frame 1e6.
        assert np.abs(ours.real - exact.real).max() <= HALF_ULP + 1e-9
        assert np.abs(ours.imag - exact.imag).max() <= HALF_ULP + 1e-9
    assert torch.equal(table.cos_LR, table.cos_LR.half().float())
    assert torch.equal(table.sin_LR, table.sin_LR.half().float())


def test_rotate_turns_adjacent_pairs_as_complex_numbers() -> None:
    heads = seeded(6, 2, 16)
    angles = seeded(6, 8, seed=1).double()
    rotation = Rotation(angles.cos().float(), angles.sin().float())
    pairs = torch.view_as_complex(heads.double().reshape(6, 2, 8, 2))
    unit = torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.view_as_real(pairs * unit).flatten(-2)
    # Two float32 products and a sum of numbers below 4.
    assert torch.allclose(rotate(heads, rotation).double(), expected, atol=1e-6)


def test_position_zero_turns_nothing_and_the_dtype_stays() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        vector = seeded(32).to(dtype)
        turned = turned_by(vector, 0)
        assert turned.dtype == dtype
        assert torch.equal(turned, vector)


def test_a_negative_frame_turns_the_other_way() -> None:
    forward = rotation_at(grid_positions([5], [0], [0]), 32)
    backward = rotation_at(grid_positions([-5], [0], [0]), 32)
    assert torch.equal(forward.cos_LR, backward.cos_LR)
    assert torch.equal(forward.sin_LR, -backward.sin_LR)


def test_attention_scores_depend_on_distances_only() -> None:
    query, key = seeded(128, seed=1), seeded(128, seed=2)
    near = turned_by(query, 12, 3, 1) @ turned_by(key, 7, 1, 4)
    far = turned_by(query, 40_012, 23, 31) @ turned_by(key, 40_007, 21, 34)
    # 64 pairs, each off by up to 2 float16 roundings of products of size about 1: a random sum.
    assert abs(near - far) < 8 * 2 * HALF_ULP * 4
    elsewhere = turned_by(query, 12, 3, 1) @ turned_by(key, 6, 1, 4)
    assert abs(near - elsewhere) > 0.1


def test_the_reference_is_ahead_by_30_less_the_start_or_by_its_distance() -> None:
    generator = random.Random(3)
    for _ in range(1000):
        start, distance = generator.randint(0, 200), generator.randint(4, 30)
        assert reference_frame(start, distance) - start == max(30 - start, distance)
    assert reference_frame(0, 30) == 30


def test_a_block_is_numbered_frame_then_row_then_column() -> None:
    expected = [[f, r, c] for f in (6, 7, 8) for r in range(4) for c in range(5)]
    assert block_positions(6, 3, 4, 5).tolist() == expected


def test_motion_stands_at_the_frames_of_the_release() -> None:
    positions = motion_positions(8, 4)
    near, double, fourfold = positions[:32], positions[32:40], positions[40:]
    assert near.tolist() == [[-1, r, c] for r in range(8) for c in range(4)]
    # Four of eight rows, end points included: 0, 2.33, 4.67, 7.
    assert double.tolist() == [[-3, r, c] for r in (0, 2, 4, 7) for c in (0, 3)]
    assert fourfold.tolist() == [[f, r, 0] for f in (-19, -14, -9, -4) for r in (0, 7)]


def test_motion_positions_match_the_packed_tokens_at_any_size() -> None:
    packer = randomised(FramePacker(TINY, torch.float32))
    for height in range(2, 25):
        for width in (2, 5, 16, 23):
            rows, columns = height // 2, width // 2
            tokens = packer(torch.zeros(16, 19, height, width))
            assert len(motion_positions(rows, columns)) == len(tokens)


def test_condition_tokens_are_the_reference_then_the_motion() -> None:
    positions = condition_positions(30, 4, 4)
    assert positions[:16].tolist() == [[30, r, c] for r in range(4) for c in range(4)]
    assert positions[16:].tolist() == motion_positions(4, 4).tolist()
