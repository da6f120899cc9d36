"""Every damage of a checkpoint is one line that names the file."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from liveavatar.errors import CheckpointError
from liveavatar.model.checkpoint_files import open_tensor_files
from liveavatar.model.damage import first_bytes, read_json_table
from tests.unit.weight_files import (
    INDEX,
    WRITERS,
    tensors,
    write_pickled,
    write_shards,
    write_single,
)

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
WEB_PAGE = b"\n<!DOCTYPE html>\n<html><body>Not Found</body></html>\n"

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
