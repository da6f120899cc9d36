"""Modules on no device are filled from files of weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import assign, load_into, open_tensor_files, require
from tests.unit.weight_files import (
    write_single,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.register_buffer("offset", torch.zeros(3))
        self.register_buffer("cache", torch.ones(2, device="cpu"), persistent=False)


def write_small(folder: Path) -> tuple[Small, Path]:
    torch.manual_seed(1)
    small = Small()
    small.offset.copy_(torch.randn(3))
    save_file(small.state_dict(), folder / "small.safetensors")
    return small, folder / "small.safetensors"


def test_a_meta_module_becomes_the_stored_one(tmp_path: Path) -> None:
    small, path = write_small(tmp_path)
    with torch.device("meta"):
        loaded = Small()
    used = load_into(loaded, open_tensor_files(path))
    assert used == {"inner.weight", "inner.bias", "offset"}
    x = torch.randn(2, 4)
    assert torch.equal(loaded.inner(x), small.inner(x))
    assert torch.equal(loaded.offset, small.offset)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_names_map_through_a_function_or_a_table(tmp_path: Path) -> None:
    save_file({"a.w": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "x.safetensors")
    files = open_tensor_files(tmp_path)
    for rename in ({"weight": "a.w"}, lambda name: {"weight": "a.w"}.get(name, name)):
        with torch.device("meta"):
            layer = nn.Linear(2, 2)
        load_into(layer, files, rename)
        assert torch.equal(layer.weight, torch.ones(2, 2))


def test_parameters_of_one_stored_tensor_are_one_parameter(tmp_path: Path) -> None:
    save_file({"shared": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        pair = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    load_into(pair, open_tensor_files(tmp_path), lambda _: "shared")
    assert pair[0].weight is pair[1].weight


def test_a_transform_sees_each_parameter_and_may_change_its_dtype(tmp_path: Path) -> None:
    _, path = write_small(tmp_path)
    seen = []

    def halve(name: str, tensor: Tensor) -> Tensor:
        seen.append(name)
        assert tensor.dtype == torch.float64
        return (tensor * 0.5).to(torch.bfloat16)

    with torch.device("meta"):
        loaded = Small()
    load_into(loaded, open_tensor_files(path), dtype=torch.float64, transform=halve)
    assert sorted(seen) == ["inner.bias", "inner.weight", "offset"]
    assert loaded.inner.weight.dtype == torch.bfloat16


def test_a_transform_that_changes_a_shape_is_a_programming_error(tmp_path: Path) -> None:
    _, path = write_small(tmp_path)
    with pytest.raises(ValueError, match=r"transform changed 'offset'"):
        load_into(Small(), open_tensor_files(path), transform=lambda _, tensor: tensor[:1])


def test_a_missing_tensor_is_named_with_the_parameter_that_needs_it(tmp_path: Path) -> None:
    _, path = write_small(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"small\.safetensors lacks tensor 'x\.offset' \(needed as 'offset'\) "
        r"and 2 more of the 3",
    ):
        load_into(Small(), open_tensor_files(path), lambda name: f"x.{name}")


def test_a_wrong_shape_is_named_before_anything_is_read(tmp_path: Path) -> None:
    stored = {"weight": torch.ones(2, 2), "bias": torch.zeros(3)}
    save_file(stored, tmp_path / "x.safetensors")
    with torch.device("meta"):
        layer = nn.Linear(2, 2)
    with pytest.raises(
        CheckpointError, match=r"x\.safetensors: tensor 'bias' has shape \[3\], expected \[2\]"
    ):
        load_into(layer, open_tensor_files(tmp_path))
    assert layer.weight.is_meta


def test_a_meta_buffer_that_no_file_holds_is_a_programming_error(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "x.safetensors")
    layer = nn.Linear(2, 2)
    layer.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="buffer 'table' is on the meta device"):
        load_into(layer, open_tensor_files(tmp_path))


def test_require_names_the_first_tensor_that_does_not_fit(tmp_path: Path) -> None:
    files = open_tensor_files(write_single(tmp_path))
    require(files, {"layer.weight": (6, 4), "scale": ()})
    with pytest.raises(CheckpointError, match=r"tensor 'layer\.weight' has shape \[6, 4\]"):
        require(files, {"scale": (), "layer.weight": (4, 6)})
    with pytest.raises(CheckpointError, match="lacks tensor 'head'"):
        require(files, {"head": (1,)})


def test_assign_keeps_a_parameter_a_parameter() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    assign(layer, "0.weight", torch.ones(2, 2))
    assert isinstance(layer[0].weight, nn.Parameter)
    assert not layer[0].weight.requires_grad
