"""What the compiler makes of a layer on a GPU is as near to float32 as the layer as written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from liveavatar.config import TransformerConfig
from liveavatar.model.attention import KeyValue
from liveavatar.model.audio_injection import BlockAudio
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.rope import grid_positions, rotation_at
from liveavatar.model.transformer import Layer
from liveavatar.random_checkpoint import TINY
from tests.unit.tiny import randomised, seeded

CONFIG = replace(TINY, dim=1024, num_heads=8, ffn_dim=2048)
FRAMES, ROWS, COLUMNS = 3, 20, 20
TOKENS = FRAMES * ROWS * COLUMNS  # as many values as are compiled for
ROTATION = rotation_at(grid_positions(range(FRAMES), range(ROWS), range(COLUMNS)), CONFIG.head_dim)
PARTS = ("begin", "finish", "speech")


def run(layer: Layer, part: str, dtype: torch.dtype, device: str) -> Tensor:
    """One part of a layer on the same numbers whatever the dtype."""

    def given(*size: int, seed: int) -> Tensor:
        return seeded(*size, seed=seed).to(device, dtype)

    hidden_LD = given(TOKENS, CONFIG.dim, seed=1)
    modulation_6D = seeded(6, CONFIG.dim, seed=2).to(device) / 4
    if part == "begin":
        rotation = type(ROTATION)(ROTATION.cos_LR.to(device), ROTATION.sin_LR.to(device))
        return torch.stack(layer._begin_condition(hidden_LD, modulation_6D, rotation))
    if part == "finish":
        text = KeyValue(*(given(64, CONFIG.num_heads, 128, seed=seed) for seed in (3, 4)))
        attended_LD = given(TOKENS, CONFIG.dim, seed=5)
        return layer._finish_fused(hidden_LD, attended_LD, modulation_6D, text)
    assert layer.audio is not None
    speech = BlockAudio(
        seeded(FRAMES, 5, CONFIG.dim, seed=6).to(device),
        seeded(FRAMES, CONFIG.dim, seed=7).to(device),
    )
    heard: Tensor = layer.audio(hidden_LD, layer.audio.prepare(speech))
    return heard


def layer_of(config: TransformerConfig, dtype: torch.dtype, device: str) -> Layer:
    layer = randomised(Layer(config, dtype, injects=True))
    layer.modulation.data = layer.modulation.data.float()
    return layer.to(device)


def off(ours: Tensor, wide: Tensor) -> float:
    """Root mean square of the difference over that of the values."""
    difference = ours.float().cpu() - wide
    return float(difference.square().mean().sqrt() / wide.square().mean().sqrt())


@torch.no_grad()
@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("change", [None, quantise_linears], ids=["bfloat16", "fp8"])
def test_the_compiled_part_is_as_near_to_float32_as_the_part_as_written(
    part: str, change: Callable[[Layer], None] | None
) -> None:
    wide = run(layer_of(CONFIG, torch.float32, "cpu"), part, torch.float32, "cpu")
    layer = layer_of(CONFIG, torch.bfloat16, "cuda")
    if change is not None:
        change(layer)
    with torch.compiler.set_stance("force_eager"):
        as_written = off(run(layer, part, torch.bfloat16, "cuda"), wide)
    compiled = off(run(layer, part, torch.bfloat16, "cuda"), wide)
    assert as_written < (2**-6 if change is None else 0.1)
    assert 0 < compiled < 1.1 * as_written
