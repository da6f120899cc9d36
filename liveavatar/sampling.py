"""Noise schedule, solver update, and the random numbers of a video as pure functions.

Nothing here has a state: noise and relative distances are functions of (seed, block, step), so that
any rank, or a resumed job, draws the same numbers alone.

Shapes: latents (C, F, H, W).

Source: Alibaba-Quark/LiveAvatar at 9c2c38d, flow matching with shift 3 and Euler updates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from liveavatar.model.upload import upload

TRAIN_TIMESTEPS = 1000
MIN_RELATIVE_DISTANCE, MAX_RELATIVE_DISTANCE = 4, 30
_MASK = 2**64 - 1


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the denoise steps.

    Attributes:
        sigmas: S+1 falling numbers, the first 1, the last 0.
        timesteps: S numbers in 0..1000.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def num_steps(self) -> int:
        """Denoise steps S."""
        return len(self.timesteps)


def make_schedule(num_steps: int, shift: float = 3.0) -> Schedule:
    """Space `num_steps` noise levels evenly before the shift, which the last one has had already.

    sigma = shift*u / (1 + (shift-1)*u), u from 1 down to the shifted 1/1000.
    """
    lowest = _shift(1 / TRAIN_TIMESTEPS, shift)
    even = [1 + (lowest - 1) * step / max(1, num_steps - 1) for step in range(num_steps)]
    sigmas = torch.tensor([_shift(level, shift) for level in even], dtype=torch.float32)
    return Schedule((*sigmas.tolist(), 0.0), tuple((sigmas * TRAIN_TIMESTEPS).tolist()))


def euler_step(sample: Tensor, velocity: Tensor, schedule: Schedule, step: int) -> Tensor:
    """Advance `sample` from noise level `step` to the next.

    Args:
        sample: noisy latent, any shape and float dtype.
        velocity: model output, same shape.
        schedule: noise levels.
        step: index of the level `sample` is at.

    Returns:
        sample + (sigma[step+1] - sigma[step]) * velocity: difference and product in the dtype of
        `velocity`, the sum in float32, the result in the dtype of `sample`.
    """
    sigmas = torch.tensor(schedule.sigmas[step : step + 2], dtype=torch.float32)
    difference = (sigmas[1] - sigmas[0]).to(velocity.dtype)
    return (sample.float() + difference * velocity).to(sample.dtype)


def relative_distance(seed: int, block_index: int, step: int) -> int:
    """Distance of the reference for one forward: uniform on 4..30, a hash of its arguments.

    The reference implementation draws it from an unseeded generator in every process; the
    distribution is the same.
    """
    span = MAX_RELATIVE_DISTANCE - MIN_RELATIVE_DISTANCE + 1
    return MIN_RELATIVE_DISTANCE + _hash(seed, block_index, step + 1) % span


def block_noise(
    seed: int,
    block_index: int,
    shape: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Draw the starting sample of a block: standard normal, (C, F, H, W).

    Drawn in float32 on the CPU by NumPy's counter-based Philox generator, which takes all of its
    key: torch's takes 32 bits of a seed, and in a two-hour video some block might repeat another's
    noise. A seed means the same video for any number of ranks and on every machine, up to the
    rounding of its logarithm.
    """
    key = (_hash(seed, block_index, 0), _hash(seed, block_index, -1 & _MASK))
    generator = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    noise = torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
    return upload(noise.to(dtype), device)


def _shift(level: float, shift: float) -> float:
    return shift * level / (1 + (shift - 1) * level)


def _hash(*numbers: int) -> int:
    """Mix whole numbers into 64 bits (SplitMix64 finaliser, Steele et al. 2014, per number)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
