"""Which videos a worker group can make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ability:
    """What a group can make; the default is everything.

    Attributes:
        tiers: names of its tiers; None for all.
        most_pixels: of a frame; None for any number.
    """

    tiers: frozenset[str] | None = None
    most_pixels: int | None = None

    def includes(self, tier: str, pixels: int) -> bool:
        """Whether it can make a video of this tier with so many pixels in a frame."""
        return (self.tiers is None or tier in self.tiers) and (
            self.most_pixels is None or pixels <= self.most_pixels
        )

    def document(self) -> dict[str, Any]:
        """As JSON can hold it."""
        tiers = None if self.tiers is None else sorted(self.tiers)
        return {"tiers": tiers, "most_pixels": self.most_pixels}

    @staticmethod
    def read(document: Mapping[str, Any]) -> Ability:
        """Read what `document` wrote; what says nothing can make everything."""
        tiers = document.get("tiers")
        return Ability(None if tiers is None else frozenset(tiers), document.get("most_pixels"))


EVERYTHING = Ability()
