"""Attention in e4m3: what is kept, how far the result is off, what does not fit."""

import torch

from liveavatar.model.attention import KeyValue, attend
from liveavatar.model.fp8 import ATTENDED_SCALE, DTYPE, MAX, Fp8Linear
from liveavatar.model.fp8_attention import rounded_to
from liveavatar.model.kv_cache import CacheShape, ExactCache
from liveavatar.model.rope import Rotation
from tests.unit.test_kv_cache import opened
from tests.unit.tiny import randomised, seeded

HEADS, WIDTH = 2, 16


def test_what_is_too_large_becomes_the_largest_number() -> None:
    rounded = rounded_to(torch.tensor([1e4, -1e4, 3.3]), DTYPE)
    assert rounded.dtype == DTYPE
    assert rounded.float().tolist() == [MAX, -MAX, 3.25]
    wide = seeded(3)
    assert rounded_to(wide, torch.float32) is wide


def test_attention_is_off_by_what_e4m3_rounds() -> None:
    query, key, value = (
        seeded(count, HEADS, WIDTH, seed=seed) for seed, count in enumerate((5, 40, 40))
    )
    exact = attend(query, KeyValue(key, value))
    ours = attend(query.to(DTYPE), KeyValue(key.to(DTYPE), value.to(DTYPE)))
    assert ours.dtype == DTYPE
    off = ours.float() / ATTENDED_SCALE - exact
    assert 0.01 * exact.norm() < off.norm() < 0.08 * exact.norm()


def test_a_linear_layer_takes_what_attention_gives() -> None:
    linear = Fp8Linear(randomised(torch.nn.Linear(32, 24, dtype=torch.bfloat16)))
    tokens = seeded(7, 32)
    ours = linear(rounded_to(tokens * ATTENDED_SCALE, DTYPE)).float()
    wanted = linear(tokens.bfloat16()).float()
    assert (ours - wanted).norm() < 0.06 * wanted.norm()


def test_the_cache_rounds_blocks_and_keeps_conditions_as_they_came() -> None:
    shape = CacheShape(1, 4, 2, 3, 2)
    cache = ExactCache(shape, HEADS, WIDTH, dtype=torch.float32, device="cpu", kept=DTYPE)
    still = Rotation(torch.ones(2, WIDTH // 2), torch.zeros(2, WIDTH // 2))
    condition = KeyValue(seeded(4, HEADS, WIDTH, seed=1), seeded(4, HEADS, WIDTH, seed=2))
    cache.store_condition(0, condition, still)
    own = KeyValue(seeded(3, HEADS, WIDTH, seed=3), 1e4 * torch.ones(3, HEADS, WIDTH))
    view = opened(cache, 0, 0, 0, still, block_tokens=3)
    view.write(own)
    assert view.window.key_KNH.dtype == DTYPE
    expected = rounded_to(torch.cat([condition.key_KNH, own.key_KNH]), DTYPE)
    assert torch.equal(view.window.key_KNH.float(), expected.float())
    assert (view.window.value_KNH[4:].float() == MAX).all()
    kept = cache._versions.stored[0]
    assert torch.equal(kept.value_KNH, condition.value_KNH)
