"""Sizes of the demo's networks: the published architecture with smaller numbers."""

from __future__ import annotations

from typing import Any

from transformers import UMT5Config

from liveavatar.config import TransformerConfig
from liveavatar.model.vae import VAEConfig

DEMO = TransformerConfig(
    dim=256,
    ffn_dim=1024,
    num_heads=4,
    num_layers=8,
    audio_inject_layers=(0, 1, 2, 4, 6),
    audio_dim=128,
    num_audio_states=4,
    text_len=64,
    text_dim=64,
)
TRIAL = TransformerConfig(
    dim=64,
    ffn_dim=128,
    num_heads=2,
    num_layers=2,
    audio_inject_layers=(0, 1),
    audio_dim=128,
    num_audio_states=4,
    text_len=64,
    text_dim=64,
)
"""For trying the commands on a processor; learns little."""

SPEECH: dict[str, Any] = {
    "model_type": "wav2vec2",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "conv_dim": [48, 64, 96, 128, 128, 128, 128],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 31,
    "num_conv_pos_embedding_groups": 8,
    "layer_norm_eps": 1e-5,
}


def text_config(vocabulary_size: int) -> UMT5Config:
    """Size of the text encoder."""
    return UMT5Config(
        vocab_size=vocabulary_size,
        d_model=DEMO.text_dim,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
    )


DEMO_VAE = VAEConfig(dim=16, dim_mult=(1, 2, 4, 4), num_res_blocks=2)
