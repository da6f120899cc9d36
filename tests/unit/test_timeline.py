"""Frames and blocks of a video, over random lengths."""

import math
import random
from fractions import Fraction

from liveavatar.config import FRAMES_PER_BLOCK, SamplingConfig
from liveavatar.timeline import Timeline, make_timeline

SAMPLES_PER_FRAME = 640


def random_timelines(count: int = 2000) -> list[tuple[SamplingConfig, int, Timeline]]:
    generator = random.Random(5)
    cases = []
    for _ in range(count):
        sampling = SamplingConfig(
            infer_frames=4 * generator.randint(3, 30), num_clip=generator.randint(1, 60)
        )
        samples = generator.choice((generator.randint(1, 5000), generator.randint(1, 2_000_000)))
        cases.append((sampling, samples, make_timeline(sampling, samples)))
    return cases


def test_the_video_ends_with_the_speech_or_with_the_clips_asked_for() -> None:
    for sampling, samples, timeline in random_timelines():
        spoken = math.ceil(Fraction(samples, SAMPLES_PER_FRAME))
        assert timeline.num_frames == min(sampling.num_clip * sampling.infer_frames, spoken)


def test_blocks_cover_the_video_and_only_the_last_is_trimmed() -> None:
    for _, _, timeline in random_timelines():
        per_block = [timeline.frames_of_block(block) for block in range(timeline.num_blocks)]
        assert sum(per_block) == timeline.num_frames
        assert set(per_block[:-1]) <= {FRAMES_PER_BLOCK}
        assert 1 <= per_block[-1] <= FRAMES_PER_BLOCK


def test_conditions_are_refreshed_at_the_window_and_only_with_a_second_clip() -> None:
    seen = set()
    for sampling, _, timeline in random_timelines():
        has_second_clip = timeline.num_frames > sampling.infer_frames
        versions = [timeline.condition_version(block) for block in range(timeline.num_blocks)]
        expected = [
            int(has_second_clip and block >= sampling.infer_frames // FRAMES_PER_BLOCK)
            for block in range(timeline.num_blocks)
        ]
        assert versions == expected
        assert (timeline.refresh_block is not None) == has_second_clip
        seen.add(has_second_clip)
    assert seen == {False, True}


def test_one_sample_of_speech_is_one_frame_and_a_started_frame_is_kept() -> None:
    sampling = SamplingConfig(num_clip=10)
    assert make_timeline(sampling, 1).num_frames == 1
    assert make_timeline(sampling, SAMPLES_PER_FRAME).num_frames == 1
    assert make_timeline(sampling, SAMPLES_PER_FRAME + 1).num_frames == 2


def test_a_day_of_speech_is_counted_exactly() -> None:
    sampling = SamplingConfig(num_clip=100_000)
    for samples in (24 * 3600 * 16_000, 24 * 3600 * 16_000 + 1):
        expected = -(-samples // SAMPLES_PER_FRAME)
        assert make_timeline(sampling, samples).num_frames == expected
