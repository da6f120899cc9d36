"""The low-rank adapter: which file tensors it changes, and how.

Source: Alibaba-Quark/LiveAvatar at 9c2c38d; rank 128 and alpha 64 are its training settings, so
that the scale is 0.5. They are not stored in the file.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from liveavatar.config import TransformerConfig
from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import TensorFiles, open_tensor_files

SCALE = 0.5
PREFIX = "base_model.model."
FILE_NAME = "liveavatar.safetensors"


def adapter_targets(config: TransformerConfig) -> list[str]:
    """Modules of the published network that the adapter changes, 448 at the 14B shape."""
    projections = ("q", "k", "v", "o")
    targets = []
    for layer in range(config.num_layers):
        targets += [
            f"blocks.{layer}.{a}.{p}" for a in ("self_attn", "cross_attn") for p in projections
        ]
        targets += [f"blocks.{layer}.ffn.0", f"blocks.{layer}.ffn.2"]
    for index in range(len(config.audio_inject_layers)):
        targets += [f"audio_injector.injector.{index}.{p}" for p in projections]
    return targets


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float = SCALE) -> Tensor:
    """Add the adapter to a weight: W + scale * (B A), the sum in float32, one rounding.

    Args:
        weight: (out, in).
        down: A, (rank, in).
        up: B, (out, rank).
        scale: alpha / rank.

    Returns:
        (out, in), dtype of `weight`.
    """
    return (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)


class Adapter:
    """Pairs of low-rank factors by module name; nothing is read before it is asked for.

    Names may carry the prefix `base_model.model.` and the part `.default`, or not.

    Args:
        files: the adapter's tensors.
        targets: modules that must have a pair each; no other key may be left over.
        scale: alpha / rank.

    Raises:
        CheckpointError: a pair is missing or a key is unexpected; names the first of each.
    """

    def __init__(self, files: TensorFiles, targets: Iterable[str], scale: float = SCALE) -> None:
        self.files = files
        self.scale = scale
        self._stored: dict[str, str] = {}
        for name in files.names():
            if _plain(name) in self._stored:
                raise CheckpointError(
                    f"{files.path}: '{name}' and '{self._stored[_plain(name)]}' are the same "
                    "factor under two names; expected one"
                )
            self._stored[_plain(name)] = name
        expected = [f"{target}.lora_{side}.weight" for target in targets for side in "AB"]
        missing = [name for name in expected if name not in self._stored]
        unexpected = sorted(set(self._stored) - set(expected))
        if missing or unexpected:
            raise CheckpointError(
                f"{files.path}: expected {len(expected) // 2} adapter pairs for this network; "
                f"{len(missing)} keys are missing (first: {missing[0] if missing else 'none'}), "
                f"{len(unexpected)} are unexpected (first: "
                f"{self._stored[unexpected[0]] if unexpected else 'none'}); "
                "use the adapter that belongs to this checkpoint"
            )

    def apply(self, stored_name: str, weight: Tensor) -> Tensor:
        """Merge into `weight` if the file tensor `stored_name` is a target; else return it."""
        module, _, leaf = stored_name.rpartition(".")
        if leaf != "weight" or f"{module}.lora_A.weight" not in self._stored:
            return weight
        down_name = self._stored[f"{module}.lora_A.weight"]
        up_name = self._stored[f"{module}.lora_B.weight"]
        down = self.files.read(down_name, weight.device, torch.float32)
        up = self.files.read(up_name, weight.device, torch.float32)
        fits = down.ndim == up.ndim == weight.ndim == 2 and (
            (up.shape[0], down.shape[1], up.shape[1]) == (*weight.shape, down.shape[0])
        )
        if not fits:
            raise CheckpointError(
                f"{self.files.path}: '{down_name}' {list(down.shape)} and '{up_name}' "
                f"{list(up.shape)} do not fit '{stored_name}' {list(weight.shape)}"
            )
        return merge(weight, down, up, self.scale)


def open_adapter(path: Path, config: TransformerConfig) -> Adapter:
    """Open the adapter file, or the folder that holds `liveavatar.safetensors`.

    Raises:
        CheckpointError: there is no such file, or it does not fit the network.
    """
    try:
        path = path / FILE_NAME if path.is_dir() else path
        there = path.exists()
    except OSError:
        there = False
    if not there:
        raise CheckpointError(
            f"{path}: no such adapter; lora_path_dmd takes a local file or the folder that holds "
            f"{FILE_NAME}, download it first"
        )
    return Adapter(open_tensor_files(path), adapter_targets(config))


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".default.", ".")
