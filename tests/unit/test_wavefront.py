"""The order of work, over many shapes of pipeline: played on imaginary stages, without tensors."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from liveavatar.parallel.wavefront import BlockStep, Pipeline, Prefill, Slot, schedule_video

SHAPES = list(itertools.product(range(1, 9), range(1, 9)))
VIDEOS = [(0, None), (1, None), (2, 5), (5, None), (9, 1), (9, 2), (9, 3), (12, 4), (20, 9)]

every_shape = pytest.mark.parametrize(("num_stages", "num_steps"), SHAPES)


def videos(pipeline: Pipeline) -> list[tuple[int, int | None, list[Slot]]]:
    return [
        (num_blocks, refresh, list(schedule_video(pipeline, num_blocks, refresh)))
        for num_blocks, refresh in VIDEOS
    ]


def items(slots: list[Slot]) -> dict[tuple[int, int], Slot]:
    """Slots of block steps by (block, step)."""
    return {(s.work.block, s.work.step): s for s in slots if isinstance(s.work, BlockStep)}


def prefill_ticks(slots: list[Slot]) -> dict[int, int]:
    return {slot.work.version: slot.tick for slot in slots if isinstance(slot.work, Prefill)}


@every_shape
def test_every_item_comes_once_and_nothing_else_does(num_stages: int, num_steps: int) -> None:
    for num_blocks, _, slots in videos(Pipeline(num_stages, num_steps)):
        worked = [(s.work.block, s.work.step) for s in slots if isinstance(s.work, BlockStep)]
        expected = itertools.product(range(num_blocks), range(num_steps))
        assert sorted(worked) == list(expected)


@every_shape
def test_a_stage_has_at_most_one_piece_of_work_per_tick(num_stages: int, num_steps: int) -> None:
    for _, _, slots in videos(Pipeline(num_stages, num_steps)):
        ticks = [slot.tick for slot in slots]
        assert all(earlier < later for earlier, later in itertools.pairwise(ticks))


@every_shape
def test_every_input_is_made_before_it_is_used(num_stages: int, num_steps: int) -> None:
    for _, _, slots in videos(Pipeline(num_stages, num_steps)):
        at = {key: slot.tick for key, slot in items(slots).items()}
        for (block, step), tick in at.items():
            if step:
                assert tick >= at[block, step - 1] + num_stages
            if block:
                assert tick > at[block - 1, step]


@every_shape
def test_blocks_read_the_condition_of_their_clip_after_its_prefill(
    num_stages: int, num_steps: int
) -> None:
    for num_blocks, refresh, slots in videos(Pipeline(num_stages, num_steps)):
        refreshes = refresh is not None and refresh < num_blocks
        prefills = prefill_ticks(slots)
        assert sorted(prefills) == [0, 1][: 1 + refreshes]
        for (block, _), slot in items(slots).items():
            assert isinstance(slot.work, BlockStep)
            assert slot.work.version == (refreshes and block >= refresh)
            assert slot.tick > prefills[slot.work.version]


@every_shape
def test_the_refresh_waits_for_the_end_of_block_0(num_stages: int, num_steps: int) -> None:
    for num_blocks, refresh, slots in videos(Pipeline(num_stages, num_steps)):
        if refresh is not None and refresh < num_blocks:
            finished = items(slots)[0, num_steps - 1].tick + num_stages
            assert prefill_ticks(slots)[1] >= finished


@every_shape
def test_the_refresh_waits_no_longer_than_it_must(num_stages: int, num_steps: int) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    for refresh in range(1, 12):
        slots = list(schedule_video(pipeline, 14, refresh))
        finished = items(slots)[0, num_steps - 1].tick + num_stages
        undelayed = 1 + num_steps * refresh
        assert prefill_ticks(slots)[1] - max(finished, undelayed) < num_steps


@every_shape
def test_no_tick_is_idle_in_steady_state(num_stages: int, num_steps: int) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    busy = {slot.tick for slot in schedule_video(pipeline, 40)}
    first_last_step, last_entry = 1 + pipeline.offsets[-1], 1 + num_steps * 39
    assert busy >= set(range(first_last_step, last_entry + num_steps))


@every_shape
def test_after_a_refresh_no_tick_is_idle_again(num_stages: int, num_steps: int) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    slots = list(schedule_video(pipeline, 40, 4))
    busy, restart = {slot.tick for slot in slots}, prefill_ticks(slots)[1]
    last_entry = items(slots)[39, 0].tick
    assert busy >= set(range(restart + 1 + pipeline.offsets[-1], last_entry + 1))


@every_shape
def test_a_block_takes_its_last_offset_and_the_way_through_the_stages(
    num_stages: int, num_steps: int
) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    at = items(list(schedule_video(pipeline, 6)))
    for block in range(6):
        took = at[block, num_steps - 1].tick + num_stages - at[block, 0].tick
        assert took == pipeline.offsets[-1] + num_stages == pipeline.latency


@every_shape
def test_blocks_in_flight_is_the_most_that_are_begun_and_not_finished(
    num_stages: int, num_steps: int
) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    at = items(list(schedule_video(pipeline, 30, 4)))
    begun = [at[block, 0].tick for block in range(30)]
    finished = [at[block, num_steps - 1].tick + num_stages for block in range(30)]
    in_flight = [
        sum(start <= tick < end for start, end in zip(begun, finished, strict=True))
        for tick in range(max(finished))
    ]
    assert max(in_flight) == pipeline.blocks_in_flight


@pytest.mark.parametrize(
    ("num_stages", "num_steps", "offsets", "in_flight"),
    [
        (1, 4, (0, 1, 2, 3), 1),
        (2, 4, (0, 2, 5, 7), 3),
        (3, 4, (0, 3, 6, 9), 3),
        (4, 4, (0, 5, 10, 15), 5),
        (5, 4, (0, 5, 10, 15), 5),
        (3, 3, (0, 4, 8), 4),
        (2, 3, (0, 2, 4), 2),
        (4, 3, (0, 4, 8), 4),
        (5, 3, (0, 5, 10), 5),
    ],
)
def test_offsets_are_those_of_the_specification(
    num_stages: int, num_steps: int, offsets: tuple[int, ...], in_flight: int
) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    assert pipeline.offsets == offsets
    assert pipeline.blocks_in_flight == in_flight


@pytest.mark.parametrize(("num_stages", "delay"), [(1, 0), (2, 0), (3, 0), (4, 4), (5, 4)])
def test_four_steps_and_four_blocks_per_clip_are_delayed_as_the_specification_says(
    num_stages: int, delay: int
) -> None:
    assert Pipeline(num_stages, 4).refresh_delay(4) == delay


def test_the_headline_layout_begins_like_this() -> None:
    first = list(itertools.islice(schedule_video(Pipeline(3, 4), 9, 4), 8))
    assert first == [
        Slot(0, Prefill(0)),
        Slot(1, BlockStep(0, 0, 0)),
        Slot(4, BlockStep(0, 1, 0)),
        Slot(5, BlockStep(1, 0, 0)),
        Slot(7, BlockStep(0, 2, 0)),
        Slot(8, BlockStep(1, 1, 0)),
        Slot(9, BlockStep(2, 0, 0)),
        Slot(10, BlockStep(0, 3, 0)),
    ]


def test_memory_of_a_schedule_does_not_grow_with_the_video() -> None:
    slots = schedule_video(Pipeline(3, 4), 100_000, 4)
    next(slots)
    tracemalloc.start()
    try:
        worked = sum(1 for _ in itertools.islice(slots, 20_000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert worked == 20_000
    assert peak < 20_000


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("num_steps", [1, 3, 4])
@pytest.mark.parametrize("first_block", [1, 3, 4, 5, 9])
def test_the_rest_of_a_video_is_the_same_work_in_the_same_order_from_its_first_block_on(
    num_stages: int, num_steps: int, first_block: int
) -> None:
    pipeline = Pipeline(num_stages, num_steps)
    rest = list(schedule_video(pipeline, 10, 4, first_block))
    whole = [slot.work for slot in schedule_video(pipeline, 10, 4)]
    items = [slot.work for slot in rest if isinstance(slot.work, BlockStep)]
    # Within each step the blocks come in order, with the condition they have in the whole video.
    for step in range(num_steps):
        assert [item for item in items if item.step == step] == [
            item
            for item in whole
            if isinstance(item, BlockStep) and item.step == step and item.block >= first_block
        ]
    prefilled: set[int] = set()
    for slot in rest:
        if isinstance(slot.work, Prefill):
            prefilled.add(slot.work.version)
        else:
            assert slot.work.version in prefilled
    assert prefilled == {item.version for item in items}
    ticks = [slot.tick for slot in rest]
    assert ticks == sorted(set(ticks))
    assert ticks[0] == 0
