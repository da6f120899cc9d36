"""Frames of one device: they stream, and sound and picture are in their places.

Equality is exact wherever the same operations run on the same numbers, whoever runs them and when.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.model.vae_stream import decode, to_uint8
from liveavatar.single_device import (
    WARM_UP_LATENT_FRAMES,
    Draws,
    RenderOptions,
    VideoDecoder,
    render,
)
from liveavatar.timeline import HELD_FRAMES, make_timeline
from tests.unit import tiny
from tests.unit.rendered import (
    PORTRAIT,
    first_difference,
    frames,
    with_noise_changed_at,
    with_speech_changed_from,
)
from tests.unit.tiny import Job, models

# Streaming.


@pytest.mark.parametrize("block", [0, 1, 3])
def test_later_noise_never_changes_earlier_frames(block: int) -> None:
    job = tiny.job(4)
    expected = max(HELD_FRAMES, FRAMES_PER_BLOCK * block)
    changed = with_noise_changed_at(job, block)
    assert first_difference(frames(job), frames(changed)) == expected


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


def test_an_abandoned_job_leaves_no_trace_in_the_next() -> None:
    job = tiny.job(3)
    expected = frames(job)
    options = RenderOptions(job.schedule, job.draws)
    abandoned = render(models(), tiny.conditions(3, 5), PORTRAIT, job.timeline, options)
    next(abandoned)
    assert torch.equal(frames(job), expected)


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
