"""Rings that wait in host memory make the same latents, with two windows of them on the device."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from liveavatar.conditioning import Conditions
from liveavatar.config import SamplingConfig
from liveavatar.model.attention import KeyValue
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.kv_cache import CacheKind, CacheShape
from liveavatar.model.layer_shelf import LayerShelf, run_from_shelf
from liveavatar.model.ring_shelf import RingShelf, ShelvedExactCache, exact_columns
from liveavatar.model.rope import Rotation
from liveavatar.model.transformer import Transformer
from liveavatar.parallel.ring_keeper import copied_rings, restore_rings
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.alone import (
    BUS_BYTES_PER_S,
    HOST_RESERVE_BYTES,
    LonePlan,
    Shelf,
    plan_alone,
)
from liveavatar.plan.layout import GIB, Machine
from liveavatar.plan.precision import FLOAT32, Precision
from liveavatar.plan.shapes import Network
from liveavatar.random_checkpoint import TINY
from liveavatar.single_device import Models, generate_latents, seeded_draws
from tests.unit import tiny
from tests.unit.tiny import seeded

CPU = torch.device("cpu")
SHAPE = CacheShape(
    num_steps=2, condition_tokens=3, reference_tokens=1, block_tokens=2, window_blocks=3
)
COLUMNS = exact_columns(1, 4, torch.float32)


def network(kind: CacheKind, *, shelved: bool, layers: range = range(4)) -> Transformer:
    made = tiny.stage(layers)
    made.cache_kind, made.rings_on_shelf = kind, shelved
    return made


def latents(
    transformer: Transformer, blocks: int, *, window: int = 2, steps: int = 2
) -> list[Tensor]:
    work = tiny.job(blocks, window=window, steps=steps)
    models = replace(tiny.models(), transformer=transformer)
    return list(generate_latents(models, work.conditions, work.timeline, work.schedule, work.draws))


@pytest.mark.parametrize("kind", ["exact", "8-bit"])
@pytest.mark.parametrize(("blocks", "window", "steps"), [(6, 2, 2), (5, 3, 1), (3, 1, 3)])
def test_latents_have_the_bits_of_resident_rings(
    kind: CacheKind, blocks: int, window: int, steps: int
) -> None:
    made = [
        latents(network(kind, shelved=shelved), blocks, window=window, steps=steps)
        for shelved in (True, False)
    ]
    assert len(made[0]) == blocks
    assert all(map(torch.equal, *made))


def test_layers_and_rings_may_both_wait() -> None:
    shelved, shelf = network("exact", shelved=True), LayerShelf(CPU)
    for layer in shelved.stack:
        shelf.put(layer)
    run_from_shelf(shelved, shelf)
    resident = network("exact", shelved=False)
    assert all(map(torch.equal, latents(shelved, 5), latents(resident, 5)))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["exact", "8-bit"])
def test_latents_on_a_gpu_have_the_bits_of_resident_rings(kind: CacheKind) -> None:
    """Several times: a copy that overtakes another, or a kernel, need not do so at once."""
    device = torch.device("cuda")
    work = tiny.job(5)
    moved = Conditions(*(tensor.to(device) for tensor in vars(work.conditions).values()))
    embedder = deepcopy(tiny.embedder()).to(device)

    def made_by(transformer: Transformer) -> list[Tensor]:
        models = Models(transformer, embedder, tiny.models().decoder)
        draws = seeded_draws(0, moved.reference_CFHW)
        made = generate_latents(models, moved, work.timeline, work.schedule, draws)
        return [latent.cpu() for latent in made]

    shelved, shelf = network(kind, shelved=True).to(device), LayerShelf(device)
    for layer in shelved.stack:
        shelf.put(layer)
    run_from_shelf(shelved, shelf)
    expected = made_by(network(kind, shelved=False).to(device))
    assert len(expected) == 5
    for _ in range(5):
        assert all(map(torch.equal, made_by(shelved), expected))


# --- One shelf -----------------------------------------------------------------------------------


def new_shelf(num_layers: int) -> RingShelf:
    shelf = RingShelf(SHAPE, COLUMNS, num_layers, CPU)
    for layer in range(num_layers):
        condition = (seeded(3, 1, 4, seed=layer), seeded(3, 1, 4, seed=10 + layer))
        shelf.store_condition(layer, 0, condition)
    return shelf


def test_only_the_rows_of_the_block_go_back() -> None:
    shelf = new_shelf(3)
    before = [tensor.clone() for tensor in shelf.ring(1, 0)]
    shelf.turn_to(0, 4, 0)  # writes over block 1: rows 2 and 3
    for tensor in shelf.bring(1):
        tensor.fill_(7)
    for tensor, old in zip(shelf.ring(1, 0), before, strict=True):
        assert (tensor[2:4] == 7).all()
        assert torch.equal(tensor[:2], old[:2])
        assert torch.equal(tensor[4:], old[4:])


def test_a_window_is_condition_and_the_blocks_before() -> None:
    shelf = new_shelf(3)
    for tensor in shelf.ring(2, 1):
        tensor.copy_(torch.arange(6.0)[:, None, None])
    shelf.turn_to(1, 4, 0)
    key_KNH, _ = shelf.bring(2)
    assert torch.equal(key_KNH[:3], seeded(3, 1, 4, seed=2))
    assert key_KNH[3:, 0, 0].tolist() == [0, 1, 0, 0, 4, 5], "rows of the block itself do not come"


def test_the_next_window_comes_while_a_layer_works() -> None:
    shelf = new_shelf(3)
    shelf.turn_to(0, 0, 0)
    first = shelf.bring(0)[0].data_ptr()
    second = shelf.bring(1)[0].data_ptr()
    assert second != first
    assert shelf.bring(2)[0].data_ptr() == first
    assert [visit and (visit.layer, visit.step) for visit in shelf._held] == [(2, 0), (0, 1)]


@pytest.mark.parametrize(("num_layers", "num_steps"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_few_layers_and_steps_see_what_was_written(num_layers: int, num_steps: int) -> None:
    shape = replace(SHAPE, num_steps=num_steps)
    shelf = RingShelf(shape, COLUMNS, num_layers, CPU)
    caches = [ShelvedExactCache(shelf, layer) for layer in range(num_layers)]
    still = Rotation(torch.ones(2, 2), torch.zeros(2, 2))
    condition = KeyValue(seeded(3, 1, 4), seeded(3, 1, 4, seed=1))
    rows_T = torch.empty(2, dtype=torch.int64)
    for cache in caches:
        cache.store_condition(0, condition, still)
    for block in range(5):
        for step in range(num_steps):
            shelf.turn_to(step, block, 0)
            for layer, cache in enumerate(caches):
                shape.put_rows(block, rows_T)
                reference = Rotation(torch.ones(1, 2), torch.zeros(1, 2))
                view = cache.open(shape.phase(step, block, 0), rows_T, reference)
                mark = float(100 * layer + 10 * step + block)
                view.write(KeyValue(torch.full((2, 1, 4), mark), torch.full((2, 1, 4), -mark)))
                # Slots hold the last three blocks, newest over oldest.
                there = {mark - ago for ago in range(min(block + 1, 3))}
                assert set(view.window.key_KNH[3:].unique().tolist()) == there
                assert set((-view.window.value_KNH[3:]).unique().tolist()) == there


# --- A job's state -------------------------------------------------------------------------------


def run_blocks(state: Denoiser, blocks: range) -> Tensor:
    work = tiny.job(6)
    hidden_LD = seeded(48, TINY.dim)
    for block in blocks:
        heard = work.conditions.speech_AV[:, 12 * block : 12 * block + 12]
        state.hear(block, tiny.embedder().audio_encoder.encode_block(heard))
        for step in range(2):
            hidden_LD = state.forward(seeded(48, TINY.dim, seed=block), Item(block, step, 0, 7))
        state.finish_block(block)
    return hidden_LD


def new_state(*, shelved: bool, kind: CacheKind = "exact") -> Denoiser:
    work, embedder = tiny.job(6), tiny.embedder()
    time = embedder.embed_time(work.schedule.timesteps)
    text_LD = embedder.embed_text(work.conditions.text_LD)
    return Denoiser(network(kind, shelved=shelved), time, text_LD, TokenGrid(4, 4), 2)


def prefilled(state: Denoiser) -> Denoiser:
    conditions = tiny.job(6).conditions
    embed = tiny.transformer().embed_condition
    state.prefill(embed(conditions.reference_CFHW, conditions.motion_CFHW), 0)
    return state


def test_a_resume_point_holds_the_same_rings_and_brings_them_back() -> None:
    resident, shelved, resumed = (
        prefilled(new_state(shelved=shelved)) for shelved in (False, True, True)
    )
    for state in (resident, shelved):
        run_blocks(state, range(3))
    points = [
        {name: ring for step in range(2) for name, ring in copied_rings(state, step).items()}
        for state in (resident, shelved)
    ]
    assert points[0].keys() == points[1].keys()
    assert all(torch.equal(ring, points[1][name]) for name, ring in points[0].items())
    restore_rings(resumed, points[0])
    assert torch.equal(run_blocks(resumed, range(3, 5)), run_blocks(resident, range(3, 5)))


def test_another_job_in_the_same_memory_sees_nothing_of_the_last_one() -> None:
    state = prefilled(new_state(shelved=True))
    first = run_blocks(state, range(1))
    work, embedder = tiny.job(6), tiny.embedder()
    run_blocks(state, range(1, 4))
    time = embedder.embed_time(work.schedule.timesteps)
    state.renew(time, embedder.embed_text(work.conditions.text_LD))
    assert torch.equal(run_blocks(prefilled(state), range(1)), first)


# --- The plan ------------------------------------------------------------------------------------

CARD = Machine(1, int(22.15 * GIB))
BALANCED, BALANCED_HW = SamplingConfig(num_clip=50), (640, 384)


def balanced(host_gib: float, card: Machine = CARD) -> LonePlan:
    host_bytes = int(host_gib * GIB)
    return plan_alone(Network(), BALANCED_HW, BALANCED, card, offload=True, host_bytes=host_bytes)


@pytest.mark.parametrize(
    ("host_gib", "shelf", "precision"),
    [
        (128, "layers and rings", "bfloat16 weights and K/V"),
        (64, "layers and rings", "bfloat16 weights, 8-bit K/V"),
        (48, "layers and rings", "fp8 weights, 8-bit K/V"),
    ],
)
def test_rings_wait_too_where_they_do_not_fit_beside_a_shelf(
    host_gib: float, shelf: str, precision: str
) -> None:
    plan = balanced(host_gib)
    assert (plan.fits, str(plan.shelf), str(plan.precision)) == (True, shelf, precision)
    assert plan.pinned + HOST_RESERVE_BYTES <= host_gib * GIB
    assert f"{shelf} in host memory ({plan.pinned / GIB:.1f} GiB pinned)" in plan.verdict


def test_rings_wait_alone_where_rounded_layers_fit() -> None:
    plan = balanced(64, replace(CARD, memory_bytes=24 * GIB))
    assert (plan.fits, plan.shelf) == (True, Shelf(rings=True))
    assert plan.copied.per_block == 0, "no layer is brought for the speech"


def test_a_short_host_is_named() -> None:
    plan = balanced(24)
    assert not plan.fits
    assert plan.fits_device
    assert plan.verdict.startswith("does not fit, ")
    assert plan.verdict.endswith("of which 24.0 GiB are free and 4 have to stay so")


def test_a_card_too_small_for_any_way_is_refused() -> None:
    plan = balanced(128, replace(CARD, memory_bytes=8 * GIB))
    assert (plan.fits, plan.fits_device) == (False, False)


def test_what_is_copied_is_layers_and_all_of_a_window_but_the_block_itself() -> None:
    plan, config = balanced(128), Network().transformer
    tokens = stage.count_tokens(config, BALANCED_HW, BALANCED)
    token = 2 * config.dim * 2 * config.num_layers
    layers = stage.layer_weights_of(config, range(config.num_layers), plan.precision)
    earlier = tokens.condition + 3 * tokens.block
    assert plan.copied.to_device == layers + earlier * token
    assert plan.copied.to_host == tokens.block * token
    speech = len(config.audio_inject_layers) * stage.layer_weights(
        config, plan.precision, injects=True
    )
    seconds = (4 * plan.copied.to_device + speech) / BUS_BYTES_PER_S
    assert plan.copied.block_s == pytest.approx(seconds)
    assert "assumed) a block of 12 frames takes" in str(plan.copied)
    assert "not measured" in str(plan.copied)


@pytest.mark.parametrize("kind", ["exact", "8-bit"])
def test_a_shelf_is_as_large_as_planned(kind: CacheKind) -> None:
    shelf = prefilled(new_state(shelved=True, kind=kind))._ring_shelf
    assert shelf is not None
    precision = FLOAT32 if kind == "exact" else Precision("float32", "8-bit")
    sampling = SamplingConfig(num_steps=2, infer_frames=24)
    tokens = stage.count_tokens(TINY, (64, 64), sampling)
    assert shelf.device_bytes == stage.ring_rooms(TINY, tokens, precision)
    assert shelf.host_bytes == stage.shelved_ring_bytes(TINY, tokens, sampling, precision)


def test_rings_in_e4m3_are_refused() -> None:
    with pytest.raises(ValueError, match="expected exact or 8-bit caches, got e4m3"):
        Transformer(TINY, range(1), cache_kind="e4m3", rings_on_shelf=True)
