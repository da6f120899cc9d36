"""Random weights of any shape where no checkpoint exists: drawn on the device when asked for.

They pass through the same loaders as those of a file, tensor by tensor, so that memory and speed of
the 14B network can be measured without 49 GB of files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from liveavatar.model.audio_encoder import build_audio_encoder, encoder_config
from liveavatar.model.checkpoint import Checkpoint, Placement
from liveavatar.model.checkpoint_files import Part, TensorEntry, TensorFiles
from liveavatar.model.text_encoder import build_text_encoder
from liveavatar.model.vae import VAEConfig, checkpoint_shapes
from liveavatar.model.weights import network_shapes
from liveavatar.plan.shapes import Network, SpeechEncoderShape, TextEncoderShape
from liveavatar.random_checkpoint import character_tokenizer, speech_shapes, text_shapes

_NOWHERE = Path("random weights")


class RandomTensors(TensorFiles):
    """Tensors that are drawn when they are read: the same name, shape and device, the same values.

    Args:
        shapes: of every tensor by name.
        dtype: of all of them.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> None:
        super().__init__(
            _NOWHERE,
            {name: TensorEntry(_NOWHERE, tuple(shape), dtype) for name, shape in shapes.items()},
        )
        self._seeds = {name: seed for seed, name in enumerate(shapes)}

    def read(
        self,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Draw one tensor, or a part of it; see `TensorFiles.read`."""
        shape = self.shape(name)
        generator = torch.Generator(device).manual_seed(self._seeds[name])
        tensor = torch.empty(shape, dtype=dtype or self.dtype(name), device=device)
        is_norm = len(shape) == 1 and name.endswith(("weight", "gamma", "weight_g"))
        # Products of matrices keep their size; norms are near 1, biases and shifts near 0.
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.05
        tensor.normal_(float(is_norm), scale, generator=generator)
        return tensor if part is None else tensor[part].clone()


@dataclass(frozen=True)
class RandomCheckpoint(Checkpoint):
    """A checkpoint of random weights; `random_checkpoint` makes it.

    Attributes:
        network: shapes of the encoders too.
    """

    network: Network

    def load_text_encoder(self, where: Placement) -> UMT5EncoderModel:
        """Build the umT5 encoder."""
        shapes = text_shapes(text_config(self.network.text))
        return build_text_encoder(RandomTensors(shapes, torch.bfloat16), where.device, where.dtype)

    def load_tokenizer(self) -> Tokenizer:
        """Make a tokenizer of single characters."""
        return character_tokenizer()

    def load_audio_encoder(self, where: Placement) -> Wav2Vec2Model:
        """Build the wav2vec 2.0 encoder."""
        config = speech_config(self.network.speech)
        files = RandomTensors(speech_shapes(config), torch.float32)
        return build_audio_encoder(config, files, where.device, where.dtype)


def random_checkpoint(network: Network) -> RandomCheckpoint:
    """A checkpoint of random weights in the shapes of `network`."""
    vae_config = VAEConfig(**asdict(network.vae))
    checkpoint = RandomCheckpoint(
        directory=_NOWHERE,
        config=network.transformer,
        vae_config=vae_config,
        transformer_files=RandomTensors(network_shapes(network.transformer), torch.bfloat16),
        vae_files=RandomTensors(checkpoint_shapes(vae_config), torch.float32),
        adapter=None,
        network=network,
    )
    return checkpoint


def text_config(shape: TextEncoderShape) -> UMT5Config:
    """The text encoder of a shape."""
    return UMT5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        d_kv=shape.attention_width // shape.num_heads,
        d_ff=shape.ffn_width,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        relative_attention_num_buckets=shape.num_buckets,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )


def speech_config(shape: SpeechEncoderShape) -> Wav2Vec2Config:
    """The speech encoder of a shape, with heads 64 wide."""
    return encoder_config(
        {
            "hidden_size": shape.width,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": max(1, shape.width // 64),
            "intermediate_size": shape.ffn_width,
            "conv_dim": list(shape.conv_widths),
            "conv_kernel": list(shape.conv_kernels),
            "conv_stride": list(shape.conv_strides),
            "conv_bias": shape.conv_bias,
            "feat_extract_norm": "layer" if shape.norm_each_conv else "group",
            "do_stable_layer_norm": True,
            "num_conv_pos_embeddings": shape.position_kernel,
            "num_conv_pos_embedding_groups": shape.position_groups,
        }
    )
