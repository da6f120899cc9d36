"""Videos of tiny jobs on one device, jobs with one input changed, and where two videos differ."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from liveavatar.single_device import Draws, RenderOptions, render
from tests.unit import tiny
from tests.unit.tiny import Job, models

PORTRAIT = (tiny.seeded(tiny.PIXEL_SIDE, tiny.PIXEL_SIDE, 3) * 40 + 128).to(torch.uint8)


def frames(job: Job, *, online_decode: bool = True) -> Tensor:
    """All frames of a job, (T, H, W, 3)."""
    options = RenderOptions(job.schedule, job.draws, online_decode=online_decode)
    parts = render(models(), job.conditions, PORTRAIT, job.timeline, options)
    return torch.cat(list(parts))


def with_speech_changed_from(job: Job, video_frame: int) -> Job:
    speech = job.conditions.speech_AV.clone()
    speech[:, video_frame:] = tiny.seeded(*speech[:, video_frame:].shape, seed=99)
    return replace(job, conditions=replace(job.conditions, speech_AV=speech))


def with_noise_changed_at(job: Job, block: int) -> Job:
    def noise(index: int) -> Tensor:
        drawn = job.draws.noise(index)
        return -drawn if index == block else drawn

    return replace(job, draws=Draws(noise, job.draws.distance))


def first_difference(ours: Sequence[Tensor] | Tensor, other: Sequence[Tensor] | Tensor) -> int:
    """Index of the first entry that differs; the length where none does."""
    same = [torch.equal(a, b) for a, b in zip(ours, other, strict=True)]
    return same.index(False) if False in same else len(same)
