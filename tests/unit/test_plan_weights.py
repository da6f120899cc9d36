"""Weights that the memory plan counts are those of the modules, to the byte."""

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from liveavatar.config import TransformerConfig
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.transformer import ConditionEmbedder, Layer, Transformer
from liveavatar.model.vae import Decoder, Encoder, VAEConfig
from liveavatar.plan import media_memory as media
from liveavatar.plan import transformer_memory as stage
from liveavatar.plan.layout import split_stages
from liveavatar.plan.precision import BFLOAT16, Precision
from liveavatar.plan.shapes import SpeechEncoderShape, TextEncoderShape, VAEShape
from liveavatar.random_checkpoint import TINY, TINY_SPEECH, TINY_TEXT, TINY_VAE
from tests.unit.planned_memory import (
    BALANCED,
    DTYPES,
    PORTRAIT_HW,
    TINY_SPEECH_SHAPE,
    TINY_TEXT_SHAPE,
    TINY_VAE_SHAPE,
    WAN,
    on_meta,
    parameter_bytes,
)

FP8 = Precision("fp8", "bfloat16")


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
