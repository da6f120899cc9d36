"""What the parity command answers to fixtures that agree, disagree or cannot be run.

The fixtures are written here, from formulas in plain Python: sigma = 3u / (1 + 2u) for a schedule,
W + scale * B A for an adapter.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from liveavatar.parity.__main__ import main

SHIFT = 3.0


def shifted(level: float) -> float:
    return SHIFT * level / (1 + (SHIFT - 1) * level)


def write_fixture(folder: Path, spec: dict[str, Any], files: dict[str, dict[str, Tensor]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "fixture.json").write_text(json.dumps(spec))
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def write_schedule(folder: Path, **changes: Tensor | None) -> Path:
    """Write a fixture of a two-step schedule; `changes` replaces a tensor, or leaves it out."""
    sigmas = [1.0, shifted(shifted(0.001)), 0.0]
    timesteps = [1000 * sigma for sigma in sigmas[:-1]]
    data = {
        "sigmas2": torch.tensor(sigmas),
        "timesteps2": torch.tensor(timesteps),
        "x2": torch.tensor([1.0, -2.0, 0.5]),
        "v2": torch.tensor([0.25, 3.0, -1.0]),
    }
    for step in range(2):
        gap = sigmas[step + 1] - sigmas[step]
        for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
            sample, velocity = (data[key].to(dtype) for key in ("x2", "v2"))
            move = torch.tensor(gap).to(dtype) * velocity
            data[f"euler2.{step}.{name}"] = (sample.float() + move).to(dtype)
    spec = {
        "kind": "scheduler",
        "shift": SHIFT,
        "schedules": {"2": {"sigmas": sigmas, "timesteps": timesteps}},
        "tolerance": {"sigmas": 1e-7, "timesteps": 1e-3, "f32": 1e-6, "bf16": "exact or 1 ulp"},
    }
    kept = {name: tensor for name, tensor in {**data, **changes}.items() if tensor is not None}
    return write_fixture(folder, spec, {"data": kept})


def write_adapter(folder: Path, scaling: float) -> Path:
    """Write a fixture whose merged weights were made with the scale 0.5."""
    weight, down, up = torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [-1.0]])
    merged = torch.tensor([[1 + 1.5, 3.0], [-0.5, 1 - 1.0]])
    spec = {
        "kind": "lora",
        "config": {"scaling": scaling, "targets": ["blocks.0.ffn.0"]},
        "tolerance": {"merged_float32": 1e-6, "merged_bfloat16": 1e-2},
    }
    name = "blocks.0.ffn.0"
    files = {
        "base": {f"{name}.weight": weight, "blocks.0.norm.weight": torch.ones(2)},
        "lora": {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
    }
    for dtype in (torch.float32, torch.bfloat16):
        files[f"merged_{str(dtype).removeprefix('torch.')}"] = {
            f"{name}.weight": merged.to(dtype),
            "blocks.0.norm.weight": torch.ones(2, dtype=dtype),
        }
    return write_fixture(folder, spec, files)


def run(
    capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, checks and errors of the command with --json."""
    status = main([*map(str, arguments), "--json"])
    printed = capsys.readouterr()
    return status, json.loads(printed.out or "[]"), printed.err


def failures(checks: list[dict[str, Any]]) -> list[str]:
    return [check["name"] for check in checks if check["status"] == "FAIL"]


def test_fixtures_that_agree_give_status_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_schedule(tmp_path / "schedule")
    write_adapter(tmp_path / "deeper/adapter", 0.5)
    status, checks, errors = run(capsys, tmp_path)
    assert (status, failures(checks)) == (0, []), errors
    assert {check["name"].split("/")[0] for check in checks} == {"schedule", "adapter"}
    assert errors == f"parity: {len(checks)} ok, 0 FAIL, 0 skip\n"


def test_every_tensor_has_a_line_with_name_error_tolerance_and_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_schedule(tmp_path / "schedule", sigmas2=torch.tensor([1.0, 0.5, 0.0]))
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    wrong = [line for line in lines if line.endswith("FAIL")]
    assert len(wrong) == 1
    assert wrong[0].startswith("schedule/sigmas2  max_abs=0.49")
    assert "[max_abs<=1e-07]" in wrong[0]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("timesteps2", torch.tensor([1000.0, 9.0])),
        ("euler2.0.f32", torch.tensor([0.76, -4.97, 1.49])),
        ("euler2.1.f32", torch.full((3,), torch.nan)),
        ("euler2.0.f32", torch.zeros(4)),
    ],
)
def test_a_tensor_that_disagrees_gives_status_1_and_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tensor: Tensor
) -> None:
    write_schedule(tmp_path / "schedule", **{name: tensor})
    status, checks, _ = run(capsys, tmp_path)
    assert (status, failures(checks)) == (1, [f"schedule/{name}"])
    assert len(checks) == 8


def test_two_steps_of_bfloat16_are_one_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)
    for steps, expected in ((1, 0), (2, 1)):
        # Without velocity a step changes nothing; the last bits of the recording are moved.
        still = {"v2": torch.zeros(3), "euler2.0.f32": right.float(), "euler2.1.f32": right.float()}
        moved = (right.view(torch.int16) + steps).view(torch.bfloat16)
        folder = tmp_path / f"off_by_{steps}"
        write_schedule(folder, **still, **{"euler2.0.bf16": right, "euler2.1.bf16": moved})
        assert run(capsys, folder)[0] == expected


def test_an_adapter_merged_with_another_scale_gives_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(tmp_path / "adapter", 1.0)
    status, checks, _ = run(capsys, tmp_path)
    assert status == 1
    assert failures(checks) == [
        f"adapter/lora.merged_{dtype}.blocks.0.ffn.0.weight" for dtype in ("float32", "bfloat16")
    ]


def test_an_unknown_kind_gives_status_2_and_the_rest_is_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fixture(tmp_path / "a", {"kind": "telepathy"}, {})
    write_schedule(tmp_path / "b")
    status, checks, errors = run(capsys, tmp_path)
    assert (status, len(checks)) == (2, 8)
    assert "unknown kind 'telepathy'; known are audio, " in errors


def test_a_missing_tensor_gives_status_2_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_schedule(tmp_path / "schedule", **{"euler2.1.f32": None})
    status, _, errors = run(capsys, tmp_path)
    assert status == 2
    assert "the fixture lacks 'euler2.1.f32'" in errors


def test_a_missing_file_gives_status_2_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (write_schedule(tmp_path / "schedule") / "data.safetensors").unlink()
    status, _, errors = run(capsys, tmp_path)
    assert status == 2
    assert "data.safetensors" in errors


@pytest.mark.parametrize("text", ["", "[1]", "{}", '"kind"', "\x00"])
def test_a_damaged_description_gives_status_2_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "fixture.json").write_text(text)
    status, _, errors = run(capsys, tmp_path)
    assert (status, len(errors.splitlines())) == (2, 1)
    assert "fixture.json: expected an object with a kind" in errors


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_fixtures_gives_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    status, checks, errors = run(capsys, tmp_path / name)
    assert (status, checks) == (2, [])
    assert "expected folders with a fixture.json, found none" in errors
