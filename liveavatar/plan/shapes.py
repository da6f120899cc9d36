"""Shapes of the networks around the transformer, and the shapes of a checkpoint folder.

Read without torch: only names and shapes of stored tensors are looked at.
"""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from liveavatar.config import TransformerConfig
from liveavatar.errors import CheckpointError
from liveavatar.plan.stored_shapes import Shapes, read_pickled_shapes, read_safetensors_shapes

CONFIG = "config.json"
TRANSFORMER_INDEX = "diffusion_pytorch_model.safetensors.index.json"
TRANSFORMER_SINGLE = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
SPEECH_CONFIG = "wav2vec2-large-xlsr-53-english/config.json"
VAE = "Wan2.1_VAE.pth"

_LARGEST_SIZE = 2**20


@dataclass(frozen=True)
class VAEShape:
    """Shape of the video autoencoder; the defaults are Wan2.1.

    Attributes:
        dim: channels at full resolution.
        z_dim: channels of the latent.
        dim_mult: width of each level as a multiple of `dim`, full resolution first.
        num_res_blocks: residual blocks per encoder level; a decoder level has one more.
        temporal_downsample: for each step between two levels, whether it halves time as well.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.dim * multiple for multiple in self.dim_mult)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent pixel along each side."""
        return 1 << (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class TextEncoderShape:
    """Shape of the umT5 encoder; the defaults are umT5-XXL."""

    vocabulary: int = 256384
    width: int = 4096
    attention_width: int = 4096
    num_heads: int = 64
    ffn_width: int = 10240
    num_layers: int = 24
    num_buckets: int = 32


@dataclass(frozen=True)
class SpeechEncoderShape:
    """Shape of the wav2vec 2.0 encoder; the defaults are wav2vec2-large.

    Attributes:
        width, ffn_width, num_layers: of the transformer layers.
        conv_widths, conv_kernels, conv_strides: of the convolutions in front.
        conv_bias: whether these have a bias.
        norm_each_conv: a norm behind every convolution, not only behind the first.
        position_kernel, position_groups: of the positional convolution.
    """

    width: int = 1024
    ffn_width: int = 4096
    num_layers: int = 24
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    norm_each_conv: bool = True
    position_kernel: int = 128
    position_groups: int = 16


@dataclass(frozen=True)
class Network:
    """Shapes of everything a worker group loads; the defaults are Wan2.2-S2V-14B's."""

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vae: VAEShape = VAEShape()
    text: TextEncoderShape = TextEncoderShape()
    speech: SpeechEncoderShape = SpeechEncoderShape()


def read_network(directory: Path) -> Network:
    """Read the shapes of a checkpoint folder in the layout of the release.

    Raises:
        CheckpointError: a part is missing, damaged or of another kind.
        ConfigError: `config.json` describes another network.
    """
    if not (directory / CONFIG).is_file():
        raise CheckpointError(
            f"{directory}: expected a checkpoint folder; set --model to one that holds {CONFIG}"
        )
    stored = _transformer_shapes(directory)
    text_rows = _shape(stored, "text_embedding.0.weight", 2, directory)
    states = _shape(stored, "casual_audio_encoder.weights", 4, directory)
    config = TransformerConfig.from_file(directory / CONFIG)
    return Network(
        replace(config, text_dim=text_rows[1], num_audio_states=states[1]),
        vae_shape(read_pickled_shapes(directory / VAE), directory / VAE),
        text_shape(read_pickled_shapes(directory / TEXT_ENCODER), directory / TEXT_ENCODER),
        read_speech_shape(directory / SPEECH_CONFIG),
    )


def _transformer_shapes(directory: Path) -> Shapes:
    index = directory / TRANSFORMER_INDEX
    if not index.exists():
        return read_safetensors_shapes(directory / TRANSFORMER_SINGLE)
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index}: expected a table 'weight_map' of file names")
    shapes: Shapes = {}
    for shard in sorted({Path(name).name for name in shards.values()}):
        shapes |= read_safetensors_shapes(directory / shard)
    return shapes


