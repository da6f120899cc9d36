"""The benchmark of one denoise forward: what it counts, what it says, what it refuses."""

import json

import pytest
import torch

from benchmarks import dit_step
from benchmarks.kernel_times import covered
from liveavatar.config import SamplingConfig, TransformerConfig
from liveavatar.model.attention_backend import AttentionShape, fastest_backend
from liveavatar.plan.precision import Precision

TINY_RUN = ["--shape", "tiny", "--size", "64*64", "--device", "cpu", "--forwards", "2"]


def test_every_precision_runs_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    names = "float32,float32+8-bit,bfloat16,fp8+8-bit"
    sampling = ["--sample_steps", "2", "--infer_frames", "24"]
    assert dit_step.main([*TINY_RUN, *sampling, "--precision", names, "--json"]) == 0
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["precision"] for report in reports] == [
        "float32 weights and K/V",
        "float32 weights, 8-bit K/V",
        "bfloat16 weights and K/V",
        "fp8 weights, 8-bit K/V",
    ]
    for report in reports:
        assert report["finite"]
        assert report["tokens"] == 48
        assert report["median_ms"] > 0
        assert report["backend"] is None, "the CPU has one way to attend"
        assert report["attention_ms"] == {}


def test_what_waits_in_host_memory_is_copied_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    sampling = ["--sample_steps", "2", "--infer_frames", "24", "--precision", "float32"]
    assert dit_step.main([*TINY_RUN, *sampling, "--shelf", "both", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["from_host"], report["recorded"]) == ("layers and rings", False)
    assert report["finite"]
    assert report["copied_gb"] > 0
    assert report["copied_gb_per_s"] > 0


def test_the_work_of_the_published_shape_is_the_specified() -> None:
    setting = dit_step.Setting(
        TransformerConfig(), (640, 384), SamplingConfig(), Precision("bfloat16", "8-bit"),
        torch.device("cpu"), compiled=True, recorded=True, forwards=1,
    )  # fmt: skip
    products, attention, restored = dit_step.work(setting)
    # 40 x (1.72 linears + 0.82 and 0.03 attention) and the injections' query matrix, TFLOP.
    assert products / 1e12 == pytest.approx(40 * 1.72 + 1.9, rel=0.01)
    assert attention / 1e12 == pytest.approx(40 * 0.85, rel=0.01)
    assert restored == 40 * 2 * 5120 * 13920 * 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--precision", "int4"], "int4"),
        (["--size", "688x368"], "688"),
        (["--layers", "0"], "num"),
        (["--attention", "flash3"], "flash3"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dit_step.main([*TINY_RUN, *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_the_cpu_is_left_to_choose_its_attention() -> None:
    assert fastest_backend(torch.device("cpu"), torch.float32, AttentionShape(4, 8, 2, 16)) is None


def test_time_in_which_kernels_overlap_counts_once() -> None:
    assert covered([(0.0, 4.0), (1.0, 2.0), (3.0, 6.0), (8.0, 9.0)]) == 7.0
