"""The memory plan against real tensors, the specification's tables, and its command."""

import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from liveavatar import conditioning
from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.engine import media_rank
from liveavatar.errors import ConfigError
from liveavatar.model import audio_encoder, checkpoint, vae_layers
from liveavatar.model.denoiser import Denoiser, Item, TokenGrid
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.kv_cache import CacheKind, ExactCache
from liveavatar.model.quantised_cache import Int8KeyValue, QuantisedCache
from liveavatar.model.transformer import ConditionEmbedder, Layer, Transformer
from liveavatar.model.vae import Decoder, Encoder, VAEConfig, encode_still
from liveavatar.model.vae_stream import decode_step, new_decoder_state
from liveavatar.parallel.wavefront import Pipeline
from liveavatar.plan import media_memory as media
from liveavatar.plan import shapes
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import GIB, LayoutPlan, Machine, plan_layout, split_stages
from liveavatar.plan.precision import BFLOAT16, FLOAT32, Precision
from liveavatar.plan.shapes import (
    Network,
    SpeechEncoderShape,
    TextEncoderShape,
    VAEShape,
)
from liveavatar.plan.tiers import TIERS
from liveavatar.random_checkpoint import TINY, TINY_SPEECH, TINY_TEXT, TINY_VAE
from tests.unit.tiny import denoiser, job, models, seeded

WAN = TransformerConfig()
BALANCED = SamplingConfig(num_clip=50)
PORTRAIT_HW = (640, 384)
FOUR_GPUS = Machine(4, int(22.15 * GIB))
TWO_GPUS = Machine(2, int(22.15 * GIB))
DTYPES = {BFLOAT16: torch.bfloat16, FLOAT32: torch.float32}
FP8 = Precision("fp8", "bfloat16")
TINY_VAE_SHAPE = VAEShape(dim=4, num_res_blocks=1)
TINY_TEXT_SHAPE = TextEncoderShape(256, 32, 32, 4, 48, 2)
TINY_SPEECH_SHAPE = SpeechEncoderShape(32, 64, 2, (24,) * 7, position_kernel=16, position_groups=4)
TINY_NETWORK = Network(TINY, TINY_VAE_SHAPE, TINY_TEXT_SHAPE, TINY_SPEECH_SHAPE)


