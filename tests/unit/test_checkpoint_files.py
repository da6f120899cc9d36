"""Weight files are read one tensor at a time, and every damage is one line that names the file."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from liveavatar.errors import CheckpointError
from liveavatar.model import pickled_files
from liveavatar.model.checkpoint_files import assign, load_into, open_tensor_files, require
from liveavatar.model.damage import first_bytes, read_json_table

INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
WEB_PAGE = b"\n<!DOCTYPE html>\n<html><body>Not Found</body></html>\n"


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
            assert resident_bytes() - before < 6 * size  # sixteen if all pages stayed


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# Damage: each writes something under a folder and returns the path to open and the name that the
# one line must contain.


def truncated(folder: Path, write: Callable[[Path], Path], keep: float) -> Path:
    path = write(folder)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def file_of(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def pickled(content: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / "model.pth")
        return folder / "model.pth"

    return write


def index_of(content: object) -> Callable[[Path], Path]:
    return file_of(INDEX, json.dumps(content).encode())


def header_of(header: dict[str, object], data: bytes = b"\0" * 8) -> Callable[[Path], Path]:
    text = json.dumps(header).encode()
    return file_of("x.safetensors", len(text).to_bytes(8, "little") + text + data)


def old_format(folder: Path) -> Path:
    torch.save(tensors(), folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


def other_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return folder / "model.pth"


def zip_with_bad_pickle(folder: Path) -> Path:
    write_pickled(folder)
    with zipfile.ZipFile(folder / "model.pth") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02garbage" if name.endswith("data.pkl") else content)
    return folder / "model.pth"


def missing_shard(folder: Path) -> Path:
    index = write_shards(folder)
    (folder / "model-2.safetensors").unlink()
    return index


def lfs_shard(folder: Path) -> Path:
    index = write_shards(folder)
    (folder / "model-2.safetensors").write_bytes(LFS_POINTER)
    return index


def truncated_shard(folder: Path) -> Path:
    index = write_shards(folder)
    path = folder / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    return index


def index_of_another_download(folder: Path) -> Path:
    index = write_shards(folder)
    save_file({"other": torch.zeros(1)}, folder / "model-2.safetensors")
    return index


def folder_as_shard(folder: Path) -> Path:
    index = write_shards(folder)
    (folder / "model-2.safetensors").unlink()
    (folder / "model-2.safetensors").mkdir()
    return index


def empty_folder(folder: Path) -> Path:
    (folder / "weights").mkdir()
    return folder / "weights"


def two_files_without_index(folder: Path) -> Path:
    write_shards(folder).unlink()
    return folder


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.safetensors")
    return folder / "model.safetensors"


class Gadget:
    """An object that a file of unknown origin must not be able to create."""


DAMAGE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing safetensors": (lambda folder: folder / "x.safetensors", "x.safetensors is missing"),
    "missing pth": (lambda folder: folder / "x.pth", "x.pth is missing"),
    "missing index": (lambda folder: folder / INDEX, f"{INDEX} is missing"),
    "missing folder": (lambda folder: folder / "ckpt", "ckpt is no weight file"),
    "other suffix": (file_of("x.gguf", b"GGUF"), "x.gguf is no weight file"),
    "zero bytes": (file_of("x.safetensors", b""), "x.safetensors has zero bytes"),
    "zero bytes pth": (file_of("x.pth", b""), "x.pth has zero bytes"),
    "zero bytes index": (file_of(INDEX, b""), f"{INDEX} has zero bytes"),
    "pointer": (file_of("x.safetensors", LFS_POINTER), "x.safetensors is a git-lfs pointer"),
    "pointer pth": (file_of("x.pth", LFS_POINTER), "x.pth is a git-lfs pointer"),
    "pointer bin": (file_of("x.bin", LFS_POINTER), "x.bin is a git-lfs pointer"),
    "page": (file_of("x.safetensors", WEB_PAGE), "x.safetensors is a web page"),
    "page pth": (file_of("x.pth", WEB_PAGE), "x.pth is a web page"),
    "seven bytes": (file_of("x.safetensors", b"1234567"), "x.safetensors is damaged"),
    "noise": (file_of("x.safetensors", bytes(range(256)) * 4), "x.safetensors is damaged"),
    "cut header": (lambda f: truncated(f, write_single, 0.1), "model.safetensors is damaged"),
    "cut data": (lambda f: truncated(f, write_single, 0.99), "model.safetensors is damaged"),
    "header no JSON": (
        file_of("x.safetensors", (9).to_bytes(8, "little") + b"not json!"),
        "x.safetensors is damaged",
    ),
    "header past the end": (
        header_of({"t": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        "x.safetensors is damaged",
    ),
    "no tensors": (header_of({}, b""), "x.safetensors holds no tensors"),
    "foreign dtype": (
        header_of({"t": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}),
        "x.safetensors: tensor 't' is stored as C64",
    ),
    "pipe": (a_pipe, "model.safetensors is a folder or a device"),
    "cut pth": (lambda folder: truncated(folder, write_pickled, 0.7), "model.pth is damaged"),
    "old pth": (old_format, "model.pth is not a zipped torch file"),
    "plain pickle": (file_of("x.pth", pickle.dumps({"a": 1})), "x.pth is not a zipped torch file"),
    "other zip": (other_zip, "model.pth is damaged"),
    "bad pickle": (zip_with_bad_pickle, "model.pth holds Python objects, or is damaged"),
    "objects": (pickled({"a": Gadget()}), "model.pth holds Python objects"),
    "whole module": (pickled(nn.Linear(2, 2)), "model.pth holds Python objects"),
    "nested": (pickled({"state_dict": tensors()}), "model.pth: entry 'state_dict' holds a nested"),
    "number": (pickled({"step": 3}), "model.pth: entry 'step' holds a value of type int"),
    "list": (pickled([torch.zeros(1)]), "model.pth holds a value of type list"),
    "number as name": (pickled({1: torch.zeros(1)}), "model.pth: entry 1 holds"),
    "empty table": (pickled({}), "model.pth holds an empty table"),
    "sparse": (pickled({"t": torch.eye(2).to_sparse()}), "model.pth: tensor 't' is sparse"),
    "index no JSON": (file_of(INDEX, b'{"weight_map": '), f"{INDEX} is not valid JSON"),
    "index no text": (file_of(INDEX, b"\xff\xfe\x00{"), f"{INDEX} is not valid JSON"),
    "index deep": (file_of(INDEX, b"[" * 200_000), f"{INDEX} is not valid JSON"),
    "index list": (index_of([1]), f"{INDEX} holds no JSON table"),
    "index without map": (index_of({"metadata": {}}), f"{INDEX} has no 'weight_map'"),
    "index empty map": (index_of({"weight_map": {}}), f"{INDEX} has no 'weight_map'"),
    "index to number": (index_of({"weight_map": {"t": 3}}), f"{INDEX}: tensor 't' points to 3"),
    "index to outside": (
        index_of({"weight_map": {"t": "../../secret.safetensors"}}),
        f"{INDEX}: tensor 't' points to '../../secret.safetensors'",
    ),
    "missing shard": (missing_shard, "model-2.safetensors named by"),
    "pointer shard": (lfs_shard, "model-2.safetensors is a git-lfs pointer"),
    "cut shard": (truncated_shard, "model-2.safetensors is damaged"),
    "folder as shard": (folder_as_shard, "model-2.safetensors is a folder"),
    "other download": (index_of_another_download, "model-2.safetensors lacks tensor 'layer.bias'"),
    "empty folder": (empty_folder, "weights holds no weights"),
    "two files": (two_files_without_index, "holds 2 candidates (model-1.safetensors"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_that_names_the_file(tmp_path: Path, kind: str) -> None:
    write, expected = DAMAGE[kind]
    path = write(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        open_tensor_files(path)
    message = str(caught.value)
    assert expected in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert len(message) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("change", ["removed", "cut", "replaced"])
def test_a_file_that_changes_after_it_was_opened_is_one_line(
    tmp_path: Path, write: Callable[[Path], Path], change: str
) -> None:
    files = open_tensor_files(write(tmp_path))
    path = files.where("layer.bias")
    if change == "removed":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        other = {"other": torch.zeros(2)}
        (torch.save if path.suffix == ".pth" else save_file)(other, path)
    with pytest.raises(CheckpointError) as caught:
        files.read("layer.bias")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


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


# Filling modules.


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


# The files beside the weights.


def test_a_json_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dim": 5120}')
    assert read_json_table(tmp_path / "config.json") == {"dim": 5120}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", LFS_POINTER, WEB_PAGE, b"[" * 9999])
def test_a_damaged_json_table_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read_json_table(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_giant_json_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.write(b"{")
        file.truncate(2**27)
    with pytest.raises(CheckpointError, match=r"config\.json is larger than"):
        read_json_table(tmp_path / "config.json")


def test_the_first_bytes_of_a_sound_file_are_returned(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"PK\x03\x04rest")
    assert first_bytes(tmp_path / "x.bin") == b"PK\x03\x04rest"
