"""The published checkpoint directory: its parts, and each of them built alone.

    config.json, diffusion_pytorch_model*.safetensors (+ index)    transformer
    models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/               text encoder, tokenizer
    wav2vec2-large-xlsr-53-english/                                 speech encoder
    Wan2.1_VAE.pth                                                  video autoencoder

Opening reads names and shapes only. Sizes that no config file states are read off the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from liveavatar.config import TransformerConfig
from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import TensorFiles, load_into, open_tensor_files, require
from liveavatar.model.fp8 import quantise_linears
from liveavatar.model.kv_cache import CacheKind
from liveavatar.model.layer_shelf import LayerShelf, run_from_shelf
from liveavatar.model.lora import Adapter, open_adapter
from liveavatar.model.transformer import ConditionEmbedder, Layer, Transformer
from liveavatar.model.vae import Decoder, Encoder, VAEConfig
from liveavatar.model.weights import Names, fill, network_shapes, stored_names, stored_shapes
from liveavatar.plan.precision import FLOAT32_BYTES, Precision

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import UMT5EncoderModel, Wav2Vec2Model

CONFIG = "config.json"
TRANSFORMER_INDEX = "diffusion_pytorch_model.safetensors.index.json"
TRANSFORMER_SINGLE = "diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl"
SPEECH_ENCODER = "wav2vec2-large-xlsr-53-english"
VAE = "Wan2.1_VAE.pth"

_CACHE_KINDS: dict[str, CacheKind] = {"8-bit": "8-bit", "e4m3": "e4m3"}


@dataclass(frozen=True)
class Placement:
    """Where a network goes, and in what precision.

    Attributes:
        device: of all its tensors.
        dtype: of its large matrices as they are read, and of activations.
        quantised_weights: whether the matrices of transformer layers are then rounded to e4m3.
        cache_kind: how the transformer's jobs keep keys and values.
        rings_on_shelf: whether these wait in host memory.
    """

    device: torch.device
    dtype: torch.dtype
    quantised_weights: bool = False
    cache_kind: CacheKind = "exact"
    rings_on_shelf: bool = False

    @classmethod
    def planned(cls, device: torch.device, precision: Precision) -> Placement:
        """Put a network on `device` in the precision that a plan has chosen."""
        wide = precision.value_bytes == FLOAT32_BYTES
        return cls(
            device,
            torch.float32 if wide else torch.bfloat16,
            quantised_weights=precision.quantises_weights,
            cache_kind=_CACHE_KINDS.get(precision.cache, "exact"),
        )


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; every `load_*` builds one part alone, where it is wanted.

    Attributes:
        directory: where it lies.
        config: shape of the transformer.
        vae_config: shape of the autoencoder.
        transformer_files: the transformer's tensors.
        vae_files: the autoencoder's tensors.
        adapter: merged while layers are read; None without one.
    """

    directory: Path
    config: TransformerConfig
    vae_config: VAEConfig
    transformer_files: TensorFiles
    vae_files: TensorFiles
    adapter: Adapter | None

    def load_transformer(
        self,
        where: Placement,
        layers: range | None = None,
        cut: Callable[[Layer], None] | None = None,
        shelf: LayerShelf | None = None,
    ) -> Transformer:
        """Build a range of layers, all by default, with the adapter merged.

        Layers are read one by one, so that never more than one is whole and in its first precision.

        Args:
            where: device and precision.
            layers: which.
            cut: is given each layer when it is read, to keep a part of it, in place.
            shelf: takes each finished layer off the device, and brings it when it is to run.
        """
        with torch.device("meta"):
            transformer = Transformer(
                self.config,
                layers,
                where.dtype,
                cache_kind=where.cache_kind,
                rings_on_shelf=where.rings_on_shelf,
            )
        names = partial(stored_names, config=self.config)
        require(self.transformer_files, stored_shapes(transformer, names))
        for name, part in transformer.parts():
            inner = partial(_prefixed, names, name)
            fill(part, self.transformer_files, inner, where.device, self.adapter)
            if isinstance(part, Layer):
                if cut is not None:
                    cut(part)
                if where.quantised_weights:
                    quantise_linears(part)
                if shelf is not None:
                    shelf.put(part)
        if shelf is not None:
            run_from_shelf(transformer, shelf)
        return transformer.eval()

    def load_condition_embedder(self, where: Placement) -> ConditionEmbedder:
        """Build the embedding of time, text and speech."""
        with torch.device("meta"):
            embedder = ConditionEmbedder(self.config, where.dtype)
        names = partial(stored_names, config=self.config)
        fill(embedder, self.transformer_files, names, where.device)
        return embedder.eval()

    def load_vae_encoder(self, where: Placement) -> Encoder:
        """Build the encoding half of the autoencoder."""
        with torch.device("meta"):
            encoder = Encoder(self.vae_config)
        load_into(encoder, self.vae_files, device=where.device, dtype=where.dtype)
        return encoder.eval()

    def load_vae_decoder(self, where: Placement) -> Decoder:
        """Build the decoding half of the autoencoder."""
        with torch.device("meta"):
            decoder = Decoder(self.vae_config)
        load_into(decoder, self.vae_files, device=where.device, dtype=where.dtype)
        return decoder.eval()

    def load_text_encoder(self, where: Placement) -> UMT5EncoderModel:
        """Build the umT5 encoder."""
        from liveavatar.model.text_encoder import load_text_encoder

        return load_text_encoder(self.directory / TEXT_ENCODER, where.device, where.dtype)

    def load_tokenizer(self) -> Tokenizer:
        """Read the umT5 tokenizer."""
        from liveavatar.model.text_encoder import load_tokenizer

        return load_tokenizer(self.directory / TOKENIZER)

    def load_audio_encoder(self, where: Placement) -> Wav2Vec2Model:
        """Build the wav2vec 2.0 encoder."""
        from liveavatar.model.audio_encoder import load_audio_encoder

        return load_audio_encoder(self.directory / SPEECH_ENCODER, where.device, where.dtype)


