"""Names and shapes of stored tensors, without torch and without their values."""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from liveavatar.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]

_LARGEST_HEADER = 64 * 2**20

PICKLE_FAILURES = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    ImportError,
)
"""What reading a damaged zip or pickle was seen to raise: the unpickler runs on arbitrary bytes."""


def read_safetensors_shapes(path: Path) -> Shapes:
    """Read the header of a safetensors file.

    Raises:
        CheckpointError: missing, cut off or not of that format.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        return {
            name: _checked(entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path}: expected a safetensors file: {error}") from None


def read_pickled_shapes(path: Path) -> Shapes:
    """Read the table of tensors of a zipped file by `torch.save`; no code in it is run.

    Raises:
        CheckpointError: missing, damaged, or something else than a table of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > _LARGEST_HEADER:
                raise ValueError("its table is too large")
            with archive.open(name) as file:
                table = _ShapeUnpickler(file).load()
        return {str(name): _checked(shape) for name, shape in table.items()}
    except StopIteration:
        raise CheckpointError(f"{path}: expected a file by torch.save, found no table") from None
    except PICKLE_FAILURES as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: expected tensors saved by torch.save: {reason}") from None


def _checked(shape: Any) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a tensor without a shape")
    return tuple(shape)


class _ShapeUnpickler(pickle.Unpickler):
    """Turns every tensor into its shape and refuses whatever is no tensor."""

    def __init__(self, file: Any) -> None:
        stream: BinaryIO = file
        super().__init__(stream)

    def find_class(self, module: str, name: str) -> Any:
        """Map the few names that tables of tensors use."""
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_shape
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no table of tensors does")

    def persistent_load(self, pid: Any) -> Any:
        """Leave a tensor's storage where it is."""
        return pid


def _rebuild_shape(_storage: object, _offset: int, shape: tuple[int, ...], *_rest: object) -> Any:
    return shape
