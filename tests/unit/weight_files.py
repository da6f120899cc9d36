"""Weight files of four small tensors, in every form that is read."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(6, 4, generator=generator).to(torch.bfloat16),
        "layer.bias": torch.randn(6, generator=generator),
        "scale": torch.tensor(3.5),
        "counts": torch.arange(5),
    }


def write_shards(folder: Path) -> Path:
    stored = tensors()
    first = {name: stored[name] for name in ("layer.weight", "scale")}
    second = {name: stored[name] for name in ("layer.bias", "counts")}
    save_file(first, folder / "model-1.safetensors")
    save_file(second, folder / "model-2.safetensors")
    table = dict.fromkeys(first, "model-1.safetensors")
    table.update(dict.fromkeys(second, "model-2.safetensors"))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder / INDEX


def write_single(folder: Path) -> Path:
    save_file(tensors(), folder / "model.safetensors")
    return folder / "model.safetensors"


def write_pickled(folder: Path) -> Path:
    torch.save(tensors(), folder / "model.pth")
    return folder / "model.pth"


WRITERS = [write_single, write_shards, write_pickled]