def vae_shape(shapes: Shapes, path: Path) -> VAEShape:
    """Read the autoencoder's shape off its tensors; CheckpointError if it is another one."""
    levels: list[list[int]] = [[]]
    doubles_time: list[bool] = []
    for index in range(len(shapes)):
        name = f"decoder.upsamples.{index}"
        if f"{name}.residual.2.weight" in shapes:
            levels[-1].append(_shape(shapes, f"{name}.residual.2.weight", 5, path)[0])
        elif f"{name}.resample.1.weight" in shapes:
            doubles_time.append(f"{name}.time_conv.weight" in shapes)
            levels.append([])
        else:
            break
    latent = _shape(shapes, "conv2.weight", 5, path)[0]
    widths = [level[-1] for level in reversed(levels) if level]
    if len(widths) != len(levels) or any(width % widths[0] for width in widths):
        raise CheckpointError(
            f"{path}: decoder levels are {widths} channels wide, expected one multiple of the "
            "first for each; give the Wan2.1 VAE with its original tensor names"
        )
    return VAEShape(
        dim=widths[0],
        z_dim=latent,
        dim_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=len(levels[0]) - 1,
        temporal_downsample=tuple(reversed(doubles_time)),
    )


def text_shape(shapes: Shapes, path: Path) -> TextEncoderShape:
    """Read the text encoder's shape off its tensors; CheckpointError if it is another one."""
    vocabulary, width = _shape(shapes, "token_embedding.weight", 2, path)
    buckets, heads = _shape(shapes, "blocks.0.pos_embedding.embedding.weight", 2, path)
    layers = {found[1] for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    return TextEncoderShape(
        vocabulary=vocabulary,
        width=width,
        attention_width=_shape(shapes, "blocks.0.attn.q.weight", 2, path)[0],
        num_heads=heads,
        ffn_width=_shape(shapes, "blocks.0.ffn.fc1.weight", 2, path)[0],
        num_layers=len(layers),
        num_buckets=buckets,
    )


def read_speech_shape(path: Path) -> SpeechEncoderShape:
    """Read the speech encoder's shape; CheckpointError for a file of another kind.

    What the file leaves out has the default of the library that wrote it.
    """
    stored = _read_json(path)
    defaults = SpeechEncoderShape()

    def size(key: str, default: int) -> int:
        return _sized(path, key, stored.get(key, default))

    def sizes(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        values = stored.get(key, default)
        if not isinstance(values, list | tuple) or not 0 < len(values) <= 32:
            raise CheckpointError(f"{path}: '{key}' should be a list of 1 to 32 whole numbers")
        return tuple(_sized(path, key, value) for value in values)

    shape = SpeechEncoderShape(
        width=size("hidden_size", 768),
        ffn_width=size("intermediate_size", 3072),
        num_layers=size("num_hidden_layers", 12),
        conv_widths=sizes("conv_dim", defaults.conv_widths),
        conv_kernels=sizes("conv_kernel", defaults.conv_kernels),
        conv_strides=sizes("conv_stride", defaults.conv_strides),
        conv_bias=bool(stored.get("conv_bias", False)),
        norm_each_conv=stored.get("feat_extract_norm", "group") == "layer",
        position_kernel=size("num_conv_pos_embeddings", 128),
        position_groups=size("num_conv_pos_embedding_groups", 16),
    )
    if not len(shape.conv_widths) == len(shape.conv_kernels) == len(shape.conv_strides):
        raise CheckpointError(f"{path}: conv_dim, conv_kernel and conv_stride differ in length")
    return shape


def _shape(shapes: Shapes, name: str, num_axes: int, path: Path) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != num_axes or not all(0 < size <= _LARGEST_SIZE for size in shape):
        raise CheckpointError(
            f"{path}: expected '{name}' with {num_axes} axes, found "
            f"{list(shape) if shape else 'none'}; fetch the checkpoint again"
        )
    return shape


def _sized(path: Path, key: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= _LARGEST_SIZE:
        raise CheckpointError(f"{path}: '{key}' should be a whole number above 0")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a readable JSON file: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
