"""What a check says: one line, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: what was looked at, such as "driver" or "gpu 2".
        status: "ok"; "warn" for what works but could bite; "fail" for what must be fixed before
            videos can be made; "skip" for what cannot be asked on this machine.
        found: what was seen, one line.
        cure: what to do; only for "warn" and "fail", and there always.
    """

    name: str
    status: Status
    found: str
    cure: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for bad news without a cure, or a cure for good news."""
        if bool(self.cure) != (self.status in ("warn", "fail")):
            raise ValueError(f"{self.name}: status {self.status!r} with cure {self.cure!r}")


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", found)


def skip(name: str, found: str) -> Finding:
    """Nothing to look at here; `found` says why."""
    return Finding(name, "skip", found)


def warn(name: str, found: str, cure: str) -> Finding:
    """Works, but slower than it could, or not for long."""
    return Finding(name, "warn", found, cure)


def fail(name: str, found: str, cure: str) -> Finding:
    """Must be fixed."""
    return Finding(name, "fail", found, cure)
