"""Weight files, read one tensor at a time.

Three kinds of file hold the weights this project reads: one `.safetensors` file, a set of them
with a `*.safetensors.index.json` beside it, and a zipped `.pth` (or `.pt`, `.bin`) written by
`torch.save`. `open_tensor_files` reads names, shapes and dtypes only; `TensorFiles.read` then
copies one tensor at a time, so host memory stays near the largest single tensor. `load_into`
fills a module that was built on the meta device.

Whatever is wrong with a file becomes one `CheckpointError` line that names it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from liveavatar.errors import CheckpointError
from liveavatar.model.damage import (
    changed_since,
    damaged,
    first_bytes,
    one_line,
    read_json_table,
    reason,
)
from liveavatar.model.pickled_files import PICKLE_SUFFIXES, PickledFiles, is_pickle, map_pickled

Part = slice | tuple[slice, ...]
Shape = tuple[int, ...]
Rename = Callable[[str], str] | Mapping[str, str]
Transform = Callable[[str, Tensor], Tensor]

INDEX_SUFFIX = ".safetensors.index.json"

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one stored tensor lies and what it is, known without reading its values."""

    path: Path
    shape: Shape
    dtype: torch.dtype


class TensorFiles:
    """The tensors of one checkpoint by name; nothing is held open between two reads.

    A file stays mapped only while one tensor is copied out of it, or a few with `many_reads`: pages
    of a longer-lived mapping would add up to the whole file in this process's resident memory.

    Args:
        path: the file or index the checkpoint was opened by, for messages.
        entries: what each stored name is.
    """

    def __init__(self, path: Path, entries: Mapping[str, TensorEntry]) -> None:
        self.path = path
        self._entries = dict(entries)
        self._pickled = PickledFiles()
        self._readers = 0

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> tuple[str, ...]:
        """Return all tensor names in the order of the file."""
        return tuple(self._entries)

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every tensor by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def shape(self, name: str) -> Shape:
        """Return the shape of one tensor; raises CheckpointError if there is none."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Return the stored dtype of one tensor; raises CheckpointError if there is none."""
        return self._entry(name).dtype

    def where(self, name: str) -> Path:
        """Return the file that holds one tensor; raises CheckpointError if there is none."""
        return self._entry(name).path

    def read(
        self,
        name: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        part: Part | None = None,
    ) -> Tensor:
        """Copy one tensor, or a part of it, out of its file.

        Args:
            name: a stored name.
            device: where the copy goes.
            dtype: what floating point values are cast to; None keeps what is stored. Integers
                and booleans always keep theirs.
            part: a slice of dimension 0, or one slice per leading dimension; None is everything.

        Returns:
            A contiguous tensor that owns its memory.

        Raises:
            CheckpointError: there is no such tensor, or its file can no longer be read.
        """
        entry = self._entry(name)
        wanted = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
        if not is_pickle(entry.path):
            return _read_safetensors(entry.path, name, torch.device(device), wanted, part)
        with self.many_reads():
            tensor = self._pickled.view(entry.path, name)
            return _own_copy(tensor if part is None else tensor[part], torch.device(device), wanted)

    @contextmanager
    def many_reads(self) -> Iterator[None]:
        """Within it, the contents of a `.pth` file are listed once, not for every tensor."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._pickled.close()

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(
                f"{self.path} has no tensor '{name}': it is not the checkpoint expected here, "
                "or not a complete one"
            ) from None


def open_tensor_files(path: str | Path) -> TensorFiles:
    """Open a checkpoint without reading any values.

    Args:
        path: a `.safetensors`, `.pth`, `.pt` or `.bin` file, a `*.safetensors.index.json`, or a
            folder that holds exactly one index, or no index and exactly one `.safetensors` file.

    Raises:
        CheckpointError: something is missing, damaged or of another kind; one line names the
            file and, where it is known, the tensor.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return TensorFiles(path, _sharded_entries(path))
    if path.suffix == ".safetensors":
        return TensorFiles(path, _safetensors_entries(path))
    if is_pickle(path):
        return TensorFiles(path, _pickled_entries(path))
    raise CheckpointError(
        f"{path} is no weight file: expected a name that ends with .safetensors, "
        f"{INDEX_SUFFIX}, {', '.join(PICKLE_SUFFIXES)}, or a folder with such a file"
    )


def load_into(
    module: nn.Module,
    files: TensorFiles,
    rename: Rename | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    transform: Transform | None = None,
) -> frozenset[str]:
    """Fill a module's parameters and persistent buffers from a checkpoint, one by one.

    All names and shapes are checked before the first value is read. The new parameters need no
    gradient. Two parameters that map to one stored tensor share it, so tied weights stay tied.

    Args:
        module: usually built under `torch.device("meta")`; its tensors are replaced.
        files: the checkpoint.
        rename: name in the module to name in the file, as a function, or as a table in which a
            name that is absent keeps its name.
        device: where the tensors go. Buffers that no file holds move there too.
        dtype: as in `TensorFiles.read`.
        transform: called with the name in the module and the tensor on `device` in `dtype`, for
            example to merge an adapter or to quantise; may change the dtype, not the shape.

    Returns:
        The stored names that were used, so that a caller can tell what was left over.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
        ValueError: a buffer on the meta device is not stored in any file, or `transform` changed
            a shape; a mistake in the program, not in the file.
    """
    targets = module.state_dict(keep_vars=True)
    stored_names = {name: _renamed(name, rename) for name in targets}
    _check_names(files, stored_names)
    for name, target in targets.items():
        _check_shape(files, stored_names[name], tuple(target.shape))
    loaded: dict[str, Tensor] = {}
    with files.many_reads():
        for name, target in targets.items():
            stored_name = stored_names[name]
            if stored_name not in loaded:
                tensor = files.read(stored_name, device, dtype)
                if transform is not None:
                    tensor = _transformed(name, tensor, transform)
                if isinstance(target, nn.Parameter):  # made once, so that tied weights stay tied
                    tensor = nn.Parameter(tensor, requires_grad=False)
                loaded[stored_name] = tensor
            assign(module, name, loaded[stored_name])
    _move_other_buffers(module, targets, torch.device(device))
    return frozenset(loaded)


