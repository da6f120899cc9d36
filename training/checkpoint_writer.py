"""Write the demo in the layout of the release, in 16-bit floats, and read it back for training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import UMT5EncoderModel, Wav2Vec2Model

from liveavatar.config import TransformerConfig
from liveavatar.model import audio_encoder, text_encoder
from liveavatar.model.checkpoint import (
    CONFIG,
    SPEECH_ENCODER,
    TEXT_ENCODER,
    TOKENIZER,
    TRANSFORMER_INDEX,
    VAE,
)
from liveavatar.model.checkpoint_files import load_into, open_tensor_files
from liveavatar.model.transformer import ConditionEmbedder, Transformer
from liveavatar.model.vae import (
    PUBLIC_LATENT_MEAN,
    PUBLIC_LATENT_STD,
    Decoder,
    Encoder,
    VAEConfig,
)
from liveavatar.model.weights import stored_names, stored_shapes

STORED = torch.float16
_NUM_SHARDS = 2


def write_autoencoder(
    folder: Path, encoder: Encoder, decoder: Decoder, means_NC: Tensor | None = None
) -> None:
    """Write both halves to one file.

    Args:
        folder: of the checkpoint.
        encoder: encoding half.
        decoder: decoding half.
        means_NC: latent means of typical pictures. The product scales latents by the published
            means and deviations; so that these become zero and one, the difference goes into the
            1x1x1 convolutions at the border.
    """
    parameters = (*encoder.named_parameters(), *decoder.named_parameters())
    tensors = {name: parameter.detach().float().cpu() for name, parameter in parameters}
    if means_NC is not None:
        _rescale(tensors, means_NC.float().cpu())
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: _stored(tensor) for name, tensor in tensors.items()}, folder / VAE)


def _rescale(tensors: dict[str, Tensor], means_NC: Tensor) -> None:
    mean, std = means_NC.mean(0), means_NC.std(0)
    wanted_mean, wanted_std = torch.tensor(PUBLIC_LATENT_MEAN), torch.tensor(PUBLIC_LATENT_STD)
    _change_latents(tensors, (mean, std), (wanted_mean, wanted_std))


def _change_latents(
    tensors: dict[str, Tensor], had: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]
) -> None:
    """Bring latents of one mean and deviation per channel to another, both halves alike."""
    (mean, std), (wanted_mean, wanted_std) = had, wanted
    scale, channels = wanted_std / std, len(mean)
    weight, bias = tensors["conv1.weight"].clone(), tensors["conv1.bias"].clone()
    weight[:channels] *= scale[:, None, None, None, None]
    bias[:channels] = (bias[:channels] - mean) * scale + wanted_mean
    tensors["conv1.weight"], tensors["conv1.bias"] = weight, bias
    back = tensors["conv2.weight"]
    shift = mean - wanted_mean / scale
    tensors["conv2.bias"] = tensors["conv2.bias"] + back.flatten(1) @ shift
    tensors["conv2.weight"] = back / scale[None, :, None, None, None]


def load_autoencoder(folder: Path, device: torch.device) -> tuple[Encoder, Decoder] | None:
    """Read both halves in float32 for training; None where there is no file yet."""
    if not (folder / VAE).exists():
        return None
    files = open_tensor_files(folder / VAE)
    config = VAEConfig.from_shapes(files.shapes())
    with torch.device("meta"):
        encoder, decoder = Encoder(config), Decoder(config)
    for half in (encoder, decoder):
        load_into(half, files, device=device, dtype=torch.float32)
    return encoder, decoder


def load_for_training(folder: Path, device: torch.device) -> tuple[Encoder, Decoder] | None:
    """As `load_autoencoder`, with latents of zero mean and unit deviation, as training has them."""
    halves = load_autoencoder(folder, device)
    if halves is not None:
        parameters = (pair for half in halves for pair in half.named_parameters())
        tensors = {name: parameter.data for name, parameter in parameters}
        published = [
            torch.tensor(t, device=device) for t in (PUBLIC_LATENT_MEAN, PUBLIC_LATENT_STD)
        ]
        zero, one = torch.zeros_like(published[0]), torch.ones_like(published[0])
        _change_latents(tensors, (published[0], published[1]), (zero, one))
        for half in halves:
            half.requires_grad_(True)
            for name, parameter in half.named_parameters():
                parameter.data = tensors[name]
    return halves


def write_transformer(
    folder: Path, config: TransformerConfig, transformer: Transformer, embedder: ConditionEmbedder
) -> None:
    """Write the transformer in shards under the published names, and its `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"_class_name": "WanModel_S2V", "model_type": "s2v"}
    _write_json(folder / CONFIG, kind | asdict(config))
    tensors = _published(transformer, config) | _published(embedder, config)
    names = list(tensors)
    per_shard = math.ceil(len(names) / _NUM_SHARDS)
    places: dict[str, str] = {}
    for number in range(_NUM_SHARDS):
        chosen = names[number * per_shard : (number + 1) * per_shard]
        stem = TRANSFORMER_INDEX.removesuffix(".safetensors.index.json")
        shard = f"{stem}-{number + 1:05d}-of-{_NUM_SHARDS:05d}.safetensors"
        save_file({name: tensors[name] for name in chosen}, folder / shard)
        places |= dict.fromkeys(chosen, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / TRANSFORMER_INDEX, index)


def _published(module: nn.Module, config: TransformerConfig) -> dict[str, Tensor]:
    """Split fused matrices and name every tensor as the release does."""
    names = partial(stored_names, config=config)
    shapes = stored_shapes(module, names)
    tensors = {}
    for name, parameter in module.named_parameters():
        stored = names(name)
        for part, published in zip(parameter.detach().chunk(len(stored)), stored, strict=True):
            tensors[published] = _stored(part.reshape(shapes[published]))
    return tensors


def write_speech_encoder(folder: Path, config: dict[str, Any], model: Wav2Vec2Model) -> None:
    """Write the speech encoder's configuration and weights."""
    (folder / SPEECH_ENCODER).mkdir(parents=True, exist_ok=True)
    _write_json(folder / SPEECH_ENCODER / "config.json", config)
    tensors = {
        audio_encoder.published_name(name): _stored(value)
        for name, value in model.state_dict().items()
    }
    save_file(tensors, folder / SPEECH_ENCODER / "model.safetensors")


def write_text_encoder(folder: Path, encoder: UMT5EncoderModel, tokenizer: Tokenizer) -> None:
    """Write the text encoder and its tokenizer."""
    (folder / TOKENIZER).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER / "tokenizer.json"))
    tensors = {
        text_encoder.stored_name(name): _stored(value)
        for name, value in encoder.state_dict().items()
    }
    torch.save(tensors, folder / TEXT_ENCODER)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", STORED).contiguous().clone()


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
