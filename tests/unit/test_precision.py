"""Names of precisions."""

import pytest

from liveavatar.errors import ConfigError
from liveavatar.plan.precision import BFLOAT16, FLOAT32, Precision, parse_precision


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("float32", FLOAT32),
        ("bfloat16", BFLOAT16),
        ("bfloat16+8-bit", Precision("bfloat16", "8-bit")),
        ("bfloat16+e4m3", Precision("bfloat16", "e4m3")),
        ("fp8", Precision("fp8", "bfloat16")),
        ("fp8+e4m3", Precision("fp8", "e4m3")),
    ],
)
def test_a_name_is_read(name: str, precision: Precision) -> None:
    assert parse_precision(name) == precision


@pytest.mark.parametrize("name", ["", "fp16", "fp8+int8", "8-bit", "fp8+8-bit+e4m3"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected float32, bfloat16 or fp8 and"):
        parse_precision(name)