def parameter_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def storage_bytes(*tensors: Tensor) -> int:
    """Bytes of the distinct storages behind tensors."""
    return sum({id(s): s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def int8_bytes(*held: Int8KeyValue) -> int:
    """Bytes of keys and values in 8 bits with their scales."""
    vectors = [int8 for kv in held for int8 in (kv.key, kv.value)]
    return storage_bytes(*(t for int8 in vectors for t in (int8.values, int8.scale)))


class PeakMemory(TorchDispatchMode):
    """Notes the most bytes of tensors alive at once that were made while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        held = {t.untyped_storage()._cdata for t in given} - self._known.keys()
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage(), held)
        return result

    def _note(self, storage: torch.UntypedStorage, held: set[int]) -> None:
        key = storage._cdata
        if key in held or key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.alive -= self._known.pop(key)


# --- Weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", DTYPES, ids=str)
@pytest.mark.parametrize("layers", [range(4), range(2), range(1, 2), range(2, 4)], ids=str)
def test_weights_of_a_stage_are_those_of_the_module(precision: Precision, layers: range) -> None:
    built = on_meta(lambda: Transformer(TINY, layers, DTYPES[precision]))
    assert stage.stage_weights(TINY, layers, precision) == parameter_bytes(built)


@pytest.mark.parametrize("num_stages", [1, 3, 4])
def test_weights_of_the_published_shape_are_exact_on_every_stage(num_stages: int) -> None:
    for layers in split_stages(WAN, PORTRAIT_HW, BALANCED, num_stages):
        built = on_meta(lambda layers=layers: Transformer(WAN, layers, torch.bfloat16))
        assert stage.stage_weights(WAN, layers, BFLOAT16) == parameter_bytes(built)


@pytest.mark.parametrize("precision", DTYPES, ids=str)
@pytest.mark.parametrize("config", [TINY, WAN], ids=["tiny", "published"])
def test_weights_of_the_condition_embedder_are_exact(
    config: TransformerConfig, precision: Precision
) -> None:
    built = on_meta(lambda: ConditionEmbedder(config, DTYPES[precision]))
    assert stage.condition_embedder_weights(config, precision) == parameter_bytes(built)


def test_fp8_weights_are_those_of_the_quantised_layers() -> None:
    built = Layer(TINY, torch.bfloat16, injects=True)
    for parameter in built.parameters():
        parameter.data.zero_()
    quantise_linears(built)
    held = sum(value.nbytes for value in built.state_dict().values())
    assert stage.layer_weights(TINY, FP8, injects=True) == held


@pytest.mark.parametrize(
    ("shape", "config"), [(VAEShape(), VAEConfig()), (TINY_VAE_SHAPE, TINY_VAE)]
)
def test_weights_of_the_autoencoder_are_exact(shape: VAEShape, config: VAEConfig) -> None:
    encoder, decoder = on_meta(lambda: Encoder(config)), on_meta(lambda: Decoder(config))
    assert media.encoder_weights(shape, 4) == parameter_bytes(encoder)
    assert media.decoder_weights(shape, 4) == parameter_bytes(decoder)


def test_weights_of_text_and_speech_encoder_are_exact() -> None:
    published = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    for shape, config in ((TextEncoderShape(), published), (TINY_TEXT_SHAPE, TINY_TEXT)):
        text = on_meta(lambda config=config: UMT5EncoderModel(config))
        assert media.text_encoder_weights(shape, 4) == parameter_bytes(text)
    large = TINY_SPEECH | {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "conv_dim": [512] * 7,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
    }
    plain = TINY_SPEECH | {"conv_bias": False, "feat_extract_norm": "group"}
    first_norm = SpeechEncoderShape(
        32, 64, 2, (24,) * 7, conv_bias=False, norm_each_conv=False, position_kernel=16,
        position_groups=4,
    )  # fmt: skip
    for shape, settings in (
        (SpeechEncoderShape(), large),
        (TINY_SPEECH_SHAPE, TINY_SPEECH),
        (first_norm, plain),
    ):
        config = Wav2Vec2Config(**settings, mask_time_prob=0.0)
        speech = on_meta(lambda config=config: Wav2Vec2Model(config))
        assert media.speech_encoder_weights(shape, 4) == parameter_bytes(speech)


# --- What a job keeps ----------------------------------------------------------------------------


def test_caches_and_constants_of_a_job_are_those_counted() -> None:
    work = job(4, window=2, steps=2)
    state = denoiser(work)
    sampling = SamplingConfig(num_steps=2, infer_frames=24, num_clip=2)
    tokens = stage.count_tokens(TINY, (64, 64), sampling)
    rings = stage.ring_values(TINY, tokens, sampling) * 4
    condition = tokens.condition * 2 * TINY.dim * 4
    caches = [cast(ExactCache, cache) for cache in state.caches]
    buffers = storage_bytes(*(t for c in caches for t in (c.key_SKNH, c.value_SKNH)))
    assert buffers == TINY.num_layers * (rings + sampling.num_steps * condition)

    hidden = models().transformer.embed_condition(
        work.conditions.reference_CFHW, work.conditions.motion_CFHW
    )
    state.prefill(hidden, 0)
    state.prefill(hidden, 1)
    kept = [kv for cache in caches for kv in cache._versions.stored.values()]
    stored = storage_bytes(*(t for kv in kept for t in (kv.key_KNH, kv.value_KNH)))
    assert stored == TINY.num_layers * 2 * condition
    planned = stage.condition_bytes(TINY, tokens, sampling, FLOAT32)
    assert planned == (sampling.num_steps + 2) * condition
    one_clip = SamplingConfig(num_steps=2)
    planned = stage.condition_bytes(TINY, tokens, one_clip, FLOAT32)
    assert planned == 3 * condition, "one clip has no refresh"

    for constants in state.constants.layers:
        text = storage_bytes(constants.text.key_KNH, constants.text.value_KNH)
        assert text == stage.text_bytes(TINY, FLOAT32)
        modulation = storage_bytes(constants.modulation_S6D)
        assert modulation == stage.modulation_bytes(TINY, sampling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_in_8_bits_are_those_counted(dtype: torch.dtype) -> None:
    precision = Precision(str(dtype).removeprefix("torch."), "8-bit")
    work = job(4, window=2, steps=2)
    sampling = SamplingConfig(num_steps=2, infer_frames=24, num_clip=2)
    tokens = stage.count_tokens(TINY, (64, 64), sampling)
    network = Transformer(TINY, range(2), dtype, cache_kind="8-bit").requires_grad_(False)
    embedder = ConditionEmbedder(TINY, dtype).requires_grad_(False)
    text_LD = torch.zeros(TINY.text_len, TINY.dim, dtype=dtype)
    time = embedder.embed_time(work.schedule.timesteps)
    state = Denoiser(network, time, text_LD, TokenGrid(4, 4), window_blocks=2)
    hidden = torch.zeros(tokens.condition, TINY.dim, dtype=dtype)
    state.prefill(hidden, 0)
    state.prefill(hidden, 1)
    caches = [cast(QuantisedCache, cache) for cache in state.caches]

    rings = precision.cache_bytes(stage.ring_values(TINY, tokens, sampling), TINY.head_dim)
    assert int8_bytes(*(cache.ring for cache in caches)) == 2 * rings
    stored = [kv for cache in caches for kv in cache._versions.stored.values()]
    planned = stage.condition_bytes(TINY, tokens, sampling, precision)
    assert int8_bytes(*stored) == 2 * planned
    windows = (cache.workspace for cache in caches)
    held = storage_bytes(*(t for kv in windows for t in (kv.key_KNH, kv.value_KNH)))
    assert held == stage.workspace_bytes(TINY, tokens, precision)


def test_speech_and_positions_of_a_block_are_those_counted() -> None:
    work = job(2)
    state = denoiser(work)
    audio = models().embedder.audio_encoder.encode_block(work.conditions.speech_AV[:, :12])
    state.hear(0, audio)
    heard = state._audio[0][0]
    assert heard is not None
    held = (heard.shift_F1D, heard.scale_F1D, heard.tokens.key_KNH, heard.tokens.value_KNH)
    assert storage_bytes(*held) == stage.speech_bytes(TINY, FLOAT32)
    rotation = state._rotation_of_block(0)
    assert storage_bytes(rotation.cos_LR, rotation.sin_LR) == stage.rotation_bytes(TINY, 48)


def test_what_is_in_flight_grows_by_stage_and_role() -> None:
    tokens = stage.count_tokens(TINY, (64, 64), SamplingConfig())
    pipeline = Pipeline(2, 4)
    assert (pipeline.blocks_in_flight, TINY.audio_inject_layers) == (3, (0, 2))
    every = 5 * stage.speech_bytes(TINY, FLOAT32) + 3 * stage.rotation_bytes(TINY, 48)
    latent_frame = seeded(16, 1, 8, 8).nbytes
    first = stage.in_flight_bytes(TINY, range(2), tokens, pipeline, FLOAT32)
    assert first == every + (1 + 19 + 3 * 6) * latent_frame
    last = stage.in_flight_bytes(TINY, range(2, 4), tokens, pipeline, FLOAT32)
    assert last == every + 3 * 48 * TINY.dim * 4


@pytest.mark.parametrize(("size_hw", "condition"), [(PORTRAIT_HW, 2400), ((704, 384), 2640)])
def test_tokens_are_those_of_the_specification(size_hw: tuple[int, int], condition: int) -> None:
    tokens = stage.count_tokens(WAN, size_hw, BALANCED)
    assert tokens.frame == size_hw[0] * size_hw[1] // 256
    assert (tokens.condition, tokens.ring) == (condition, 12 * tokens.frame)


def test_literal_sizes_leave_part_patches_out() -> None:
    tokens = stage.count_tokens(WAN, (688, 368), BALANCED)
    assert (tokens.frame, tokens.condition) == (989, 2409)


@pytest.mark.parametrize(
    ("shape", "config", "size_hw"),
    [(VAEShape(), VAEConfig(), PORTRAIT_HW), (TINY_VAE_SHAPE, TINY_VAE, (64, 128))],
)
def test_the_decoder_state_is_that_of_a_stream(
    shape: VAEShape, config: VAEConfig, size_hw: tuple[int, int]
) -> None:
    decoder = on_meta(lambda: Decoder(config))
    assert isinstance(decoder, Decoder)
    assert media.decoder_state(shape, size_hw, 4) == new_decoder_state(decoder, *size_hw).nbytes


# --- Activations ---------------------------------------------------------------------------------

WIDE = TransformerConfig(
    dim=256,
    ffn_dim=704,
    num_heads=4,
    num_layers=2,
    audio_inject_layers=(1,),
    audio_dim=32,
    num_audio_states=3,
    text_len=8,
    text_dim=32,
)


def wide_stage(precision: Precision, layers: range, *, cache_kind: CacheKind) -> Transformer:
    part = Transformer(WIDE, layers, DTYPES[precision], cache_kind=cache_kind)
    for parameter in part.parameters():
        parameter.data.fill_(0.01)
    return part.requires_grad_(False)


@pytest.mark.parametrize("precision", DTYPES, ids=str)
@pytest.mark.parametrize("layers", [range(1), range(1, 2)], ids=["plain", "injecting"])
@pytest.mark.parametrize("cache_kind", ["exact", "8-bit"])
def test_the_peak_inside_a_layer_is_that_of_a_run(
    precision: Precision, layers: range, cache_kind: CacheKind
) -> None:
    dtype, side = DTYPES[precision], 8
    part = wide_stage(precision, layers, cache_kind=cache_kind)
    embedder = ConditionEmbedder(WIDE, dtype).requires_grad_(False)
    text_LD = torch.zeros(WIDE.text_len, WIDE.dim, dtype=dtype)
    grid = TokenGrid(side, side)
    state = Denoiser(part, embedder.embed_time([1000.0]), text_LD, grid, window_blocks=2)
    tokens = stage.count_tokens(WIDE, (16 * side, 16 * side), SamplingConfig(infer_frames=24))
    condition = torch.zeros(tokens.condition, WIDE.dim, dtype=dtype)
    with PeakMemory() as prefill:
        given = condition + 0
        state.prefill(given + 0, 0)
    state.hear(0, embedder.audio_encoder.encode_block(torch.zeros(WIDE.audio_dim, 12)))
    state.forward(torch.zeros(tokens.block, WIDE.dim, dtype=dtype), Item(0, 0, 0, 30))
    hidden = torch.zeros(tokens.block, WIDE.dim, dtype=dtype)
    with PeakMemory() as forward:
        given = hidden.clone()
        # A stage of several layers holds its own input and the layer's.
        state.forward(given + 0, Item(0, 0, 0, 30))
    injects = layers.start == 1
    planned = stage.layer_peak(WIDE, tokens.block, precision, injects=injects)
    # Vectors per token and per channel are not counted; of these small widths they are some 1 %.
    assert planned <= forward.peak <= 1.02 * planned
    planned = stage.prefill_peak(WIDE, tokens.condition, precision)
    positions = 2 * stage.rotation_bytes(WIDE, tokens.condition)
    assert planned <= prefill.peak <= 1.02 * (planned + positions)


@pytest.mark.parametrize("latent_frames", [3, 7])
def test_the_decoders_peak_is_that_of_a_run(latent_frames: int) -> None:
    decoder = on_meta(lambda: Decoder(VAEConfig()).bfloat16())
    assert isinstance(decoder, Decoder)
    state = new_decoder_state(decoder, *PORTRAIT_HW)
    latent = torch.zeros(16, latent_frames, 80, 48, device="meta")
    decode_step(decoder, latent, state)
    with PeakMemory() as run:
        decode_step(decoder, latent, state)
    planned = media.decode_peak(VAEShape(), PORTRAIT_HW, latent_frames, 2)
    assert planned <= run.peak <= 1.01 * planned  # norms of pixels are not counted


def test_the_portrait_encoders_peak_is_that_of_a_run() -> None:
    # Small enough that attention, which has no fused kernel on the meta device, is not the peak.
    size_hw = (256, 256)
    encoder = on_meta(lambda: Encoder(VAEConfig()).bfloat16())
    assert isinstance(encoder, Encoder)
    with PeakMemory() as run:
        encode_still(encoder, torch.zeros(3, *size_hw, device="meta"), 73)
    planned = media.encode_peak(VAEShape(), size_hw, 2)
    assert planned <= run.peak <= 1.01 * planned


def test_decoding_a_clip_at_once_needs_more_than_a_block() -> None:
    assert media.decoded_latent_frames(BALANCED) == 3
    assert media.decoded_latent_frames(SamplingConfig(online_decode=False)) == 12


def test_long_speech_is_bound_by_a_layer_and_short_by_the_first_convolution() -> None:
    speech = SpeechEncoderShape()
    short, half_hour = (media.speech_peak(speech, seconds, 2) for seconds in (5, 1800))
    assert short == 3 * 16_000 * 512 * 2 + 250 * 1024 * 8
    assert half_hour == 90_000 * (2 * (6 * 1024 + 2 * 4096) + 1024 * 8)


# --- The specification's tables ------------------------------------------------------------------


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


# --- Plans ---------------------------------------------------------------------------------------


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
