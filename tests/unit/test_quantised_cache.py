"""Keys and values in 8 bits: how far off they are, and what a block sees of them."""

import pytest
import torch
from torch import Tensor

from liveavatar.config import LATENT_FRAMES_PER_BLOCK
from liveavatar.model.attention import KeyValue, attend
from liveavatar.model.denoiser import Denoiser, TokenGrid
from liveavatar.model.fp8 import quantise
from liveavatar.model.kv_cache import CacheShape, ExactCache
from liveavatar.model.quantised_cache import LARGEST, Int8, QuantisedCache
from liveavatar.model.rope import Rotation, grid_positions, rotation_at
from liveavatar.random_checkpoint import TINY
from liveavatar.single_device import Models, generate_latents
from tests.unit import tiny
from tests.unit.test_kv_cache import opened
from tests.unit.tiny import seeded

HEADS, HEAD_DIM = 2, 128
REFERENCE, MOTION, BLOCK = 4, 5, 6
STEPS = 2
# A normal vector of 128 has its largest value near 2.7; steps of 2.7/127 are off by 1/sqrt(12) of
# themselves in the mean square: 0.6 %.
VECTOR_ERROR = 0.008


def shape(window: int) -> CacheShape:
    return CacheShape(STEPS, REFERENCE + MOTION, REFERENCE, BLOCK, window)


def tokens(count: int, seed: int) -> KeyValue:
    return KeyValue(
        seeded(count, HEADS, HEAD_DIM, seed=2 * seed),
        seeded(count, HEADS, HEAD_DIM, seed=2 * seed + 1),
    )


def rotation(frame: int, count: int) -> Rotation:
    return rotation_at(grid_positions([frame], [0], range(count)), HEAD_DIM)


def poisoned(window: int) -> QuantisedCache:
    size = (shape(window).tokens, HEADS, HEAD_DIM)
    workspace = KeyValue(torch.full(size, torch.nan), torch.full(size, torch.nan))
    cache = QuantisedCache(shape(window), workspace)
    for part in (cache.ring.key, cache.ring.value):
        part.scale.fill_(torch.nan)
    return cache


def exact(window: int) -> ExactCache:
    return ExactCache(shape(window), HEADS, HEAD_DIM, dtype=torch.float32, device="cpu")


def window_of(
    cache: QuantisedCache | ExactCache, block: int, *, step: int = 0, version: int = 0
) -> KeyValue:
    view = opened(cache, block, step, version, rotation(30 + block, REFERENCE))
    view.write(tokens(BLOCK, seed=100 * (step + 1) + block))
    return view.window


def relative_error(ours: Tensor, wanted: Tensor) -> float:
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm())


def stored(vectors: Tensor) -> Int8:
    int8 = Int8(
        torch.empty(vectors.shape, dtype=torch.int8),
        torch.empty((*vectors.shape[:-1], 1), dtype=torch.bfloat16),
    )
    int8.store(vectors)
    return int8


def restored(vectors: Tensor) -> Tensor:
    out = torch.empty_like(vectors)
    stored(vectors).restore(out)
    return out


@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e4, 1e30])
def test_values_come_back_within_half_a_step_of_their_vector(size: float) -> None:
    vectors = seeded(20, HEADS, HEAD_DIM) * size
    step = vectors.abs().amax(-1, keepdim=True) / LARGEST
    off = (restored(vectors) - vectors).abs()
    assert (off <= 0.76 * step).all(), "half a step, and a quarter for the scale's rounding"
    assert relative_error(restored(vectors), vectors) < VECTOR_ERROR


def test_int8_with_a_scale_per_vector_is_closer_than_e4m3() -> None:
    vectors = seeded(20, HEADS, HEAD_DIM)
    e4m3 = quantise(vectors)
    assert 3 * relative_error(restored(vectors), vectors) < relative_error(
        e4m3.values.float() * e4m3.scale, vectors
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_extremes_stay_finite(dtype: torch.dtype) -> None:
    vectors = torch.zeros(4, 1, HEAD_DIM, dtype=dtype)
    vectors[1, 0, 0], vectors[2, 0, 0], vectors[3] = 3e38, -1e-38, 1.0
    assert restored(vectors).isfinite().all()
    assert not restored(vectors)[0].any()
    assert relative_error(restored(vectors)[3], vectors[3]) < 2.0**-8


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_block_sees_what_the_exact_cache_shows_it_rounded(window: int) -> None:
    ours, wanted = poisoned(window), exact(window)
    for cache in (ours, wanted):
        cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), rotation(-1, MOTION))
    for block in range(3 * window + 2):
        for step in range(STEPS):
            seen, full = (window_of(cache, block, step=step) for cache in (ours, wanted))
            assert seen.key_KNH.shape == full.key_KNH.shape
            assert relative_error(seen.key_KNH, full.key_KNH) < VECTOR_ERROR
            assert relative_error(seen.value_KNH, full.value_KNH) < VECTOR_ERROR
            query = seeded(BLOCK, HEADS, HEAD_DIM, seed=block)
            # Softmax over few keys of random queries passes the error of the scores on.
            assert relative_error(attend(query, seen), attend(query, full)) < 0.02


