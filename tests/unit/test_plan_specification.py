"""The memory plan gives the tables of the specification."""

import pytest

from liveavatar.plan import media_memory as media
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import GIB, Machine, plan_layout, split_stages
from liveavatar.plan.precision import BFLOAT16
from liveavatar.plan.shapes import Network, SpeechEncoderShape, TextEncoderShape, VAEShape
from tests.unit.planned_memory import BALANCED, PORTRAIT_HW, WAN


@pytest.mark.parametrize(("size_hw", "condition"), [(PORTRAIT_HW, 2400), ((704, 384), 2640)])
def test_tokens_are_those_of_the_specification(size_hw: tuple[int, int], condition: int) -> None:
    tokens = stage.count_tokens(WAN, size_hw, BALANCED)
    assert tokens.frame == size_hw[0] * size_hw[1] // 256
    assert (tokens.condition, tokens.ring) == (condition, 12 * tokens.frame)


def test_literal_sizes_leave_part_patches_out() -> None:
    tokens = stage.count_tokens(WAN, (688, 368), BALANCED)
    assert (tokens.frame, tokens.condition) == (989, 2409)


def test_components_have_the_specified_sizes() -> None:
    gb = {
        "block": stage.layer_weights(WAN, BFLOAT16, injects=False),
        "injection": stage.layer_weights(WAN, BFLOAT16, injects=True)
        - stage.layer_weights(WAN, BFLOAT16, injects=False),
        "text": media.text_encoder_weights(TextEncoderShape(), 2),
        "vae": media.encoder_weights(VAEShape(), 2) + media.decoder_weights(VAEShape(), 2),
        "speech": media.speech_encoder_weights(SpeechEncoderShape(), 2),
    }
    expected = {
        "block": 0.7028,
        "injection": (2.52 + 1.26) / 12,
        "text": 11.36,
        "vae": 0.254,
        "speech": 0.631,
    }
    assert {name: value / 1e9 for name, value in gb.items()} == pytest.approx(expected, rel=2e-3)
    halves = (range(20), range(20, 40))
    transformer = sum(stage.stage_weights(WAN, part, BFLOAT16) for part in halves)
    embedder = stage.condition_embedder_weights(WAN, BFLOAT16)
    # Time and speech are held in float32 here: their 280 M parameters take twice the bytes.
    assert (transformer + embedder - 0.56e9) / 1e9 == pytest.approx(32.59, abs=0.01)


@pytest.mark.parametrize(
    ("size_hw", "ring_mb", "rings_gb", "condition_gb"),
    [
        (PORTRAIT_HW, 235.9, 37.7, 1.97),
        ((688, 368), 243.1, 38.9, 1.97),
        ((704, 384), 259.5, 41.5, 2.16),
    ],
)
def test_caches_have_the_specified_sizes(
    size_hw: tuple[int, int], ring_mb: float, rings_gb: float, condition_gb: float
) -> None:
    tokens = stage.count_tokens(WAN, size_hw, BALANCED)
    rings = stage.ring_values(WAN, tokens, BALANCED) * 2
    assert rings / 4 / 1e6 == pytest.approx(ring_mb, abs=0.1)
    assert 40 * rings / 1e9 == pytest.approx(rings_gb, abs=0.06)
    assert 40 * tokens.condition * 2 * WAN.dim * 2 / 1e9 == pytest.approx(condition_gb, abs=0.01)


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        (PORTRAIT_HW, (24.8, 25.5, 24.4)),
        ((688, 368), (25.2, 25.9, 24.8)),
        ((704, 384), (26.1, 27.0, 25.7)),
    ],
)
def test_three_stages_need_the_specified_sum_and_the_codes_further_copies(
    size_hw: tuple[int, int], expected: tuple[float, ...]
) -> None:
    """The specification counts two condition versions; the code has one more copy per step."""
    tokens = stage.count_tokens(WAN, size_hw, BALANCED)
    ring = stage.ring_values(WAN, tokens, BALANCED) * 2
    condition = tokens.condition * 2 * WAN.dim * 2
    stages = (range(13), range(13, 27), range(27, 40))
    assert split_stages(WAN, size_hw, BALANCED, 3) == stages
    specified = [
        stage.stage_weights(WAN, part, BFLOAT16)
        + len(part) * (ring + 2 * condition + stage.text_bytes(WAN, BFLOAT16))
        for part in stages
    ]
    # The specification's first stage also has the embedding of time, text and speech; 0.65 GB.
    specified[0] += int(0.65e9)
    assert [need / 1e9 for need in specified] == pytest.approx(expected, abs=0.15)
    plan = plan_layout(Network(), size_hw, BALANCED, Machine(4, 80 * GIB))
    for rank, part, need in zip(plan.ranks, stages, specified, strict=False):
        held = rank.weights + rank.rings + rank.condition + rank.text
        embedders = int(0.65e9) * (part.start == 0)
        assert held == need - embedders + BALANCED.num_steps * len(part) * condition
