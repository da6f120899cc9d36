"""The whole path: order of work, streaming, sound and picture, jobs that leave no trace.

Equality is exact wherever the same operations run on the same numbers, whoever runs them and when.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.model.denoiser import Denoiser, Item
from liveavatar.model.vae_stream import decode, to_uint8
from liveavatar.sampling import euler_step
from liveavatar.single_device import (
    WARM_UP_LATENT_FRAMES,
    Draws,
    RenderOptions,
    VideoDecoder,
    generate_latents,
    render,
    seeded_draws,
)
from liveavatar.timeline import HELD_FRAMES, make_timeline
from tests.unit import tiny
from tests.unit.tiny import Job, embedder, models

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


# Pipelined order.


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


# Streaming.


@pytest.mark.parametrize("block", range(4))
def test_later_noise_never_changes_earlier_latents(block: int) -> None:
    job = tiny.job(4)
    changed = with_noise_changed_at(job, block)
    assert first_difference(list(tiny.latents(job)), list(tiny.latents(changed))) == block


@pytest.mark.parametrize("block", [0, 1, 3])
def test_later_noise_never_changes_earlier_frames(block: int) -> None:
    job = tiny.job(4)
    expected = max(HELD_FRAMES, FRAMES_PER_BLOCK * block)
    changed = with_noise_changed_at(job, block)
    assert first_difference(frames(job), frames(changed)) == expected


def test_a_block_hears_nothing_of_the_blocks_after_it() -> None:
    job = tiny.job(4)
    for block in range(4):
        changed = with_speech_changed_from(job, FRAMES_PER_BLOCK * block)
        ours, other = list(tiny.latents(job)), list(tiny.latents(changed))
        assert first_difference(ours, other) == block


def test_blocks_leave_as_they_are_made_and_the_first_latent_by_latent() -> None:
    job = tiny.job(4)
    asked_for: list[int] = []

    def noise(block: int) -> Tensor:
        asked_for.append(block)
        return job.draws.noise(block)

    options = RenderOptions(job.schedule, Draws(noise, job.draws.distance))
    stream = render(models(), job.conditions, PORTRAIT, job.timeline, options)
    for _ in range(3):
        assert len(next(stream)) == FRAMES_PER_BLOCK // 3
        assert asked_for == [0]
    for block in range(1, 4):
        assert len(next(stream)) == FRAMES_PER_BLOCK
        assert asked_for == list(range(block + 1))


@pytest.mark.parametrize(("num_blocks", "window"), [(1, 2), (4, 2), (5, 2), (5, 3)])
def test_decoding_online_or_clip_by_clip_shows_the_same_frames(
    num_blocks: int, window: int
) -> None:
    job = tiny.job(num_blocks, window=window)
    online, by_clip = frames(job).int(), frames(job, online_decode=False).int()
    # Convolutions over more frames at once may add in another order: at most one level, and that
    # only where a value stood at the border of two.
    assert (online - by_clip).abs().max() <= 1
    assert (online != by_clip).float().mean() < 1e-3


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


def test_an_abandoned_job_leaves_no_trace_in_the_next() -> None:
    job = tiny.job(3)
    expected = frames(job)
    options = RenderOptions(job.schedule, job.draws)
    abandoned = render(models(), tiny.conditions(3, 5), PORTRAIT, job.timeline, options)
    next(abandoned)
    assert torch.equal(frames(job), expected)


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


# Sound and picture.


@pytest.mark.parametrize("online_decode", [True, False])
def test_the_video_begins_with_the_portrait_held_for_three_frames(online_decode: bool) -> None:
    shown = frames(tiny.job(2), online_decode=online_decode)
    assert shown.dtype == torch.uint8
    assert HELD_FRAMES == 3
    for frame in shown[:3]:
        assert torch.equal(frame, PORTRAIT)
    assert not torch.equal(shown[3], PORTRAIT)


@torch.no_grad()
def test_frame_k_of_the_model_is_frame_k_plus_three_of_the_video() -> None:
    job = tiny.job(3)
    warm_up = job.conditions.motion_CFHW[:, :WARM_UP_LATENT_FRAMES]
    whole = decode(models().decoder, torch.cat([warm_up, *tiny.latents(job)], dim=1))
    made = to_uint8(whole[:, 4 * WARM_UP_LATENT_FRAMES - 3 :])
    assert len(made) == 3 * FRAMES_PER_BLOCK
    of_the_model = made[3:]  # the reference throws the first three away
    shown = frames(job)
    assert len(shown) == len(of_the_model) + 3
    difference = (shown[3:].int() - of_the_model.int()).abs()
    # Decoded in other portions: see the test of online decoding.
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("video_frame", [0, 5, 11, 12, 23, 36, 47])
def test_a_sound_changes_no_frame_before_its_own_block(video_frame: int) -> None:
    job = tiny.job(4)
    changed = with_speech_changed_from(job, video_frame)
    first = first_difference(frames(job), frames(changed))
    block_start = video_frame // FRAMES_PER_BLOCK * FRAMES_PER_BLOCK
    # A block is denoised as a whole: its first frame sees what its last frame hears.
    assert first == max(HELD_FRAMES, block_start)


@pytest.mark.parametrize("online_decode", [True, False])
@pytest.mark.parametrize("num_frames", [1, 3, 4, 12, 13, 24, 31])
def test_the_video_has_the_frames_of_its_timeline(num_frames: int, online_decode: bool) -> None:
    sampling = SamplingConfig(num_steps=1, infer_frames=24, num_clip=10)
    timeline = make_timeline(sampling, num_frames * 640)
    assert timeline.num_frames == num_frames
    job = replace(tiny.job(timeline.num_blocks, steps=1), timeline=timeline)
    shown = frames(job, online_decode=online_decode)
    assert shown.shape == (num_frames, tiny.PIXEL_SIDE, tiny.PIXEL_SIDE, 3)


def test_a_trimmed_video_is_the_start_of_the_whole_one() -> None:
    job = tiny.job(3)
    trimmed = replace(job, timeline=replace(job.timeline, num_frames=29))
    assert torch.equal(frames(trimmed), frames(job)[:29])


def video_decoder(job: Job) -> VideoDecoder:
    motion = job.conditions.motion_CFHW
    return VideoDecoder(models().decoder, motion, PORTRAIT, job.timeline.num_frames)


def test_decoding_drops_the_first_three_frames_only() -> None:
    decoder = video_decoder(tiny.job(3))
    assert [decoder.pixels(latent).shape[1] for latent in tiny.latents(tiny.job(3))] == [9, 12, 12]


def test_a_decoder_that_goes_on_from_a_snapshot_gives_the_same_frames() -> None:
    job = replace(tiny.job(4), timeline=replace(tiny.job(4).timeline, num_frames=45))
    latents = list(tiny.latents(job))
    first, again = video_decoder(job), video_decoder(job)
    for latent in latents[:2]:
        first.frames(latent)
    again.restore(first.snapshot(), 24)
    assert again.remaining == first.remaining == 21
    for latent in latents[2:]:
        assert torch.equal(again.frames(latent), first.frames(latent))


def test_two_videos_decoded_in_turns_are_the_two_alone() -> None:
    jobs = [tiny.job(2, seed=1), tiny.job(2, seed=2)]
    expected = [frames(job) for job in jobs]
    decoders = [video_decoder(job) for job in jobs]
    parts: list[list[Tensor]] = [[], []]
    for pair in zip(*(tiny.latents(job) for job in jobs), strict=True):
        for decoder, latent, own in zip(decoders, pair, parts, strict=True):
            own.extend(decoder.pieces(latent))
    assert all(torch.equal(torch.cat(own), one) for own, one in zip(parts, expected, strict=True))


def test_a_decoder_counts_the_frames_that_are_left() -> None:
    job = replace(tiny.job(2), timeline=replace(tiny.job(2).timeline, num_frames=17))
    decoder, left = video_decoder(job), []
    for latent in tiny.latents(job):
        decoder.frames(latent)
        left.append(decoder.remaining)
    assert left == [5, 0]
