"""The buffer [condition | ring]: what a block sees, what it overwrites, which version it reads.

Buffers are filled with NaN first, so that reading a part that nobody wrote shows.
"""

import pytest
import torch
from torch import Tensor

from liveavatar.model.attention import KeyValue, attend
from liveavatar.model.kv_cache import CacheShape, CacheView, ExactCache, LayerCache
from liveavatar.model.rope import Rotation, grid_positions, rotate, rotation_at
from tests.unit.tiny import seeded

HEADS, HEAD_DIM = 2, 16
REFERENCE, MOTION, BLOCK = 4, 5, 6
STEPS = 2
# float32 attention over at most 30 keys.
ROUNDING = 1e-5


def shape(window: int) -> CacheShape:
    return CacheShape(STEPS, REFERENCE + MOTION, REFERENCE, BLOCK, window)


def tokens(count: int, seed: int) -> KeyValue:
    return KeyValue(
        seeded(count, HEADS, HEAD_DIM, seed=2 * seed),
        seeded(count, HEADS, HEAD_DIM, seed=2 * seed + 1),
    )


def rotation(frame: int, count: int) -> Rotation:
    return rotation_at(grid_positions([frame], [0], range(count)), HEAD_DIM)


MOTION_ROTATION = rotation(-1, MOTION)


def poisoned_cache(window: int) -> ExactCache:
    cache = ExactCache(shape(window), HEADS, HEAD_DIM, dtype=torch.float32, device="cpu")
    cache.key_SKNH.fill_(float("nan"))
    cache.value_SKNH.fill_(float("nan"))
    return cache


def forward(
    cache: ExactCache, block: int, *, step: int = 0, version: int = 0, reference: int = 30
) -> Tensor:
    """One forward of a layer: write the block's own tokens, attend to the window."""
    own = tokens(BLOCK, seed=100 * (step + 1) + block)
    view = opened(cache, block, step, version, rotation(reference, REFERENCE))
    view.write(own)
    return attend(query(block, step), view.window)


def opened(
    cache: LayerCache,
    block: int,
    step: int,
    version: int,
    reference: Rotation,
    block_tokens: int = BLOCK,
) -> CacheView:
    """Prepare a forward as a denoiser does."""
    rows_T = torch.empty(block_tokens, dtype=torch.int64)
    cache.shape.put_rows(block, rows_T)
    cache.use_condition(step, version)
    return cache.open(cache.shape.phase(step, block, version), rows_T, reference)


def query(block: int, step: int) -> Tensor:
    return seeded(BLOCK, HEADS, HEAD_DIM, seed=50 + 10 * block + step)


def expected(
    condition: KeyValue, block: int, window: int, *, step: int = 0, reference: int = 30
) -> Tensor:
    """Full attention over [condition | last `window` blocks], concatenated, in float64."""
    turned = [
        rotate(condition.key_KNH[:REFERENCE], rotation(reference, REFERENCE)),
        rotate(condition.key_KNH[REFERENCE:], MOTION_ROTATION),
    ]
    seen = [
        tokens(BLOCK, seed=100 * (step + 1) + earlier)
        for earlier in range(max(0, block - window + 1), block + 1)
    ]
    key = torch.cat([*turned, *(kv.key_KNH for kv in seen)]).double()
    value = torch.cat([condition.value_KNH, *(kv.value_KNH for kv in seen)]).double()
    scores = torch.einsum("lnh,knh->nlk", query(block, step).double(), key) / HEAD_DIM**0.5
    return torch.einsum("nlk,knh->lnh", scores.softmax(-1), value).flatten(1)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_block_attends_to_the_condition_and_the_last_blocks_only(window: int) -> None:
    cache, condition = poisoned_cache(window), tokens(REFERENCE + MOTION, seed=1)
    cache.store_condition(0, condition, MOTION_ROTATION)
    for block in range(3 * window + 2):
        for step in range(STEPS):
            reference = 30 + 7 * block + step
            ours = forward(cache, block, step=step, reference=reference)
            wanted = expected(condition, block, window, step=step, reference=reference)
            assert torch.allclose(ours.double(), wanted, atol=ROUNDING)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_slots_wrap_over_the_block_that_left_the_window(window: int) -> None:
    sizes = shape(window)
    assert sizes.tokens == REFERENCE + MOTION + window * BLOCK
    for block in range(3 * window):
        slot = sizes.slot(block)
        assert slot.stop - slot.start == BLOCK
        assert slot == sizes.slot(block + window)
        inside = {sizes.slot(b).start for b in range(block, block + window)}
        assert inside == {REFERENCE + MOTION + i * BLOCK for i in range(window)}
        valid = sizes.valid_tokens(sizes.phase(0, block, 0))
        assert slot.stop <= valid
        assert valid == REFERENCE + MOTION + min(block + 1, window) * BLOCK