def open_checkpoint(
    directory: Path, adapter_path: Path | None = None, *, with_encoders: bool = True
) -> Checkpoint:
    """Open a checkpoint directory and check that its parts are there and fit the network.

    Args:
        directory: in the layout of the release, see the module's docstring.
        adapter_path: LiveAvatar adapter, file or folder; None for a checkpoint that has it merged.
        with_encoders: whether to check the text and speech encoders too. Their library takes
            seconds to import, for which a pipeline stage has no use.

    Raises:
        CheckpointError: a part is missing, damaged or of another size.
        ConfigError: `config.json` describes another network.
    """
    try:
        there = directory.is_dir()
    except OSError:
        there = False
    if not there:
        raise CheckpointError(
            f"{directory}: expected a checkpoint folder; set ckpt_dir to one that holds {CONFIG}"
        )
    parts = (CONFIG, TEXT_ENCODER, TOKENIZER, SPEECH_ENCODER, VAE)
    missing = [part for part in parts if not (directory / part).exists()]
    if missing:
        raise CheckpointError(
            f"{directory}: not a complete checkpoint, {', '.join(missing)} missing; fetch the "
            "whole folder again"
        )
    files = open_tensor_files(_transformer_file(directory))
    config = _sized(TransformerConfig.from_file(directory / CONFIG), files)
    vae_files = open_tensor_files(directory / VAE)
    vae_config = VAEConfig.from_shapes(vae_files.shapes())
    if vae_config.z_dim != config.in_dim or vae_config.spatial_stride != 8:
        raise CheckpointError(
            f"{vae_files.path}: latents of {vae_config.z_dim} channels at 1/"
            f"{vae_config.spatial_stride}, the transformer needs {config.in_dim} at 1/8"
        )
    _check_transformer(config, files)
    if with_encoders:
        _check_encoders(config, directory)
    adapter = None if adapter_path is None else open_adapter(adapter_path, config)
    return Checkpoint(directory, config, vae_config, files, vae_files, adapter)


def _prefixed(names: Names, prefix: str, name: str) -> tuple[str, ...]:
    """Stored names of the parameter `name` of the part that is called `prefix`."""
    return names(f"{prefix}.{name}")


def _transformer_file(directory: Path) -> Path:
    for name in (TRANSFORMER_INDEX, TRANSFORMER_SINGLE):
        if (directory / name).exists():
            return directory / name
    raise CheckpointError(
        f"{directory}: expected {TRANSFORMER_INDEX} or {TRANSFORMER_SINGLE}, found neither; fetch "
        "the whole folder again"
    )


def _sized(config: TransformerConfig, files: TensorFiles) -> TransformerConfig:
    """Take from the tensors what the published config.json leaves out."""
    text, states = (
        files.shape(name) for name in ("text_embedding.0.weight", "casual_audio_encoder.weights")
    )
    if len(text) != 2 or len(states) != 4:
        raise CheckpointError(
            f"{files.path}: 'text_embedding.0.weight' {list(text)} and "
            f"'casual_audio_encoder.weights' {list(states)} are not of this network"
        )
    return replace(config, text_dim=text[1], num_audio_states=states[1])


def _check_transformer(config: TransformerConfig, files: TensorFiles) -> None:
    """Raise CheckpointError unless config.json and the stored tensors are of one network."""
    expected = network_shapes(config)
    require(files, expected)
    layers = re.compile(r"(blocks|audio_injector)\.")
    surplus = [name for name in files.names() if layers.match(name) and name not in expected]
    if surplus:
        raise CheckpointError(
            f"{files.path}: holds '{surplus[0]}' and {len(surplus) - 1} more tensors beyond the "
            f"{config.num_layers} layers of {CONFIG}; the two are of different networks"
        )


def _check_encoders(config: TransformerConfig, directory: Path) -> None:
    """Raise CheckpointError unless both encoders give what the transformer takes."""
    from liveavatar.model.audio_encoder import read_config
    from liveavatar.model.text_encoder import encoder_config

    text = directory / TEXT_ENCODER
    width = encoder_config(open_tensor_files(text)).d_model
    if width != config.text_dim:
        raise CheckpointError(
            f"{text}: its rows are {width} wide, the transformer takes {config.text_dim}"
        )
    speech = directory / SPEECH_ENCODER / "config.json"
    found = read_config(speech)
    given = (found.hidden_size, found.num_hidden_layers + 1)
    if given != (config.audio_dim, config.num_audio_states):
        raise CheckpointError(
            f"{speech}: {given[1]} hidden states of width {given[0]}, the transformer takes "
            f"{config.num_audio_states} of width {config.audio_dim}"
        )
