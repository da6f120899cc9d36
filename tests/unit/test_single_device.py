"""Latents of one device: the refresh, what a block depends on, jobs that leave no trace.

Equality is exact wherever the same operations run on the same numbers, whoever runs them and when.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from liveavatar.config import FRAMES_PER_BLOCK
from liveavatar.model.denoiser import Item
from liveavatar.sampling import euler_step
from liveavatar.single_device import Draws, generate_latents, seeded_draws
from tests.unit import tiny
from tests.unit.rendered import (
    first_difference,
    frames,
    with_noise_changed_at,
    with_speech_changed_from,
)
from tests.unit.tiny import embedder, models

# The refresh.


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_reference_is_refreshed_at_the_end_of_the_first_clip_and_only_once(window: int) -> None:
    job = tiny.job(2 * window + 2, window=window)
    assert job.timeline.refresh_block == window
    one_clip = replace(job, timeline=replace(job.timeline, refresh_block=None))
    refreshed, kept = list(tiny.latents(job)), list(tiny.latents(one_clip))
    assert first_difference(refreshed, kept) == window


def test_the_condition_is_prefilled_at_the_start_and_at_the_refresh_and_never_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, prefills = tiny.stage(range(4)), []
    embed = whole.embed_condition

    def counted(reference_CFHW: Tensor, motion_CFHW: Tensor) -> Tensor:
        prefills.append(len(made))
        return embed(reference_CFHW, motion_CFHW)

    monkeypatch.setattr(whole, "embed_condition", counted)
    job = tiny.job(5, window=2)
    made: list[Tensor] = []
    networks = replace(models(), transformer=whole)
    for latent in generate_latents(networks, job.conditions, job.timeline, job.schedule, job.draws):
        made.append(latent)
    assert prefills == [0, 2]


def test_a_refresh_with_the_same_reference_changes_nothing() -> None:
    job = tiny.job(5, window=2)
    # Block 0 comes out as what it was when there are no steps: its noise is its final latent.
    noise = job.draws.noise(0)
    inputs = replace(job.conditions, reference_CFHW=noise[:, :1])
    still = replace(job, conditions=inputs, schedule=replace(job.schedule, sigmas=(0.0,) * 3))
    one_clip = replace(still, timeline=replace(still.timeline, refresh_block=None))
    assert torch.equal(next(tiny.latents(still)), noise)
    assert first_difference(list(tiny.latents(still)), list(tiny.latents(one_clip))) == 5


@torch.no_grad()
def test_the_refresh_reads_the_first_latent_frame_of_block_0_and_the_same_motion() -> None:
    job = tiny.job(3, window=2)
    expected = list(tiny.latents(job))
    state, whole = tiny.denoiser(job), tiny.transformer()
    motion = job.conditions.motion_CFHW
    state.prefill(whole.embed_condition(job.conditions.reference_CFHW, motion), 0)
    state.prefill(whole.embed_condition(expected[0][:, :1], motion), 1)
    for block in range(3):
        speech = job.conditions.speech_AV[:, 12 * block : 12 * block + 12]
        state.hear(block, embedder().audio_encoder.encode_block(speech))
        sample = job.draws.noise(block)
        for step in range(job.schedule.num_steps):
            item = Item(block, step, int(block >= 2), job.draws.distance(block, step))
            hidden = state.forward(whole.embed_block(sample), item)
            sample = euler_step(sample, state.head(hidden, step), job.schedule, step)
        assert torch.equal(sample, expected[block])


# What depends on what.


@pytest.mark.parametrize("block", range(4))
def test_later_noise_never_changes_earlier_latents(block: int) -> None:
    job = tiny.job(4)
    changed = with_noise_changed_at(job, block)
    assert first_difference(list(tiny.latents(job)), list(tiny.latents(changed))) == block


def test_a_block_hears_nothing_of_the_blocks_after_it() -> None:
    job = tiny.job(4)
    for block in range(4):
        changed = with_speech_changed_from(job, FRAMES_PER_BLOCK * block)
        ours, other = list(tiny.latents(job)), list(tiny.latents(changed))
        assert first_difference(ours, other) == block


def test_a_seed_makes_the_same_bytes_and_another_seed_another_video() -> None:
    job = tiny.job(3)
    first, again = (b"".join(p.numpy().tobytes() for p in tiny.latents(job)) for _ in range(2))
    assert first == again
    other = replace(job, draws=seeded_draws(1, job.conditions.reference_CFHW))
    assert not torch.equal(next(tiny.latents(other)), next(tiny.latents(job)))


def test_only_the_distances_of_a_seed_change_the_video_too() -> None:
    job = tiny.job(1)
    moved = replace(job, draws=Draws(job.draws.noise, lambda *_: 4))
    # Before block 10 the reference stands at 30 whatever the distance.
    assert torch.equal(next(tiny.latents(moved)), next(tiny.latents(job)))
    late = tiny.job(11)
    moved = replace(late, draws=Draws(late.draws.noise, lambda *_: 4))
    assert first_difference(list(tiny.latents(late)), list(tiny.latents(moved))) < 11


# Jobs.


def test_two_jobs_in_turns_are_the_two_jobs_alone() -> None:
    jobs = [tiny.job(4, seed=1), tiny.job(4, window=3, steps=3, seed=2)]
    alone = [list(tiny.latents(job)) for job in jobs]
    in_turns: list[list[Tensor]] = [[], []]
    streams: list[Iterator[Tensor]] = [tiny.latents(job) for job in jobs]
    for _ in range(4):
        for stream, made in zip(streams, in_turns, strict=True):
            made.append(next(stream))
    for ours, expected in zip(in_turns, alone, strict=True):
        assert first_difference(ours, expected) == 4


def test_a_job_leaves_the_weights_and_its_inputs_as_they_were() -> None:
    job = tiny.job(3)
    weights = {n: t.clone() for n, t in tiny.transformer().state_dict().items()}
    inputs = [t.clone() for t in vars(job.conditions).values()]
    frames(job)
    assert all(torch.equal(tiny.transformer().state_dict()[n], t) for n, t in weights.items())
    pairs = zip(vars(job.conditions).values(), inputs, strict=True)
    assert all(torch.equal(ours, before) for ours, before in pairs)


@torch.no_grad()
def test_a_denoiser_keeps_nothing_of_a_finished_block() -> None:
    job = tiny.job(6)
    state, whole = tiny.denoiser(job), tiny.transformer()
    inputs = job.conditions
    state.prefill(whole.embed_condition(inputs.reference_CFHW, inputs.motion_CFHW), 0)
    for block in range(6):
        state.hear(block, embedder().audio_encoder.encode_block(inputs.speech_AV[:, :12]))
        state.forward(whole.embed_block(job.draws.noise(block)), Item(block, 0, 0, 9))
        state.finish_block(block)
        assert not state._audio
        assert not state._block_rotations
