"""One fixture folder, and the comparison of our tensors with those recorded in it.

A folder holds `fixture.json` and safetensors files. Tensors stored in bfloat16 or float16 outside
the outputs are exact and are read as float32.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from liveavatar.errors import CheckpointError, ConfigError
from liveavatar.model.checkpoint_files import TensorFiles, open_tensor_files


@dataclass(frozen=True)
class Tolerance:
    """Largest error allowed: absolute, relative L2 norm, or units in the last place of bfloat16.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: norm(ours - recorded) / norm(recorded).
        max_ulp: for bfloat16 only; 0 asks for the same bytes.
        differing_share: part of all values that may differ at all.
    """

    max_abs: float | None = None
    rel_l2: float | None = None
    max_ulp: int | None = None
    differing_share: float | None = None

    @classmethod
    def from_json(cls, stated: Any) -> "Tolerance":
        """Read `{"max_abs": x, "rel_l2": y}`, a bare number (max_abs), or words with "ulp"."""
        if isinstance(stated, int | float):
            return cls(max_abs=float(stated))
        if isinstance(stated, str):
            return cls(max_ulp=1) if "ulp" in stated else cls(max_abs=0.0)
        max_abs, rel_l2 = stated.get("max_abs"), stated.get("rel_l2")
        if max_abs is None and rel_l2 is None:
            raise ConfigError(f"fixture.json: expected max_abs or rel_l2 in a tolerance: {stated}")
        return cls(max_abs=max_abs, rel_l2=rel_l2)

    def __str__(self) -> str:
        """List the limits that are set."""
        limits = {
            "max_abs": self.max_abs,
            "rel_l2": self.rel_l2,
            "ulp": self.max_ulp,
            "share": self.differing_share,
        }
        return " ".join(f"{key}<={value:g}" for key, value in limits.items() if value is not None)


@dataclass(frozen=True)
class Check:
    """Result of one comparison.

    Attributes:
        name: fixture folder and tensor.
        status: "ok", "FAIL" or "skip".
        max_abs: largest absolute difference; NaN when nothing was compared.
        rel_l2: relative L2 norm of the difference.
        tolerance: what was allowed, in words.
        remark: why it failed or was skipped, if that needs words.
    """

    name: str
    status: str
    max_abs: float
    rel_l2: float
    tolerance: str
    remark: str = ""


def compare(name: str, ours: Tensor, recorded: Tensor, tolerance: Tolerance) -> Check:
    """Compare two tensors of the same shape; another shape or a NaN fails."""
    if ours.shape != recorded.shape:
        remark = f"shape {list(ours.shape)}, recorded {list(recorded.shape)}"
        return Check(name, "FAIL", math.nan, math.nan, str(tolerance), remark)
    difference = ours.double() - recorded.double()
    max_abs = difference.abs().max().item() if difference.numel() else 0.0
    norm = recorded.double().norm().item()
    rel_l2 = difference.norm().item() / norm if norm else (0.0 if max_abs == 0 else math.inf)
    passed = math.isfinite(max_abs)
    if tolerance.max_abs is not None:
        passed &= max_abs <= tolerance.max_abs
    if tolerance.rel_l2 is not None:
        passed &= rel_l2 <= tolerance.rel_l2
    if tolerance.max_ulp is not None:
        passed &= bool((_ulps(ours, recorded) <= tolerance.max_ulp).all())
    if tolerance.differing_share is not None:
        passed &= (difference != 0).double().mean().item() <= tolerance.differing_share
    return Check(name, "ok" if passed else "FAIL", max_abs, rel_l2, str(tolerance))


def equal(name: str, ours: object, recorded: object) -> Check:
    """Compare two values that must be the same."""
    same = ours == recorded
    remark = "" if same else f"{ours!r}, recorded {recorded!r}"
    gap = 0.0 if same else math.nan
    return Check(name, "ok" if same else "FAIL", gap, gap, "equal", remark)


def skipped(name: str, remark: str) -> Check:
    """Report a tensor that is not compared."""
    return Check(name, "skip", math.nan, math.nan, "", remark)


class Fixture:
    """A fixture folder.

    Args:
        path: the folder.

    Raises:
        ConfigError: `fixture.json` is missing or not an object with a `kind`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.spec: dict[str, Any] = json.loads((path / "fixture.json").read_text())
            self.kind: str = self.spec["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}/fixture.json: expected an object with a kind: {error}"
            ) from None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def config(self) -> dict[str, Any]:
        """Sizes of the network under test."""
        config: dict[str, Any] = self.spec["config"]
        return config

    def files(self, name: str = "weights.safetensors") -> TensorFiles:
        """Open a file of the folder, or one that another folder shares."""
        return open_tensor_files(self.path / name)

    def inputs(self, name: str = "inputs.safetensors") -> dict[str, Tensor]:
        """Read all tensors of a file, floats as float32."""
        return _read_all(self.files(name), torch.float32)

    def outputs(self, name: str = "outputs.safetensors") -> dict[str, Tensor]:
        """Read all tensors of a file as they are stored."""
        return _read_all(self.files(name), None)

    def tolerance(self, *keys: str) -> Tolerance:
        """Tolerance stated under `keys`."""
        stated = self.spec["tolerance"]
        for key in keys:
            stated = stated[key]
        return Tolerance.from_json(stated)

    def compare(self, name: str, ours: Tensor, recorded: Tensor, *keys: str) -> Check:
        """Compare with the tolerance stated under `keys`."""
        return compare(f"{self.name}/{name}", ours, recorded, self.tolerance(*keys))


def _read_all(files: TensorFiles, dtype: torch.dtype | None) -> dict[str, Tensor]:
    names: Mapping[str, Any] = dict.fromkeys(files.names())
    read = {}
    for name in names:
        stored = files.dtype(name)
        narrow = stored in (torch.bfloat16, torch.float16)
        read[name] = files.read(name, dtype=dtype if narrow else None)
    return read


def _ulps(ours: Tensor, recorded: Tensor) -> Tensor:
    """Steps between two bfloat16 tensors, counted along the number line."""
    if ours.dtype != torch.bfloat16 or recorded.dtype != torch.bfloat16:
        raise CheckpointError(f"expected bfloat16 tensors, got {ours.dtype} and {recorded.dtype}")

    def ordered(values: Tensor) -> Tensor:
        bits = values.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(ours) - ordered(recorded)).abs()
