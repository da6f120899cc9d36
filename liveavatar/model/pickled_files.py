"""Zipped `.pth` files, as `torch.save` writes them; a file of unknown origin runs no code.

Names, shapes and places of the tensors come out of a pickle of all of them, so it is run once for
many tensors, not for each.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liveavatar.errors import CheckpointError
from liveavatar.model.damage import changed_since, damaged, first_bytes, one_line
from liveavatar.plan.stored_shapes import PICKLE_FAILURES

PICKLE_SUFFIXES = (".pth", ".pt", ".bin")

_KEPT_BYTES = 256 * 2**20


class PickledFiles:
    """Reads tensors of `.pth` files; between two reads the last file stays mapped.

    The pages of a mapping add up in this process's resident memory as they are read, so that the
    file is mapped anew whenever 256 MiB of it were. Close it when the last tensor is read.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._tensors: dict[str, Tensor] = {}
        self._read_bytes = 0

    def view(self, path: Path, name: str) -> Tensor:
        """Return one tensor as a view of the mapped file, to be copied before the next call.

        Raises:
            CheckpointError: the file or the tensor is gone, or is not what it was.
        """
        if path != self._path or self._read_bytes > _KEPT_BYTES:
            self.close()
            self._tensors, self._path = map_pickled(path), path
        try:
            tensor = self._tensors[name]
        except KeyError as error:
            changed_since(path, name, error)
        self._read_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def close(self) -> None:
        """Let go of the mapped file."""
        self._path, self._tensors, self._read_bytes = None, {}, 0


def is_pickle(path: Path) -> bool:
    """Whether a file's name says that `torch.save` wrote it."""
    return path.suffix in PICKLE_SUFFIXES


def map_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.pth` as views of the mapped file; no values are read yet.

    Raises:
        CheckpointError: missing, damaged, in torch's old format, or more than a table of tensors.
    """
    if not first_bytes(path).startswith(b"PK"):
        raise CheckpointError(
            f"{path} is not a zipped torch file: fetch it again, or if it is in the old format "
            "re-save it with torch.save(torch.load(path, weights_only=True), path)"
        )
    try:
        with warnings.catch_warnings():
            # A torch warning about an odd archive comes with an error, which is what we report.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects, or is damaged: expected nothing but a flat table of "
            "tensors, which is all that is read from a file of unknown origin"
        ) from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: fetch it") from error
    except PICKLE_FAILURES as error:
        damaged(path, error)
    return _flat_table(path, content)


def _flat_table(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} holds {_kind(content)}, expected a flat table of tensor names to tensors"
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: entry {one_line(repr(name))} holds {_kind(tensor)}, "
                "expected a flat table of tensors; if they are nested under it, re-save that part"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{path}: tensor '{name}' is sparse, quantised or empty of values, "
                "expected plain dense values"
            )
    return dict(content)


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "an empty table" if not value else "a nested table"
    return f"a value of type {type(value).__name__}"
