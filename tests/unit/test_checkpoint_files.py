"""Weight files are read one tensor at a time, whatever their form."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from liveavatar.errors import CheckpointError
from liveavatar.model import pickled_files
from liveavatar.model.checkpoint_files import load_into, open_tensor_files
from tests.unit.weight_files import (
    WRITERS,
    tensors,
    write_shards,
    write_single,
)


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_file_gives_back_names_shapes_dtypes_and_values(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    files = open_tensor_files(write(tmp_path))
    stored = tensors()
    assert set(files.names()) == set(stored)
    assert len(files) == 4
    assert files.shapes() == {name: tuple(tensor.shape) for name, tensor in stored.items()}
    for name, tensor in stored.items():
        assert files.dtype(name) == tensor.dtype
        assert torch.equal(files.read(name), tensor)
        assert files.where(name).is_file()


@pytest.mark.parametrize("write", WRITERS)
def test_a_part_is_the_same_as_slicing_the_whole(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    files = open_tensor_files(write(tmp_path))
    whole = tensors()["layer.weight"]
    assert torch.equal(files.read("layer.weight", part=slice(2, 4)), whole[2:4])
    columns = files.read("layer.weight", part=(slice(None), slice(1, 3)))
    assert torch.equal(columns, whole[:, 1:3])
    assert columns.is_contiguous()
    assert columns.untyped_storage().nbytes() == columns.numel() * 2


@pytest.mark.parametrize("write", WRITERS)
def test_a_dtype_is_cast_for_floats_and_ignored_for_integers(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    files = open_tensor_files(write(tmp_path))
    assert torch.equal(
        files.read("layer.weight", dtype=torch.float32), tensors()["layer.weight"].float()
    )
    assert files.read("counts", dtype=torch.bfloat16).dtype == torch.int64


def test_a_folder_opens_its_index_before_any_single_file(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    assert open_tensor_files(tmp_path).path == index
    index.unlink()
    (tmp_path / "model-2.safetensors").unlink()
    assert open_tensor_files(str(tmp_path)).path == tmp_path / "model-1.safetensors"


@pytest.mark.parametrize("write", WRITERS)
def test_a_read_tensor_does_not_change_when_the_file_is_overwritten(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    files = open_tensor_files(write(tmp_path))
    weight = files.read("layer.weight")
    shard = files.where("layer.weight")
    with shard.open("r+b") as file:
        file.write(b"\0" * shard.stat().st_size)
    assert torch.equal(weight, tensors()["layer.weight"])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to see memory")
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_reading_a_whole_file_keeps_memory_near_one_tensor(tmp_path: Path, suffix: str) -> None:
    path, mib = tmp_path / f"large.{suffix}", 2**20
    stored = {f"t{i}": torch.full((8 * mib // 4,), float(i)) for i in range(16)}
    (save_file if suffix == "safetensors" else torch.save)(stored, path)
    stored.clear()
    files = open_tensor_files(path)
    files.read("t0")
    before = resident_bytes()
    for name in files.names():
        tensor = files.read(name)
        assert resident_bytes() - before < 40 * mib  # 128 MiB if pages of the file stayed
    assert tensor.numel() == 2 * mib


def test_loading_a_pth_lists_its_tensors_once_and_keeps_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(20)))
    torch.save(module.state_dict(), tmp_path / "many.pth")
    files = open_tensor_files(tmp_path / "many.pth")
    listings, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: listings.append(a) or load(*a, **k))
    empty = torch.nn.Sequential(*(torch.nn.Linear(4, 4, device="meta") for _ in range(20)))
    assert len(load_into(empty, files)) == 40
    assert len(listings) == 1
    assert all(map(torch.equal, empty.state_dict().values(), module.state_dict().values()))
    assert "many.pth" not in Path("/proc/self/maps").read_text()


def test_a_pth_is_mapped_anew_before_its_pages_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled_files, "_KEPT_BYTES", 16 * 2**20)
    size = 8 * 2**20
    stored = {f"t{i}": torch.full((size,), i, dtype=torch.uint8) for i in range(16)}
    torch.save(stored, tmp_path / "large.pth")
    stored.clear()
    files = open_tensor_files(tmp_path / "large.pth")
    files.read("t0")
    before = resident_bytes()
    with files.many_reads():
        for i, name in enumerate(files.names()):
            assert files.read(name)[-1] == i
            assert resident_bytes() - before < 10 * size  # sixteen if all pages stayed


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_an_unknown_name_is_one_line_with_file_and_name(tmp_path: Path) -> None:
    files = open_tensor_files(write_single(tmp_path))
    for ask in (files.shape, files.dtype, files.where, files.read):
        with pytest.raises(CheckpointError, match=r"model\.safetensors has no tensor 'head'"):
            ask("head")
    assert "head" not in files
    assert "scale" in files


def test_a_saved_parameter_table_reads_as_plain_tensors(tmp_path: Path) -> None:
    torch.save(OrderedDict(nn.Linear(3, 2).named_parameters()), tmp_path / "model.pt")
    weight = open_tensor_files(tmp_path / "model.pt").read("weight")
    assert not weight.requires_grad
    assert weight.shape == (2, 3)