def test_a_forward_writes_nothing_but_its_slot_and_the_condition() -> None:
    cache = poisoned_cache(3)
    cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), MOTION_ROTATION)
    forward(cache, 0, step=1)
    untouched = cache.key_SKNH[1, shape(3).slot(1).start :]
    assert untouched.isnan().all()
    assert cache.key_SKNH[0].isnan().all()


def test_a_reference_turned_twice_stands_where_the_last_turn_says() -> None:
    turned_twice, turned_once = poisoned_cache(2), poisoned_cache(2)
    for cache in (turned_twice, turned_once):
        cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), MOTION_ROTATION)
    forward(turned_twice, 0, reference=37)
    assert torch.equal(
        forward(turned_twice, 0, reference=52), forward(turned_once, 0, reference=52)
    )


def test_a_refresh_reaches_each_step_when_it_gets_to_the_new_version() -> None:
    cache, window = poisoned_cache(2), 2
    old, new = (tokens(REFERENCE + MOTION, seed=seed) for seed in (1, 2))
    cache.store_condition(0, old, MOTION_ROTATION)
    order = [(0, 0), (0, 1), (1, 0)]
    for block, step in order:
        forward(cache, block, step=step)
    # Version 1 arrives while block 1 still has its last step to do with version 0.
    cache.store_condition(1, new, MOTION_ROTATION)
    late = [(2, 0, 1), (1, 1, 0), (3, 0, 1), (2, 1, 1)]
    for block, step, version in late:
        ours = forward(cache, block, step=step, version=version)
        wanted = expected((old, new)[version], block, window, step=step)
        assert torch.allclose(ours.double(), wanted, atol=ROUNDING)


def test_the_ring_goes_on_over_a_refresh() -> None:
    cache = poisoned_cache(2)
    cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), MOTION_ROTATION)
    forward(cache, 0)
    forward(cache, 1)
    before = cache.key_SKNH[0, shape(2).slot(1)].clone()
    cache.store_condition(1, tokens(REFERENCE + MOTION, seed=2), MOTION_ROTATION)
    forward(cache, 2, version=1)
    assert torch.equal(cache.key_SKNH[0, shape(2).slot(1)], before)


def test_nothing_moves_in_memory_from_job_to_job() -> None:
    cache = poisoned_cache(2)
    addresses = []
    for seed in (1, 2):
        for version in (0, 1):
            condition = tokens(REFERENCE + MOTION, seed=2 * seed + version)
            cache.store_condition(version, condition, MOTION_ROTATION)
            ours = forward(cache, version, version=version)
            assert torch.allclose(ours.double(), expected(condition, version, 2), atol=ROUNDING)
        stored = cache._versions.stored.values()
        addresses.append([kv.key_KNH.data_ptr() for kv in stored])
        cache.forget()
    assert addresses[0] == addresses[1]


def test_a_version_that_comes_before_all_steps_have_begun_drops_nothing() -> None:
    cache = poisoned_cache(1)
    cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), MOTION_ROTATION)
    forward(cache, 0, step=0)
    cache.store_condition(1, tokens(REFERENCE + MOTION, seed=2), MOTION_ROTATION)
    forward(cache, 1, step=0, version=1)
    assert forward(cache, 0, step=1, version=0).isfinite().all()


def test_a_stored_condition_is_a_copy() -> None:
    cache, condition = poisoned_cache(1), tokens(REFERENCE + MOTION, seed=1)
    original = tokens(REFERENCE + MOTION, seed=1)
    cache.store_condition(0, condition, MOTION_ROTATION)
    assert torch.equal(condition.key_KNH, original.key_KNH)
    condition.key_KNH.zero_()
    condition.value_KNH.zero_()
    wanted = expected(original, 0, 1)
    assert torch.allclose(forward(cache, 0).double(), wanted, atol=ROUNDING)
