"""The size a user asks for, checked before anything is read or allocated."""

import re
from dataclasses import dataclass

from liveavatar.errors import RequestError

MIN_SIDE, MAX_SIDE = 64, 4096
MAX_AREA = 1280 * 720


@dataclass(frozen=True)
class SizeOption:
    """A size as the user wrote it: it sets the picture's area; the portrait sets the shape.

    Attributes:
        width: 64 to 4096.
        height: 64 to 4096; the area is at most that of 1280*720.
    """

    width: int
    height: int

    def __post_init__(self) -> None:
        """Raise RequestError for a size that cannot be made."""
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (self.width, self.height)):
            raise RequestError(
                f"size: expected sides from {MIN_SIDE} to {MAX_SIDE}, got {self}; try 688*368"
            )
        if self.area > MAX_AREA:
            raise RequestError(
                f"size: {self} has {self.area} pixels, at most {MAX_AREA} (1280*720) can be made"
            )

    def __str__(self) -> str:
        """Spell it as the command line takes it."""
        return f"{self.width}*{self.height}"

    @property
    def area(self) -> int:
        """Pixels of a frame, at most."""
        return self.width * self.height


def parse_size(text: str) -> SizeOption:
    """Read "W*H"; RequestError for anything else, naming the right spelling."""
    numbers = re.fullmatch(r"\s*(\d{1,6})\s*\*\s*(\d{1,6})\s*", text, re.ASCII)
    if numbers:
        return SizeOption(int(numbers[1]), int(numbers[2]))
    similar = re.fullmatch(r"\D*(\d{1,6})\D+(\d{1,6})\D*", text, re.ASCII)
    hint = f"write {similar[1]}*{similar[2]}" if similar else "write for example 688*368"
    raise RequestError(f"size: expected WIDTH*HEIGHT, got {text[:40]!r}; {hint}")