def _renamed(name: str, rename: Rename | None) -> str:
    if rename is None:
        return name
    return rename.get(name, name) if isinstance(rename, Mapping) else rename(name)


def require(files: TensorFiles, shapes: Mapping[str, Shape]) -> None:
    """Raise CheckpointError unless `files` holds every tensor of `shapes` in its shape."""
    _check_names(files, {name: name for name in shapes})
    for name, shape in shapes.items():
        _check_shape(files, name, shape)


def _check_names(files: TensorFiles, stored_names: Mapping[str, str]) -> None:
    missing = [(name, stored) for name, stored in stored_names.items() if stored not in files]
    if missing:
        name, stored = missing[0]
        wanted_as = "" if name == stored else f" (needed as '{name}')"
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{files.path} lacks tensor '{stored}'{wanted_as}{others} of the {len(stored_names)} "
            "needed: it is not the checkpoint expected here, or not a complete one"
        )


def _check_shape(files: TensorFiles, name: str, expected: Shape) -> None:
    found = files.shape(name)
    if found != expected:
        raise CheckpointError(
            f"{files.where(name)}: tensor '{name}' has shape {list(found)}, "
            f"expected {list(expected)}: the file belongs to another model size or variant"
        )


def _transformed(name: str, tensor: Tensor, transform: Transform) -> Tensor:
    result = transform(name, tensor)
    if result.shape != tensor.shape:
        raise ValueError(
            f"transform changed '{name}' from {list(tensor.shape)} to {list(result.shape)}"
        )
    return result


def assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in place of the parameter or buffer `name` of `module`."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(owner, leaf, tensor)


def _move_other_buffers(module: nn.Module, stored: Iterable[str], device: torch.device) -> None:
    stored = set(stored)
    for name, buffer in list(module.named_buffers(remove_duplicate=False)):
        if name in stored:
            continue
        if buffer.is_meta:
            raise ValueError(f"buffer '{name}' is on the meta device and no file holds it")
        assign(module, name, buffer.to(device))


# Folders and indexes.


def _file_in_folder(folder: Path) -> Path:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"folder {folder} cannot be read: {reason(error)}") from error
    indexes = [name for name in names if name.endswith(INDEX_SUFFIX)]
    singles = [name for name in names if name.endswith(".safetensors")]
    found = indexes or singles
    if len(found) == 1:
        return folder / found[0]
    if not found:
        raise CheckpointError(
            f"{folder} holds no weights: expected one *{INDEX_SUFFIX} or one *.safetensors in it"
        )
    raise CheckpointError(
        f"{folder} holds {len(found)} candidates ({', '.join(found[:3])}, ...): expected one "
        f"*{INDEX_SUFFIX}, or a single *.safetensors; name the file that is meant"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """Return tensor name to shard name as an index says."""
    table = read_json_table(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index} has no 'weight_map' table of tensor names: fetch it again")
    for name, shard in table.items():
        if not _is_plain_file_name(shard):
            raise CheckpointError(
                f"{index}: tensor '{name}' points to {one_line(repr(shard))}, "
                "expected the name of a .safetensors file beside the index"
            )
    return table


def _is_plain_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and name.isprintable()
        and not any(mark in name for mark in ("/", "\\", ":"))
    )


def _sharded_entries(index: Path) -> dict[str, TensorEntry]:
    table = _weight_map(index)
    shards = {}
    for shard in sorted(set(table.values())):
        path = index.parent / shard
        if not path.exists():
            raise CheckpointError(f"shard {path} named by {index.name} is missing: fetch it")
        shards[shard] = _safetensors_entries(path)
    for name, shard in table.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index.parent / shard} lacks tensor '{name}' that {index.name} says it holds: "
                "the two are from different downloads; fetch both again"
            )
    return {name: shards[shard][name] for name, shard in table.items()}


# Formats.


def _safetensors_entries(path: Path) -> dict[str, TensorEntry]:
    first_bytes(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            stored = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        damaged(path, error)
    if not stored:
        raise CheckpointError(f"{path} holds no tensors: fetch it again")
    for name, (_, stored_dtype) in stored.items():
        if stored_dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor '{name}' is stored as {stored_dtype}, "
                f"expected one of {', '.join(_DTYPES)}"
            )
    return {
        name: TensorEntry(path, shape, _DTYPES[dtype]) for name, (shape, dtype) in stored.items()
    }


def _read_safetensors(
    path: Path, name: str, device: torch.device, dtype: torch.dtype, part: Part | None
) -> Tensor:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor = file.get_tensor(name) if part is None else file.get_slice(name)[part]
    except (SafetensorError, OSError, ValueError) as error:
        changed_since(path, name, error)
    return _own_copy(tensor, device, dtype)


def _pickled_entries(path: Path) -> dict[str, TensorEntry]:
    return {
        name: TensorEntry(path, tuple(tensor.shape), tensor.dtype)
        for name, tensor in map_pickled(path).items()
    }


def _own_copy(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Always a copy: a view would keep the whole file mapped, and change with it.
    return tensor.detach().to(device, dtype, copy=True, memory_format=torch.contiguous_format)
