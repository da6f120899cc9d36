"""Which rank does what: plain arithmetic, checked against the number of ranks.

Transformer ranks form a grid of pipeline stages x tensor parallel x sequence parallel, with the
sequence parallel rank running fastest. The media rank, where there is one of its own, is the last.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from liveavatar.errors import ConfigError


def shares(count: int, parts: int) -> list[range]:
    """Cut `count` things in a row into `parts`; the first of them may have one more."""
    each, left = divmod(count, parts)
    starts = [part * each + min(part, left) for part in range(parts + 1)]
    return [range(*ends) for ends in pairwise(starts)]


def check_heads(num_heads: int, *, tp_degree: int = 1, sp_degree: int = 1) -> None:
    """Raise ConfigError unless every rank gets heads, and under tensor parallelism as many."""
    if num_heads % tp_degree:
        raise ConfigError(
            f"tp_degree: expected a number that divides the {num_heads} heads, got {tp_degree}"
        )
    if num_heads // tp_degree < sp_degree:
        raise ConfigError(
            f"sp_degree: expected at most {num_heads // tp_degree}, as many as there are heads, "
            f"got {sp_degree}"
        )


@dataclass(frozen=True)
class Place:
    """A transformer rank's coordinates in the mesh."""

    stage: int
    tp_rank: int
    sp_rank: int


@dataclass(frozen=True)
class Mesh:
    """Shape of the worker group.

    Attributes:
        num_stages: pipeline stages.
        tp_degree: ranks that share the heads and widths of a stage.
        sp_degree: ranks that share the tokens of a stage.
        own_media_rank: whether encoding and decoding have a rank of their own; otherwise the last
            transformer rank does both.
    """

    num_stages: int = 1
    tp_degree: int = 1
    sp_degree: int = 1
    own_media_rank: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for a degree below 1."""
        for name in ("num_stages", "tp_degree", "sp_degree"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def num_dit_ranks(self) -> int:
        """Ranks that hold transformer layers."""
        return self.num_stages * self.tp_degree * self.sp_degree

    @property
    def world_size(self) -> int:
        """All ranks of the group."""
        return self.num_dit_ranks + self.own_media_rank

    @property
    def media_rank(self) -> int:
        """The rank that encodes conditions and decodes latents."""
        return self.world_size - 1

    def place(self, rank: int) -> Place | None:
        """Coordinates of a rank; None for a media rank of its own.

        Raises:
            ConfigError: there is no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise ConfigError(f"rank: expected 0 to {self.world_size - 1}, got {rank}")
        if rank >= self.num_dit_ranks:
            return None
        rest, sp_rank = divmod(rank, self.sp_degree)
        stage, tp_rank = divmod(rest, self.tp_degree)
        return Place(stage, tp_rank, sp_rank)

    def rank(self, place: Place) -> int:
        """The rank at coordinates."""
        return (place.stage * self.tp_degree + place.tp_rank) * self.sp_degree + place.sp_rank

    def tp_ranks(self, place: Place) -> list[int]:
        """Ranks that share heads and widths with a place, in order."""
        return [self.rank(replace(place, tp_rank=other)) for other in range(self.tp_degree)]

    def sp_ranks(self, place: Place) -> list[int]:
        """Ranks that share tokens with a place, in order."""
        return [self.rank(replace(place, sp_rank=other)) for other in range(self.sp_degree)]

    def stage_ranks(self, stage: int) -> list[int]:
        """All ranks of a stage, in order."""
        size = self.tp_degree * self.sp_degree
        return list(range(stage * size, (stage + 1) * size))
