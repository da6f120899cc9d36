"""Layers that wait in host memory make the same latents, with two of them on the device."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from liveavatar.conditioning import Conditions
from liveavatar.config import SamplingConfig
from liveavatar.model.checkpoint import Placement, open_checkpoint
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.layer_shelf import LayerShelf, ShelvedLayer, run_from_shelf
from liveavatar.model.transformer import Transformer
from liveavatar.plan import media_memory as media
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.alone import SPARE_BYTES, Shelf, plan_alone
from liveavatar.plan.layout import CUDA_CONTEXT_BYTES, GIB, Machine
from liveavatar.plan.precision import BFLOAT16, FLOAT32
from liveavatar.plan.shapes import Network
from liveavatar.random_checkpoint import TINY, write_checkpoint
from liveavatar.single_device import Models, generate_latents, seeded_draws
from tests.unit import tiny

CPU = torch.device("cpu")
CARD = Machine(1, int(22.15 * GIB))
HOST = 128 * GIB
FAST = SamplingConfig(num_steps=3, infer_frames=32, num_clip=10)


@pytest.fixture(scope="module", params=["float32", "fp8"])
def both(request: pytest.FixtureRequest) -> tuple[Transformer, Transformer, LayerShelf]:
    """A transformer, and its like whose layers are on a shelf."""
    dtype = torch.float32 if request.param == "float32" else torch.bfloat16
    resident, shelved = (tiny.stage(range(4), TINY, dtype) for _ in range(2))
    shelf = LayerShelf(CPU)
    for transformer in (resident, shelved):
        for layer in transformer.stack:
            if request.param == "fp8":
                quantise_linears(layer)
            if transformer is shelved:
                shelf.put(layer)
    run_from_shelf(shelved, shelf)
    return resident, shelved, shelf


def made_by(transformer: Transformer, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    work = tiny.job(5)
    inputs = work.conditions
    conditions = replace(
        inputs,
        reference_CFHW=inputs.reference_CFHW.to(dtype),
        motion_CFHW=inputs.motion_CFHW.to(dtype),
        text_LD=inputs.text_LD.to(dtype),
    )
    models = replace(tiny.models(TINY, dtype), transformer=transformer)
    return generate_latents(models, conditions, work.timeline, work.schedule, work.draws)


def test_latents_have_the_bits_of_resident_layers(
    both: tuple[Transformer, Transformer, LayerShelf],
) -> None:
    resident, shelved, shelf = both
    dtype = resident.stack[0].norm3.weight.dtype
    assert all(map(torch.equal, made_by(shelved, dtype), made_by(resident, dtype)))
    on_device = [room.data_ptr() for room in shelf._rooms]
    weights = [layer.layer.norm3.weight.data_ptr() for layer in shelved.stack]
    near = [any(0 <= at - room < shelf.device_bytes // 2 for room in on_device) for at in weights]
    assert sum(near) == 2


@pytest.mark.gpu
def test_latents_on_a_gpu_have_the_bits_of_resident_layers() -> None:
    device = torch.device("cuda")
    resident, shelved = (tiny.stage(range(4), TINY).to(device) for _ in range(2))
    shelf = LayerShelf(device)
    for layer in shelved.stack:
        shelf.put(layer)
    run_from_shelf(shelved, shelf)
    work = tiny.job(5)
    moved = Conditions(*(tensor.to(device) for tensor in vars(work.conditions).values()))
    draws = seeded_draws(0, moved.reference_CFHW)
    embedder = deepcopy(tiny.embedder()).to(device)
    made = [
        [
            latent.cpu()
            for latent in generate_latents(
                Models(transformer, embedder, tiny.models().decoder),
                moved,
                work.timeline,
                work.schedule,
                draws,
            )
        ]
        for transformer in (shelved, resident)
    ]
    assert len(made[0]) == 5
    assert all(map(torch.equal, *made))


def test_a_checkpoint_is_read_onto_a_shelf(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint, where = open_checkpoint(tmp_path), Placement(CPU, torch.float32)
    shelf = LayerShelf(CPU)
    shelved = checkpoint.load_transformer(where, shelf=shelf)
    resident = checkpoint.load_transformer(where)
    assert all(isinstance(layer, ShelvedLayer) for layer in shelved.stack)
    assert all(map(torch.equal, made_by(shelved, torch.float32), made_by(resident, torch.float32)))
    planned = 2 * stage.layer_weights(checkpoint.config, FLOAT32, injects=True)
    assert planned <= shelf.device_bytes < 1.1 * planned


def test_one_small_card_makes_the_fast_tier_from_a_shelf_and_not_without() -> None:
    plan = plan_alone(Network(), (256, 384), FAST, CARD, offload=True, host_bytes=HOST)
    assert (plan.fits, plan.shelf, plan.precision) == (True, Shelf(layers=True), BFLOAT16)
    assert "layers in host memory (29.7 GiB pinned)" in plan.verdict
    with_encoders = plan_alone(Network(), (256, 384), FAST, CARD, offload=False, host_bytes=HOST)
    assert (with_encoders.fits, with_encoders.shelf) == (False, Shelf())
    assert with_encoders.total > plan.total


def test_the_encoders_are_counted_with_what_they_work_in() -> None:
    network, size_hw = Network(), (384, 640)
    encoders = (
        media.text_encoder_weights(network.text, 2)
        + media.speech_encoder_weights(network.speech, 2)
        + media.encoder_weights(network.vae, 2)
    )
    need = encoders + media.encode_peak(network.vae, size_hw, 2)
    need += CUDA_CONTEXT_BYTES + SPARE_BYTES
    short = SamplingConfig(num_steps=1, infer_frames=12, num_clip=1)
    few = replace(network.transformer, num_layers=4, audio_inject_layers=(0, 2))
    small = replace(network, transformer=few)  # so that rendering takes less than encoding
    assert plan_alone(small, size_hw, short, CARD, offload=True, host_bytes=HOST).total == need


def test_a_large_card_keeps_its_layers() -> None:
    large = replace(CARD, memory_bytes=80 * GIB)
    plan = plan_alone(Network(), (256, 384), FAST, large, offload=True, host_bytes=HOST)
    assert (plan.fits, plan.shelf) == (True, Shelf())
