"""The projection for cards that nobody measured: its arithmetic, and that it says what it is."""

import json

import pytest

from benchmarks import projection
from liveavatar.plan.precision import parse_precision


def test_a_block_takes_all_its_steps_on_the_slowest_stage() -> None:
    report = projection.project(
        projection.RTX_4090, (368, 688), parse_precision("bfloat16+8-bit"), 4, share=1.0
    )
    # 40 layers over 3 stages, 110.6 TFLOP at 165 TFLOP/s; stages differ by a few percent.
    assert report["stage_ms"] == pytest.approx(1000 * 110.6 / 165 / 3, rel=0.1)
    assert report["block_s"] == pytest.approx(4 * report["stage_ms"] / 1000, rel=0.01)
    assert report["block_latency_s"] == pytest.approx(12 * report["stage_ms"] / 1000, rel=0.01)
    assert report["fits"]


def test_it_is_labelled_and_fp8_is_faster(capsys: pytest.CaptureFixture[str]) -> None:
    assert projection.main(["--size", "384*256", "--share", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("projection, not measured: 4 x RTX 4090") for line in lines)
    assert projection.main(["--size", "384*256", "--share", "0.5", "--json"]) == 0
    wide, narrow = map(json.loads, capsys.readouterr().out.splitlines())
    assert narrow["stage_ms"] < 0.7 * wide["stage_ms"]
