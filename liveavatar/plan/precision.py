"""In which precision weights, and keys and values, are held: candidates, best first."""

from dataclasses import dataclass

from liveavatar.errors import ConfigError

FLOAT32_BYTES = 4
SCALE_BYTES = 2  # bfloat16, of the keys or values of a token and head


@dataclass(frozen=True)
class Precision:
    """One choice for a whole worker group.

    Attributes:
        weights: of the layers' matrices: "float32", "bfloat16" or "fp8" (e4m3, as `Fp8Linear`).
        cache: of keys and values: "float32", "bfloat16", "8-bit" (int8 with a bfloat16 scale per
            token and head, as `QuantisedCache`) or "e4m3" (attended to as it is, as `ExactCache`).
    """

    weights: str
    cache: str

    @property
    def value_bytes(self) -> int:
        """Bytes of an activation, and of a parameter that is not quantised."""
        return FLOAT32_BYTES if self.weights == "float32" else 2

    @property
    def quantises_weights(self) -> bool:
        """Whether the matrices of the layers are rounded to e4m3 once they are read."""
        return self.weights == "fp8"

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one weight of a layer's matrix."""
        return 1 if self.quantises_weights else self.value_bytes

    @property
    def quantises_cache(self) -> bool:
        """Whether keys and values are held in 8 bits, and brought back into a workspace."""
        return self.cache == "8-bit"

    def cache_bytes(self, num_values: int, head_dim: int) -> int:
        """Bytes of keys and values of heads of width `head_dim`, their scales included."""
        if self.quantises_cache:
            return num_values + num_values // head_dim * SCALE_BYTES
        return num_values * {"float32": FLOAT32_BYTES, "e4m3": 1}.get(self.cache, 2)

    def __str__(self) -> str:
        """Name it for people."""
        if self.weights == self.cache:
            return f"{self.weights} weights and K/V"
        return f"{self.weights} weights, {self.cache} K/V"


FLOAT32 = Precision("float32", "float32")
BFLOAT16 = Precision("bfloat16", "bfloat16")

GPU_CANDIDATES = (
    BFLOAT16,
    Precision("bfloat16", "8-bit"),
    Precision("fp8", "bfloat16"),
    Precision("fp8", "8-bit"),
)
CPU_CANDIDATES = (FLOAT32,)


def parse_precision(name: str) -> Precision:
    """Read "bfloat16", "fp8+8-bit" and so on; ConfigError for others."""
    weights, _, cache = name.partition("+")
    exact = "float32" if weights == "float32" else "bfloat16"
    if weights not in ("float32", "bfloat16", "fp8") or cache not in ("", "8-bit", "e4m3"):
        raise ConfigError(
            "precision: expected float32, bfloat16 or fp8 and, for keys and values in 8 bits, "
            f"+8-bit or +e4m3 behind it, got {name}"
        )
    return Precision(weights, cache or exact)
