"""Published weights into our transformer: the key map, fused matrices, the adapter.

The parameter names of the published checkpoint stand only here. Weights are read tensor by tensor,
and only for the layers that were built; host memory stays near the largest of them.
"""

import math
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from liveavatar.config import TransformerConfig
from liveavatar.model.checkpoint_files import TensorFiles, assign, require
from liveavatar.model.lora import Adapter
from liveavatar.model.motion import PatchEmbedding
from liveavatar.model.transformer import ConditionEmbedder, Transformer

Names = Callable[[str], tuple[str, ...]]

_FUSED = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}
_AUDIO = re.compile(r"^layers\.(\d+)\.audio\.(attention|adain)\.")
_RENAMED = (
    (r"^embedder\.token_kind$", "trainable_cond_mask.weight"),
    (r"^embedder\.", ""),
    (r"^layers\.(\d+)\.ffn_in\.", r"blocks.\1.ffn.0."),
    (r"^layers\.(\d+)\.ffn_out\.", r"blocks.\1.ffn.2."),
    (r"^layers\.", "blocks."),
    (r"^head\.linear\.", "head.head."),
    (r"^time_in\.", "time_embedding.0."),
    (r"^time_out\.", "time_embedding.2."),
    (r"^time_projection\.", "time_projection.1."),
    (r"^text_in\.", "text_embedding.0."),
    (r"^text_out\.", "text_embedding.2."),
    (r"^audio_encoder\.mix_weights$", "casual_audio_encoder.weights"),
    (r"^audio_encoder\.padding_token$", "casual_audio_encoder.encoder.padding_tokens"),
    (r"^audio_encoder\.final_linear\.", "casual_audio_encoder.encoder.final_linear."),
    (r"^audio_encoder\.(conv\w+)\.", r"casual_audio_encoder.encoder.\1.conv."),
)


def stored_names(name: str, config: TransformerConfig) -> tuple[str, ...]:
    """Names in the published checkpoint of one of our parameters.

    Args:
        name: parameter name in `Transformer` or `ConditionEmbedder`.
        config: tells which injection belongs to which layer.

    Returns:
        One name, or the names whose rows are stacked in a fused matrix.
    """
    audio = _AUDIO.match(name)
    if audio:
        index = config.audio_inject_layers.index(int(audio[1]))
        kind = "injector" if audio[2] == "attention" else "injector_adain_layers"
        leaf = name[audio.end() :] if audio[2] == "attention" else f"linear.{name[audio.end() :]}"
        stored = f"audio_injector.{kind}.{index}.{leaf}"
    else:
        stored = name
        for pattern, replacement in _RENAMED:
            stored, hits = re.subn(pattern, replacement, stored)
            if hits:
                break
    owner, _, leaf = stored.rpartition(".")
    owner, _, projection = owner.rpartition(".")
    if projection in _FUSED:
        return tuple(f"{owner}.{part}.{leaf}" for part in _FUSED[projection])
    return (stored,)


def stored_shapes(module: nn.Module, names: Names) -> dict[str, tuple[int, ...]]:
    """Shape that each tensor `module` needs has in the published checkpoint, by stored name."""
    shapes = {}
    for name, parameter in module.named_parameters():
        sources = names(name)
        shape = (parameter.shape[0] // len(sources), *parameter.shape[1:])
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, PatchEmbedding) and name.endswith(".weight"):
            shape = (shape[0], shape[1] // math.prod(owner.patch), *owner.patch)
        elif name.endswith("modulation"):
            shape = (1, *shape)
        elif name.endswith("mix_weights"):
            shape = (1, *shape, 1, 1)
        elif name.endswith("padding_token"):
            shape = (1, 1, 1, *shape)
        shapes.update(dict.fromkeys(sources, shape))
    return shapes


def network_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the published transformer at this size."""
    with torch.device("meta"):
        parts = (Transformer(config), ConditionEmbedder(config))
    shapes: dict[str, tuple[int, ...]] = {}
    for part in parts:
        shapes |= stored_shapes(part, partial(stored_names, config=config))
    return shapes


def fill(
    module: nn.Module,
    files: TensorFiles,
    names: Names,
    device: torch.device | str = "cpu",
    adapter: Adapter | None = None,
) -> None:
    """Fill a module built on the meta device; each parameter keeps the dtype it was built with.

    Args:
        module: the part that is wanted.
        files: the published transformer weights.
        names: stored names of a parameter of `module`; see `stored_names`.
        device: where the parameters go.
        adapter: merged into the weights it targets, in the stored dtype, before anything else.

    Raises:
        CheckpointError: a tensor is missing, damaged or of another shape; names file and tensor.
    """
    require(files, stored_shapes(module, names))
    for name, parameter in list(module.named_parameters()):
        parts = [_read(files, stored, device, adapter) for stored in names(name)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        assign(module, name, whole.reshape(parameter.shape).to(parameter.dtype))


def _read(
    files: TensorFiles, name: str, device: torch.device | str, adapter: Adapter | None
) -> Tensor:
    weight = files.read(name, device)
    return weight if adapter is None else adapter.apply(name, weight)
