"""Noise levels, the solver, and random numbers that depend on their arguments alone."""

import math

import pytest
import torch

from liveavatar.sampling import (
    MAX_RELATIVE_DISTANCE,
    MIN_RELATIVE_DISTANCE,
    block_noise,
    euler_step,
    make_schedule,
    relative_distance,
)
from tests.unit.tiny import seeded

CPU = torch.device("cpu")
# Seed 420, blocks 0..2, steps 0..3: pure integer arithmetic, the same everywhere.
PINNED_DISTANCES = [25, 21, 30, 8, 28, 27, 12, 4, 27, 27, 11, 4]
PINNED_LAST = 16
PINNED_NOISE = [0.781325, 0.335010, -0.012973, 0.385734]


@pytest.mark.parametrize(
    ("num_steps", "sigmas"),
    [
        (4, (1.0, 0.8576923, 0.6021506, 0.0089286, 0.0)),
        (3, (1.0, 0.7511211, 0.0089286, 0.0)),
        (1, (1.0, 0.0)),
    ],
)
def test_noise_levels_of_the_released_schedules(num_steps: int, sigmas: tuple[float, ...]) -> None:
    schedule = make_schedule(num_steps)
    assert schedule.sigmas == pytest.approx(sigmas, abs=5e-8)
    assert schedule.timesteps == pytest.approx([1000 * s for s in sigmas[:-1]], abs=5e-5)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_noise_levels_fall_from_one_to_zero_for_any_number_of_steps(shift: float) -> None:
    for num_steps in range(1, 51):
        schedule = make_schedule(num_steps, shift)
        assert schedule.num_steps == num_steps == len(schedule.sigmas) - 1
        assert schedule.sigmas[0] == 1.0
        assert schedule.sigmas[-1] == 0.0
        assert all(a > b for a, b in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))


def test_euler_with_the_exact_velocity_arrives_at_the_data() -> None:
    clean, noise = seeded(16, 3, 4, 4, seed=1), seeded(16, 3, 4, 4, seed=2)
    schedule = make_schedule(4)
    sample = noise
    for step in range(4):
        sample = euler_step(sample, noise - clean, schedule, step)
    # Four float32 updates of numbers below 5.
    assert torch.allclose(sample, clean, atol=2e-6)


def test_euler_multiplies_in_the_velocity_dtype_and_adds_in_float32() -> None:
    schedule = make_schedule(4)
    sample = seeded(16, 3, 4, 4, seed=1).bfloat16()
    velocity = seeded(16, 3, 4, 4, seed=2).bfloat16()
    for step in range(4):
        difference = torch.tensor(schedule.sigmas[step + 1]) - torch.tensor(schedule.sigmas[step])
        product = difference.bfloat16() * velocity
        assert product.dtype == torch.bfloat16
        ours = euler_step(sample, velocity, schedule, step)
        assert torch.equal(ours, (sample.double() + product.double()).float().bfloat16())


def test_relative_distances_are_the_same_on_every_machine() -> None:
    draws = [relative_distance(420, block, step) for block in range(3) for step in range(4)]
    assert draws == PINNED_DISTANCES
    assert relative_distance(2**63 - 1, 100_000, 49) == PINNED_LAST


def test_relative_distance_is_uniform_from_4_to_30() -> None:
    span = MAX_RELATIVE_DISTANCE - MIN_RELATIVE_DISTANCE + 1
    assert (MIN_RELATIVE_DISTANCE, MAX_RELATIVE_DISTANCE, span) == (4, 30, 27)
    for seed in (0, 420, 2**40):
        counts = [0] * 31
        for block in range(1000):
            for step in range(27):
                counts[relative_distance(seed, block, step)] += 1
        assert sum(counts[:4]) == 0
        # 27 bins of 1000 expected: chi-square has mean 26 and deviation 7.2; 62 is 5 deviations up.
        assert sum((count - 1000) ** 2 / 1000 for count in counts[4:]) < 62


def test_relative_distances_of_steps_blocks_and_seeds_are_unrelated() -> None:
    def correlation(pairs: list[tuple[int, int]]) -> float:
        both = torch.tensor(pairs, dtype=torch.float64).T
        return float(torch.corrcoef(both)[0, 1])

    blocks = range(4000)
    here = [relative_distance(1, block, 0) for block in blocks]
    others = (
        [relative_distance(1, block, 1) for block in blocks],
        [relative_distance(1, block + 1, 0) for block in blocks],
        [relative_distance(2, block, 0) for block in blocks],
    )
    for other in others:
        # Deviation of the correlation of 4000 unrelated pairs: 0.016.
        assert abs(correlation(list(zip(here, other, strict=True)))) < 0.08


def noise(seed: int, block: int, shape: tuple[int, ...] = (16, 3, 32, 32)) -> torch.Tensor:
    return block_noise(seed, block, shape, dtype=torch.float32, device=CPU)


def test_block_noise_is_a_function_of_seed_and_block() -> None:
    torch.manual_seed(0)
    first = noise(420, 3)
    torch.manual_seed(99)
    noise(420, 2)
    assert torch.equal(noise(420, 3), first)
    assert not torch.equal(noise(421, 3), first)
    assert not torch.equal(noise(420, 4), first)


def test_block_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    noise(420, 0)
    assert torch.equal(torch.rand(3), expected)


def test_block_noise_is_standard_normal() -> None:
    values = torch.stack([noise(1, block) for block in range(8)]).double()
    count = values.numel()  # 393216
    # Five standard errors of each moment.
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)


def test_block_noise_of_blocks_and_seeds_is_unrelated() -> None:
    drawn = [noise(seed, block).flatten() for seed in (0, 1) for block in range(6)]
    correlation = torch.corrcoef(torch.stack(drawn).double()) - torch.eye(len(drawn))
    assert correlation.abs().max() < 5 / math.sqrt(drawn[0].numel())


def test_block_noise_in_bfloat16_is_the_rounded_float32_noise() -> None:
    shape = (16, 3, 8, 8)
    drawn = block_noise(420, 1, shape, dtype=torch.bfloat16, device=CPU)
    assert torch.equal(drawn, noise(420, 1, shape).bfloat16())


def test_a_seed_keeps_its_meaning() -> None:
    # 1e-5: the sines and logarithms of another machine may differ in the last bits.
    assert noise(420, 0).flatten()[:4].tolist() == pytest.approx(PINNED_NOISE, abs=1e-5)
