"""How the ranks of one pipeline stage share it out, and the largest share that one of them gets."""

from dataclasses import dataclass

from liveavatar.errors import ConfigError


@dataclass(frozen=True)
class Sharing:
    """Ranks of a stage; one that has it alone by default.

    Attributes:
        tp_degree: ranks that share heads and widths.
        sp_degree: ranks that share tokens.
        sharded: whether those keep only parts of the weights and gather them layer by layer.
    """

    tp_degree: int = 1
    sp_degree: int = 1
    sharded: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for a degree below 1."""
        if min(self.tp_degree, self.sp_degree) < 1:
            raise ConfigError(
                f"mesh: expected degrees of at least 1, got {self.tp_degree} and {self.sp_degree}"
            )

    @property
    def size(self) -> int:
        """Ranks of a stage."""
        return self.tp_degree * self.sp_degree

    def heads(self, num_heads: int) -> int:
        """Heads whose keys and values a rank holds, of the one that has most."""
        return _up(_up(num_heads, self.tp_degree), self.sp_degree)

    def tokens(self, count: int) -> int:
        """Tokens of the residual stream that a rank has, of the one that has most."""
        return _up(count, self.sp_degree)


ALONE = Sharing()


def _up(count: int, parts: int) -> int:
    return -(-count // parts)