def test_its_own_keys_are_exact_and_only_later_blocks_see_them_rounded() -> None:
    cache = poisoned(2)
    cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), rotation(-1, MOTION))
    own = tokens(BLOCK, seed=100)
    slot = shape(2).slot(0)
    first = window_of(cache, 0).key_KNH[slot].clone()
    second = window_of(cache, 1).key_KNH[slot]
    assert torch.equal(first, own.key_KNH)
    assert not torch.equal(second, own.key_KNH)
    assert relative_error(second, own.key_KNH) < VECTOR_ERROR


def test_layers_share_a_workspace_and_nothing_else() -> None:
    first = poisoned(2)
    second = QuantisedCache(shape(2), first.workspace)
    alone = poisoned(2)
    for seed, cache in enumerate((first, second, alone)):
        cache.store_condition(0, tokens(REFERENCE + MOTION, seed=seed % 2), rotation(-1, MOTION))
    for block in range(4):
        ours = window_of(first, block).key_KNH.clone()
        window_of(second, block)
        third = window_of(alone, block).key_KNH.clone()
        assert (block == 0) == (third.shape[0] < shape(2).tokens)
        assert torch.equal(ours, window_of(first, block).key_KNH)
    assert {tensor.data_ptr() for tensor in (first.ring.key.values, first.ring.value.values)} & {
        second.ring.key.values.data_ptr()
    } == set()


def test_a_refresh_reaches_each_step_when_it_gets_to_the_new_version() -> None:
    ours, wanted = poisoned(2), exact(2)
    order = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (2, 0, 1), (1, 1, 0), (3, 0, 1), (2, 1, 1)]
    for cache in (ours, wanted):
        cache.store_condition(0, tokens(REFERENCE + MOTION, seed=1), rotation(-1, MOTION))
    for number, (block, step, version) in enumerate(order):
        if number == 3:
            for cache in (ours, wanted):
                cache.store_condition(1, tokens(REFERENCE + MOTION, seed=2), rotation(-1, MOTION))
        seen, full = (
            window_of(cache, block, step=step, version=version) for cache in (ours, wanted)
        )
        assert relative_error(seen.key_KNH, full.key_KNH) < VECTOR_ERROR


def test_a_job_makes_nearly_the_latents_of_the_exact_cache() -> None:
    """Error budget on a whole tiny video: over wrapping rings and the refresh."""
    work = tiny.job(6, window=2, steps=3)
    network = tiny.stage(range(TINY.num_layers))
    network.cache_kind = "8-bit"
    quantised = Models(network, tiny.embedder(), tiny.models().decoder)
    ours, wanted = (
        torch.cat(
            list(
                generate_latents(models, work.conditions, work.timeline, work.schedule, work.draws)
            ),
            dim=1,
        )
        for models in (quantised, tiny.models())
    )
    assert 0 < relative_error(ours, wanted) < 0.01
    last = slice(-LATENT_FRAMES_PER_BLOCK, None)
    assert relative_error(ours[:, last], wanted[:, last]) < 0.01, "it does not grow with length"


def test_the_layers_of_a_job_share_one_workspace_of_its_dtype() -> None:
    network = tiny.stage(range(2))
    network.cache_kind = "8-bit"
    embedder = tiny.embedder()
    text_LD = embedder.embed_text(torch.zeros(1, TINY.text_dim)).bfloat16()
    state = Denoiser(network, embedder.embed_time([1000.0]), text_LD, TokenGrid(4, 4), 2)
    first, second = state.caches
    assert isinstance(first, QuantisedCache)
    assert isinstance(second, QuantisedCache)
    assert first.workspace.key_KNH.dtype == torch.bfloat16
    assert first.workspace.key_KNH.data_ptr() == second.workspace.key_KNH.data_ptr()
