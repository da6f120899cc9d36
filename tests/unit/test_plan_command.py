"""What the memory plan reads of a checkpoint folder, and its command."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from liveavatar import random_checkpoint
from liveavatar.errors import CheckpointError
from liveavatar.plan import media_memory as media
from liveavatar.plan import shapes
from liveavatar.plan.__main__ import main
from liveavatar.plan.shapes import read_network, read_speech_shape, text_shape, vae_shape
from liveavatar.plan.stored_shapes import read_pickled_shapes, read_safetensors_shapes
from tests.patience import PATIENCE_S
from tests.unit.planned_memory import TINY_NETWORK, on_meta, parameter_bytes

# --- Reading a checkpoint folder -----------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    random_checkpoint.write_checkpoint(path)
    return path


def test_the_shapes_of_a_folder_are_those_it_was_written_with(folder: Path) -> None:
    assert read_network(folder) == TINY_NETWORK


def test_a_transformer_in_one_file_is_read_as_well(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    (whole / shapes.TRANSFORMER_INDEX).unlink()
    tensors = {}
    for shard in sorted(whole.glob("diffusion_pytorch_model-*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    save_file(tensors, whole / shapes.TRANSFORMER_SINGLE, {"format": "pt"})
    assert read_network(whole) == TINY_NETWORK


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="set --model"):
        read_network(tmp_path)
    (tmp_path / shapes.CONFIG).write_text("{}")
    with pytest.raises(CheckpointError, match="safetensors"):
        read_network(tmp_path)
    (tmp_path / shapes.TRANSFORMER_INDEX).write_text('{"weight_map": {"a": 1}}')
    with pytest.raises(CheckpointError, match="weight_map"):
        read_network(tmp_path)
    (tmp_path / shapes.TRANSFORMER_INDEX).write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        read_network(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\x02" + bytes(7) + b"[]",
        b'\x0e\0\0\0\0\0\0\0{"a": {"b":1}}',
        b'\x15\0\0\0\0\0\0\0{"a": {"shape":[""]}}',
    ],
)
def test_damaged_safetensors_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        read_safetensors_shapes(path)
    assert "\n" not in str(refusal.value)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a/data.pkl", pickle.dumps(Harmful())),
        ("a/data.pkl", pickle.dumps([1])),
        ("a/data.pkl", pickle.dumps({"a": 1})),
        ("a/data.pkl", b"damage"),
        ("a/other", b""),
    ],
)
def test_files_of_no_tensors_are_refused_and_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"torch\.save"):
        read_pickled_shapes(path)
    assert capsys.readouterr().out == ""


def test_a_table_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(65 * 2**20))
    with pytest.raises(CheckpointError, match="too large"):
        read_pickled_shapes(path)


def test_a_parameter_saved_as_such_has_its_shape(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "a.pth")
    assert read_pickled_shapes(tmp_path / "a.pth") == {"a": (2, 3), "b": ()}


def test_another_autoencoder_is_refused() -> None:
    conv = (8, 8, 3, 3, 3)
    first = "decoder.upsamples.0.residual.2.weight"
    for stored in (
        {},
        {"conv2.weight": (16, 16, 1, 1, 1)},
        {"conv2.weight": (16, 16, 1, 1, 1), first: (8,)},
        {
            "conv2.weight": (16, 16, 1, 1, 1),
            first: conv,
            "decoder.upsamples.1.resample.1.weight": (4, 8, 3, 3),
            "decoder.upsamples.2.residual.2.weight": (3, 4, 3, 3, 3),
        },
    ):
        with pytest.raises(CheckpointError, match="vae"):
            vae_shape(stored, Path("vae"))


def test_another_text_encoder_is_refused() -> None:
    with pytest.raises(CheckpointError, match="token_embedding"):
        text_shape({"token_embedding.weight": (5, 0)}, Path("text"))


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": "1"},
        {"hidden_size": 0},
        {"conv_dim": 5},
        {"conv_dim": []},
        {"conv_dim": [1.5] * 7},
        {"conv_dim": [4, 4]},
    ],
)
def test_another_speech_encoder_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError):
        read_speech_shape(path)


def test_what_a_speech_config_leaves_out_has_the_librarys_default(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    speech = on_meta(lambda: Wav2Vec2Model(Wav2Vec2Config(mask_time_prob=0.0)))
    assert media.speech_encoder_weights(read_speech_shape(path), 4) == parameter_bytes(speech)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="readable JSON"):
        read_speech_shape(path)


# --- The command ---------------------------------------------------------------------------------


def test_without_a_size_there_is_a_block_per_tier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    *blocks, last = capsys.readouterr().out.split("\n\n")
    assert [block.split()[0] for block in blocks] == ["fast", "balanced", "high"]
    assert last.startswith("one group for all that fit: ")
    assert "video 384x640 (width x height)" in blocks[1]
    assert main(["--gpus", "2"]) == 1


def test_json_has_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "688*368", "--gpu_memory_gib", "80", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    assert (plan["height"], plan["width"], plan["fits"]) == (640, 384, True)
    assert plan["stages"] == [[0, 13], [13, 27], [27, 40]]
    assert len(plan["ranks"]) == 4
    for rank in plan["ranks"]:
        assert rank["total"] == sum(value for part, value in rank.items() if part != "total")
    assert plan["precision"] == {"weights": "bfloat16", "cache": "bfloat16"}


def test_options_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "688*368", "--literal", "--infer_frames", "24", "--sample_steps", "2"]
    assert main([*options, "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["plans"]
    found = (plan["height"], plan["width"], plan["infer_frames"], plan["sample_steps"])
    assert found == (368, 688, 24, 2)
    main(["--infer_frames", "24", "--json"])
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [(p["infer_frames"], p["sample_steps"]) for p in plans] == [(24, 3), (24, 4), (24, 4)]


def test_a_tight_fit_says_one_job_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "688*368", "--gpu_memory_gib", "30"]) == 0
    assert "one job at a time" in capsys.readouterr().out


def test_a_folders_model_is_planned_for_the_cpu(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--size", "64*64", "--model", str(folder), "--gpus", "0"]) in (0, 1)
    assert "on the CPU of" in capsys.readouterr().out
    on_cpu = ["--size", "256*128", "--model", str(folder), "--gpus", "0", "--gpu_memory_gib", "8"]
    assert main(on_cpu) == 0
    assert "fits, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--size", "688x368"], "688*368"),
        (["--size", "1*1"], "size"),
        (["--size", "700*360", "--literal"], "multiples of 16"),
        (["--literal"], "literal"),
        (["--gpus", "-1"], "gpus"),
        (["--gpus", "many"], "gpus"),
        (["--gpu_memory_gib", "nan"], "gpu_memory_gib"),
        (["--gpu_memory_gib", "0"], "gpu_memory_gib"),
        (["--infer_frames", "13"], "infer_frames"),
        (["--sample_steps", "0"], "sample_steps"),
        (["--gpus", "60"], "stages"),
        (["--model", "nowhere"], "nowhere"),
        (["--unknown"], "--help"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    options: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert named in printed.err


def test_one_process_alone_says_how_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--alone", "--size", "688*368", "--host_memory_gib"]
    assert main([*asked, "128"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in said[3:7]] == [
        "bfloat16 weights and K/V",
        "bfloat16 weights, 8-bit K/V",
        "fp8 weights, bfloat16 K/V",
        "fp8 weights, 8-bit K/V",
    ]
    assert "  fits, 15.9 of 22.15 GiB with bfloat16 weights and K/V, layers and rings in" in said[7]
    assert "every forward copies" in said[8]
    assert main([*asked, "8"]) == 1
    assert "of which 8.0 GiB are free and 4 have to stay so" in capsys.readouterr().out
    assert main([*asked, "128", "--gpu_memory_gib", "96"]) == 0
    assert "every forward copies" not in capsys.readouterr().out, "all is on the card"
    assert main([*asked, "nan"]) == 2
    assert "host_memory_gib: expected 0 up to 1048576, got nan" in capsys.readouterr().err


def test_the_plan_never_loads_torch() -> None:
    code = (
        "import sys; from liveavatar.plan.__main__ import main; main(['--size', '384*256']); "
        "print({'torch', 'transformers'} & {name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.endswith("set()\n")
