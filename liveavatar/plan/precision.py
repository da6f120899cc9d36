"""In which precision weights, and keys and values, are held: candidates, best first."""

from dataclasses import dataclass

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Precision:
    """One choice for a whole worker group.

    Attributes:
        weights: of the layers' matrices: "float32", "bfloat16" or "fp8" (e4m3, as `Fp8Linear`).
        cache: of keys and values: "float32", "bfloat16" or "8-bit" (one byte per value; scales, a
            few per cent, are not counted).
        available: whether this version can run it. Those it cannot run are there to say what would
            help; they are never chosen.
    """

    weights: str
    cache: str
    available: bool

    @property
    def value_bytes(self) -> int:
        """Bytes of an activation, and of a parameter that is not quantised."""
        return FLOAT32_BYTES if self.weights == "float32" else 2

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one weight of a layer's matrix."""
        return 1 if self.weights == "fp8" else self.value_bytes

    @property
    def cache_bytes(self) -> int:
        """Bytes of one key or value."""
        return {"float32": FLOAT32_BYTES, "bfloat16": 2, "8-bit": 1}[self.cache]

    def __str__(self) -> str:
        """Name it for people."""
        if self.weights == self.cache:
            return f"{self.weights} weights and K/V"
        return f"{self.weights} weights, {self.cache} K/V"


FLOAT32 = Precision("float32", "float32", available=True)
BFLOAT16 = Precision("bfloat16", "bfloat16", available=True)

GPU_CANDIDATES = (
    BFLOAT16,
    Precision("fp8", "bfloat16", available=False),
    Precision("bfloat16", "8-bit", available=False),
    Precision("fp8", "8-bit", available=False),
)
CPU_CANDIDATES = (FLOAT32,)
