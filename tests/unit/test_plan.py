"""Which layout, precision and number of jobs a plan chooses, and what it says when none fits."""

import pytest

from liveavatar import conditioning
from liveavatar.config import SamplingConfig
from liveavatar.engine import media_rank
from liveavatar.errors import ConfigError
from liveavatar.model import audio_encoder, checkpoint, vae_layers
from liveavatar.plan import media_memory as media
from liveavatar.plan import shapes
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import GIB, LayoutPlan, Machine, plan_layout
from liveavatar.plan.precision import BFLOAT16, FLOAT32
from liveavatar.plan.shapes import Network
from liveavatar.plan.tiers import TIERS
from tests.unit.planned_memory import BALANCED, PORTRAIT_HW, TINY_NETWORK

FOUR_GPUS = Machine(4, int(22.15 * GIB))
TWO_GPUS = Machine(2, int(22.15 * GIB))


def plan_tier(name: str, machine: Machine = FOUR_GPUS) -> LayoutPlan:
    tier = next(tier for tier in TIERS if tier.name == name)
    size_hw = {"fast": (384, 256), "balanced": PORTRAIT_HW, "high": (704, 384)}[name]
    return plan_layout(Network(), size_hw, tier.sampling, machine)


def test_the_fast_tier_fits_four_small_gpus() -> None:
    plan = plan_tier("fast")
    assert plan.fits
    assert plan.precision == BFLOAT16
    assert plan.jobs_at_once == 2
    assert plan.verdict.startswith("fits, ")
    assert plan.reasons == ()


def test_a_refusal_says_what_is_short_and_what_would_help() -> None:
    plan = plan_tier("balanced", TWO_GPUS)
    assert not plan.fits
    assert plan.jobs_at_once == 0
    assert plan.verdict.startswith("does not fit: even with fp8 weights, 8-bit K/V rank 0 needs ")
    assert "of 22.15 GiB usable" in plan.verdict
    assert "rank 1" not in plan.reasons[0]
    assert "3 such GPUs would be enough" in plan.verdict
    three = plan_tier("balanced", Machine(3, TWO_GPUS.memory_bytes))
    assert (three.fits, str(three.precision)) == (True, "fp8 weights, 8-bit K/V")
    assert plan_tier("balanced").fits
    assert "\n" not in plan.verdict


def test_a_refusal_that_nothing_planned_would_help_names_the_rank() -> None:
    plan = plan_tier("high", Machine(2, 10 * GIB))
    assert ": even with fp8 weights, 8-bit K/V rank 0 needs " in plan.verdict
    assert "such GPUs" not in plan.verdict, "the text encoder alone is larger"
    assert "would fit" not in plan.verdict


def test_keys_and_values_go_to_8_bits_where_bfloat16_does_not_fit() -> None:
    plan = plan_tier("balanced")
    assert plan.fits
    assert str(plan.precision) == "bfloat16 weights, 8-bit K/V"
    assert max(rank.total for rank in plan.ranks) < 20.5 * GIB
    roomy = plan_tier("balanced", Machine(4, 29 * GIB))
    assert (roomy.fits, roomy.precision) == (True, BFLOAT16)


def test_one_job_at_a_time_where_a_second_ones_caches_do_not_fit() -> None:
    need = plan_tier("balanced").chosen.largest
    plan = plan_tier("balanced", Machine(4, need))
    assert (plan.fits, plan.jobs_at_once) == (True, 1)
    assert plan_tier("balanced", Machine(4, need - 1)).precision != plan.precision


def test_totals_are_the_sums_of_all_parts_and_of_all_ranks() -> None:
    plan = plan_tier("fast", Machine(4, 80 * GIB, share_media=True))
    assert (len(plan.stages), plan.machine.devices) == (4, (0, 1, 2, 3, 3))
    last, media_part = plan.ranks[3:]
    assert plan.chosen.device_bytes[3] == last.total + media_part.total
    assert last.total == sum(vars(last).values())


def test_one_gpu_carries_everything() -> None:
    plan = plan_tier("fast", Machine(1, 20 * GIB))
    assert plan.machine.devices == (0, 0)
    assert plan.chosen.device_bytes == (sum(rank.total for rank in plan.ranks),)
    assert plan.reasons[0].startswith("even with fp8 weights, 8-bit K/V ranks 0+1 need ")


def test_the_cpu_runs_float32_and_no_gpu_is_asked_for() -> None:
    sampling = SamplingConfig(num_steps=2, infer_frames=24)
    plan = plan_layout(TINY_NETWORK, (64, 64), sampling, Machine(0, 4 * GIB))
    assert (plan.fits, plan.precision, plan.machine.devices) == (True, FLOAT32, (0, 0))
    small = plan_layout(TINY_NETWORK, (64, 64), sampling, Machine(0, GIB))
    assert not small.fits
    assert len(small.reasons) == 1


def test_more_gpus_than_layers_are_not_advised() -> None:
    plan = plan_layout(TINY_NETWORK, (64, 64), SamplingConfig(), Machine(4, 2**20))
    assert not any("such GPUs" in reason for reason in plan.reasons)
    with pytest.raises(ConfigError, match="stages: expected 1 to 4"):
        plan_layout(TINY_NETWORK, (64, 64), SamplingConfig(), Machine(6, GIB))


@pytest.mark.parametrize("size_hw", [(640, 380), (0, 64), (-16, 64)])
def test_sizes_of_part_tokens_are_refused(size_hw: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        plan_layout(Network(), size_hw, BALANCED, FOUR_GPUS)


@pytest.mark.parametrize(("gpus", "memory"), [(-1, GIB), (65, GIB), (4, 0), (4, 2**50 + 1)])
def test_machines_that_cannot_be_are_refused(gpus: int, memory: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Machine(gpus, memory)


def test_constants_are_those_of_the_engine() -> None:
    assert stage.SPARE_BLOCKS == media_rank.SPARE_BLOCKS
    assert media._GPU_TILE == vae_layers._GPU_TILE
    assert media.MOTION_FRAMES == conditioning.MOTION_FRAMES
    assert media.SPEECH_CHUNK_S == audio_encoder.CHUNK_SECONDS
    for name in ("CONFIG", "TRANSFORMER_INDEX", "TRANSFORMER_SINGLE", "TEXT_ENCODER", "VAE"):
        assert getattr(shapes, name) == getattr(checkpoint, name)
    assert f"{checkpoint.SPEECH_ENCODER}/config.json" == shapes.SPEECH_CONFIG
