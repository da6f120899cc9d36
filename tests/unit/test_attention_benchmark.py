"""The benchmark of attention alone: the sizes it takes, what it counts, what it refuses."""

import json

import pytest

from benchmarks import attention
from liveavatar.config import TransformerConfig


def test_the_sizes_are_those_of_a_block_and_a_full_window() -> None:
    shape = attention.attention_shape(TransformerConfig(), (368, 688), 48)
    assert (shape.num_queries, shape.num_keys) == (2967, 14277)
    assert (shape.num_heads, shape.head_dim) == (40, 128)


def test_every_size_and_kind_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert attention.main(["--device", "cpu", "--size", "688*368,384*256", "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(report["size"], report["kind"]) for report in reports] == [
        ("688*368", "bfloat16"), ("688*368", "e4m3"), ("384*256", "bfloat16"), ("384*256", "e4m3")
    ]  # fmt: skip
    assert reports[0]["tflop"] == pytest.approx(4 * 2967 * 14277 * 5120 / 1e12, abs=1e-4)
    assert all(report["kernels"] == {} for report in reports), "the CPU has nothing to choose from"


@pytest.mark.parametrize(("option", "value"), [("--kind", "int4"), ("--size", "688x368")])
def test_what_cannot_be_measured_is_refused_in_one_line(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attention.main(["--device", "cpu", option, value]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert value[:3] in error
