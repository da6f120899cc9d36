"""Blocks in the order of a pipeline have the bits they have in sequence.

Equality is exact wherever the same operations run on the same numbers, whoever runs them and when.
"""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from liveavatar.model.denoiser import Denoiser, Item
from liveavatar.sampling import euler_step
from tests.unit import tiny
from tests.unit.rendered import first_difference
from tests.unit.tiny import Job, embedder


def entry_ticks(num_stages: int, num_steps: int) -> list[int]:
    """When the steps of a block enter stage 0, counted from its first."""
    ticks = [0]
    while len(ticks) < num_steps:
        tick = ticks[-1] + num_stages
        while tick % num_steps in {earlier % num_steps for earlier in ticks}:
            tick += 1
        ticks.append(tick)
    return ticks


def wavefront(job: Job, num_stages: int) -> list[tuple[int, int, int]]:
    """(tick, block, step) of every item at stage 0; late blocks wait for the refresh."""
    num_steps, window = job.schedule.num_steps, job.timeline.window_blocks
    offsets = entry_ticks(num_stages, num_steps)
    delay = 0
    while num_steps * window + delay < offsets[-1] + num_stages:
        delay += num_steps
    return sorted(
        (num_steps * block + offset + (delay if block >= window else 0), block, step)
        for block in range(job.timeline.num_blocks)
        for step, offset in enumerate(offsets)
    )


class PipelinedJob:
    """A job on stages of their own, each doing what the tick gives it."""

    def __init__(self, job: Job, split: Sequence[range]) -> None:
        self.job = job
        self.stages = [tiny.denoiser(job, tiny.stage(layers)) for layers in split]
        self.samples: dict[int, Tensor] = {}
        self.hidden: dict[tuple[int, int], Tensor] = {}
        self.done: list[Tensor] = []
        self.done_at: dict[int, int] = {}
        self.prefilling: Tensor | None = None
        self.order: list[str] = []

    def run(self) -> list[Tensor]:
        entries = wavefront(self.job, len(self.stages))
        at_stage = sorted(
            (tick + stage, stage, block, step)
            for tick, block, step in entries
            for stage in range(len(self.stages))
        )
        for stage in self.stages:
            self._prefill(stage, 0, self.job.conditions.reference_CFHW)
        for tick, stage_index, block, step in at_stage:
            self._refresh_if_due(tick, stage_index)
            self._forward(tick, stage_index, block, step)
        return self.done

    def _prefill(self, stage: Denoiser, version: int, reference_CFHW: Tensor) -> None:
        """Run one stage of a prefill; stages come in order."""
        if stage is self.stages[0]:
            motion = self.job.conditions.motion_CFHW
            self.prefilling = stage.transformer.embed_condition(reference_CFHW, motion)
        assert self.prefilling is not None
        self.prefilling = stage.prefill(self.prefilling, version)

    def _refresh_if_due(self, tick: int, stage_index: int) -> None:
        """Prefill version 1 on a stage as soon as block 0 is done and the stage before has."""
        if 0 in self.done_at and tick == self.done_at[0] + 1 + stage_index:
            key = f"refresh{stage_index}"
            if key not in self.order:
                self._prefill(self.stages[stage_index], 1, self.done[0][:, :1])
                self.order.append(key)

    def _forward(self, tick: int, stage_index: int, block: int, step: int) -> None:
        job, stage = self.job, self.stages[stage_index]
        if step == 0:
            speech = job.conditions.speech_AV[:, 12 * block : 12 * block + 12]
            stage.hear(block, embedder().audio_encoder.encode_block(speech))
        if stage_index == 0:
            sample = self.samples.setdefault(block, job.draws.noise(block))
            self.hidden[block, step] = stage.transformer.embed_block(sample)
        version = job.timeline.condition_version(block)
        item = Item(block, step, version, job.draws.distance(block, step))
        self.hidden[block, step] = stage.forward(self.hidden[block, step], item)
        self.order.append(f"version{version}")
        if stage_index == len(self.stages) - 1:
            velocity = stage.head(self.hidden.pop((block, step)), step)
            self.samples[block] = euler_step(self.samples[block], velocity, job.schedule, step)
        if step == job.schedule.num_steps - 1:
            stage.finish_block(block)
            if stage_index == len(self.stages) - 1:
                self.done.append(self.samples.pop(block))
                self.done_at[block] = tick


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [3, 4])
@pytest.mark.parametrize(
    "split", [(range(2), range(2, 4)), (range(1), range(1, 3), range(3, 4))], ids=["K2", "K3"]
)
def test_pipelined_order_gives_bitwise_the_latents_of_sequential_order(
    split: Sequence[range], num_steps: int
) -> None:
    job = tiny.job(7, window=3, steps=num_steps)
    pipelined = PipelinedJob(job, split)
    ours = pipelined.run()
    assert first_difference(ours, list(tiny.latents(job))) == 7
    # The claim is about a refresh in the middle: blocks of version 0 run on after it.
    last_refresh = pipelined.order.index(f"refresh{len(split) - 1}")
    assert "version0" in pipelined.order[last_refresh:]
    assert "version1" in pipelined.order[last_refresh:]


@pytest.mark.parametrize(("num_stages", "num_steps"), [*itertools.product(range(1, 6), (3, 4))])
def test_the_wavefront_of_these_tests_keeps_its_own_rules(num_stages: int, num_steps: int) -> None:
    job = tiny.job(9, window=3, steps=num_steps)
    entries = {(block, step): tick for tick, block, step in wavefront(job, num_stages)}
    assert len(set(entries.values())) == len(entries) == 9 * num_steps
    for (block, step), tick in entries.items():
        if step:
            assert tick >= entries[block, step - 1] + num_stages
        if block:
            assert tick > entries[block - 1, step]
        if block >= 3:
            assert tick >= entries[0, num_steps - 1] + num_stages
