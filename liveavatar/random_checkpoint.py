"""Write a tiny checkpoint with random weights, in the layout and under the names of the release.

    python -m liveavatar.random_checkpoint DIR [--seed N]

For tests and for trying the commands where no weights exist: it goes through every code path of the
real one and shows noise. The same seed writes the same bytes.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

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
from liveavatar.model.lora import FILE_NAME, adapter_targets
from liveavatar.model.vae import VAEConfig, checkpoint_shapes
from liveavatar.model.weights import network_shapes

Shapes = dict[str, tuple[int, ...]]

TINY = TransformerConfig(
    dim=64,
    ffn_dim=128,
    num_heads=2,
    num_layers=4,
    audio_inject_layers=(0, 2),
    audio_dim=32,
    num_audio_states=3,
    text_len=64,
    text_dim=32,
)
TINY_VAE = VAEConfig(dim=4, num_res_blocks=1)
TINY_TEXT = UMT5Config(
    vocab_size=256, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, is_encoder_decoder=False
)
TINY_SPEECH = {
    "model_type": "wav2vec2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [24] * 7,
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layer_norm_eps": 1e-5,
}
NUM_SHARDS = 2


def write_checkpoint(directory: Path, seed: int = 0) -> None:
    """Write the tiny checkpoint.

    Args:
        directory: made if it is not there; files of the same names are replaced.
        seed: of the weights.
    """
    (directory / TOKENIZER).mkdir(parents=True, exist_ok=True)
    (directory / SPEECH_ENCODER).mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    config = {"_class_name": "WanModel_S2V", "model_type": "s2v", **asdict(TINY)}
    _write_json(directory / CONFIG, config)
    weights = _random(network_shapes(TINY), generator, torch.bfloat16)
    _write_shards(directory / TRANSFORMER_INDEX, weights)
    torch.save(_random(text_shapes(TINY_TEXT), generator, torch.bfloat16), directory / TEXT_ENCODER)
    torch.save(_random(checkpoint_shapes(TINY_VAE), generator), directory / VAE)
    character_tokenizer().save(str(directory / TOKENIZER / "tokenizer.json"))
    _write_json(directory / SPEECH_ENCODER / "config.json", TINY_SPEECH)
    speech_config = Wav2Vec2Config(**TINY_SPEECH, mask_time_prob=0.0)
    speech = _random(speech_shapes(speech_config), generator)
    save_file(speech, directory / SPEECH_ENCODER / "model.safetensors")


def write_adapter(directory: Path, rank: int = 4, seed: int = 1) -> Path:
    """Write a random adapter for the tiny checkpoint; returns its file."""
    directory.mkdir(parents=True, exist_ok=True)
    shapes = network_shapes(TINY)
    pairs: Shapes = {}
    for target in adapter_targets(TINY):
        rows, columns = shapes[f"{target}.weight"]
        pairs[f"{target}.lora_A.default.weight"] = (rank, columns)
        pairs[f"{target}.lora_B.default.weight"] = (rows, rank)
    generator = torch.Generator().manual_seed(seed)
    save_file(_random(pairs, generator, torch.bfloat16), directory / FILE_NAME)
    return directory / FILE_NAME


def text_shapes(config: UMT5Config) -> Shapes:
    """Name and shape of every stored tensor of a text encoder."""
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    return {
        text_encoder.stored_name(name): tuple(value.shape)
        for name, value in encoder.state_dict().items()
    }


def speech_shapes(config: Wav2Vec2Config) -> Shapes:
    """Name and shape of every stored tensor of a speech encoder."""
    with torch.device("meta"):
        model = Wav2Vec2Model(config)
    return {
        audio_encoder.published_name(name): tuple(value.shape)
        for name, value in model.state_dict().items()
    }


def _random(
    shapes: Mapping[str, Sequence[int]],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Draw weights whose products keep their size; norms near 1, biases and shifts near 0."""
    drawn = {}
    for name, shape in shapes.items():
        noise = torch.randn(tuple(shape), generator=generator)
        if ("norm" in name and name.endswith("weight")) or name.endswith(("gamma", "weight_g")):
            value = 1 + 0.05 * noise
        elif len(shape) > 1 and not name.endswith("modulation"):
            value = noise / math.sqrt(math.prod(shape[1:]))
        else:
            value = 0.05 * noise
        drawn[name] = value.to(dtype)
    return drawn


def _write_shards(index: Path, weights: Mapping[str, Tensor]) -> None:
    names = list(weights)
    per_shard = math.ceil(len(names) / NUM_SHARDS)
    weight_map: dict[str, str] = {}
    for number in range(NUM_SHARDS):
        chosen = names[number * per_shard : (number + 1) * per_shard]
        stem = index.name.removesuffix(".safetensors.index.json")
        shard = f"{stem}-{number + 1:05d}-of-{NUM_SHARDS:05d}.safetensors"
        save_file({name: weights[name] for name in chosen}, index.parent / shard)
        weight_map |= dict.fromkeys(chosen, shard)
    total = sum(tensor.nbytes for tensor in weights.values())
    _write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})


def character_tokenizer() -> Tokenizer:
    """Make a unigram tokenizer of single characters, with the special ids of umT5."""
    pieces: Iterable[str] = ["▁", *map(chr, range(33, 127)), *map(chr, range(192, 256))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((p, -2.0) for p in pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", text_encoder.END_TOKEN_ID)]
    )
    return tokenizer


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m liveavatar.random_checkpoint",
        description="Write a tiny checkpoint with random weights.",
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    write_checkpoint(options.directory, options.seed)
    sys.stdout.write(f"wrote {options.directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
