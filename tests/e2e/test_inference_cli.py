"""The command line on real input: a video that plays, refusals in one line, a clean stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import av
import pytest

from liveavatar.random_checkpoint import write_adapter
from tests.e2e.browser import assert_chromium_plays
from tests.e2e.command import (
    LONG,
    PORTRAIT,
    SCRIPT,
    SPEECH,
    arguments,
    describe,
    run,
    wait_for_frames,
)
from tests.patience import PATIENCE_S
from tests.unit.malformed_inputs import CATALOGUE, MalformedInput

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_the_command_writes_a_video_as_long_as_its_clips(finished: Path) -> None:
    assert describe(finished) == {
        "codecs": ("h264", "aac"),
        "pixels": "yuv420p",
        "frames": 96,
        "video_s": pytest.approx(3.84),
        "audio_s": pytest.approx(3.84, abs=0.04),
    }
    assert list(finished.parent.iterdir()) == [finished], "the growing file is gone"


@pytest.mark.browser
def test_chromium_plays_what_the_command_writes(browser: Browser, finished: Path) -> None:
    assert_chromium_plays(browser, finished, 96, 64, 64)


def test_without_num_clip_the_video_is_as_long_as_the_speech(
    cli: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    save_file = tmp_path / "all.mp4"
    assert cli.main(arguments(tiny, save_file, num_clip=None, infer_frames=32)) == 0
    with av.open(str(SPEECH)) as container:
        speech_s = float(container.duration / av.time_base)
    assert describe(save_file)["video_s"] == pytest.approx(speech_s, abs=0.04)


def test_decoding_by_clip_and_by_block_write_the_same_pictures(
    cli: ModuleType, tiny: Path, tmp_path: Path, finished: Path
) -> None:
    save_file = tmp_path / "by_clip.mp4"
    assert cli.main(arguments(tiny, save_file)) == 0
    with av.open(str(save_file)) as ours, av.open(str(finished)) as theirs:
        for left, right in zip(ours.decode(video=0), theirs.decode(video=0), strict=True):
            # Keyframes lie elsewhere, so the pictures agree only up to compression.
            grey = [frame.to_ndarray(format="gray").astype(int) for frame in (left, right)]
            assert abs(grey[0] - grey[1]).mean() < 8


def test_an_adapter_is_merged_and_changes_the_video(
    cli: ModuleType, tiny: Path, tmp_path: Path, finished: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    save_file = tmp_path / "adapted.mp4"
    assert cli.main(arguments(tiny, save_file, lora_path_dmd=adapter.parent, num_clip=1)) == 0
    assert describe(save_file)["frames"] == 48
    assert save_file.read_bytes() != finished.read_bytes()


def test_resume_leaves_a_complete_file_alone_and_makes_a_partial_one_again(
    cli: ModuleType, tiny: Path, tmp_path: Path, finished: Path
) -> None:
    save_file = tmp_path / "out.mp4"
    save_file.write_bytes(finished.read_bytes())
    written = save_file.stat().st_mtime_ns
    assert cli.main(arguments(tiny, save_file, resume=True)) == 0
    assert save_file.stat().st_mtime_ns == written
    assert cli.main(arguments(tiny, save_file, resume=True, num_clip=1)) == 0
    assert describe(save_file)["frames"] == 48


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_playable_file_and_says_so(
    launch: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    save_file = tmp_path / "out.mp4"
    process = launch(save_file)
    wait_for_frames(tmp_path / "out.live.mp4", 24, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    frames = describe(save_file)["frames"]
    assert isinstance(frames, int)
    assert 24 <= frames < 198
    assert f"holds the first {frames} of 198 frames" in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [save_file]


def test_a_killed_run_leaves_a_growing_file_that_plays_and_is_gone_on_with(
    cli: ModuleType,
    tiny: Path,
    launch: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    live, save_file = tmp_path / "out.live.mp4", tmp_path / "out.mp4"
    process = launch(save_file)
    wait_for_frames(live, 108, process)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    with av.open(str(live)) as container:
        there = sum(1 for _ in container.decode(video=0))
    assert 108 <= there < 198
    assert len(list(tmp_path.glob("out.resume/*/*.safetensors"))) == 1
    other = tmp_path / "other"
    shutil.copytree(tmp_path, other)
    assert cli.main(arguments(tiny, save_file, **LONG, resume=True)) == 0
    said = capfd.readouterr().err
    assert f"{there} frames are there already; going on behind them" in said
    assert describe(save_file)["frames"] == 198
    assert sorted(tmp_path.iterdir()) == [other, save_file]
    # What is there is of another seed than what is asked for: it is not gone on with.
    changed = LONG | {"base_seed": 5, "num_clip": 1}
    assert cli.main(arguments(tiny, other / "out.mp4", **changed, resume=True)) == 0
    assert "already" not in capfd.readouterr().err
    assert describe(other / "out.mp4")["frames"] == 48


def refusal(cli: ModuleType, command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused; return its one line."""
    capsys.readouterr()
    assert cli.main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 400
    return lines[0]


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_a_malformed_file_is_refused_and_nothing_is_written(
    entry: MalformedInput,
    cli: ModuleType,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    given = {"image" if entry.field == "portrait" else "audio": entry.make(tmp_path / "in")}
    line = refusal(cli, arguments(tiny, tmp_path / "out" / "out.mp4", **given), capsys)
    assert entry.field in line
    assert list((tmp_path / "out").iterdir()) == []


OPTION_REFUSALS: list[tuple[dict[str, object], str]] = [
    ({"size": "704x384"}, "704*384"),
    ({"size": "704×384"}, "704*384"),
    ({"size": "688"}, "688*368"),
    ({"size": ""}, "WIDTH*HEIGHT"),
    ({"size": "0*0"}, "64 to 4096"),
    ({"size": "-64*64"}, "--size"),
    ({"size": "10*5000"}, "64 to 4096"),
    ({"size": "4096*4096"}, "1280*720"),
    ({"size": "99999999*1"}, "WIDTH*HEIGHT"),
    ({"infer_frames": 50}, "48 and 52"),
    ({"infer_frames": 10}, "12 and 16"),
    ({"infer_frames": 0}, "infer_frames"),
    ({"infer_frames": -48}, "infer_frames"),
    ({"infer_frames": "many"}, "infer_frames"),
    ({"num_clip": 0}, "num_clip"),
    ({"num_clip": -1}, "num_clip"),
    ({"num_clip": 10**9}, "num_clip"),
    ({"num_clip": 1.5}, "num_clip"),
    ({"sample_steps": 0}, "sample_steps"),
    ({"sample_steps": 51}, "sample_steps"),
    ({"base_seed": -1}, "base_seed"),
    ({"base_seed": 2**64}, "base_seed"),
    ({"num_gpus_dit": 3, "ulysses_size": 2}, "must equal"),
    ({"num_gpus_dit": 0, "ulysses_size": 0}, "num_gpus_dit"),
    ({"num_gpus_dit": 5, "ulysses_size": 5}, "1 to 4"),
    ({"num_gpus_dit": 3, "ulysses_size": 3, "tpp_mode": "False"}, "sp_degree"),
    ({"num_gpus_dit": 2, "ulysses_size": 2, "tpp_mode": "False", "mesh": "2x1x1"}, "no stages"),
    ({"num_gpus_dit": 4, "ulysses_size": 4, "mesh": "2x1x1"}, "product of 4"),
    ({"num_gpus_dit": 2, "ulysses_size": 2, "mesh": "2x1"}, "3x1x1"),
    ({"num_gpus_dit": 2, "ulysses_size": 2, "mesh": "-2x1x-1"}, "--mesh"),
    ({"num_gpus_dit": 4, "ulysses_size": 4, "mesh": "1x4x1"}, "tp_degree"),
    ({"offload_model": "yes"}, "True or False"),
    ({"tpp_mode": "maybe"}, "True or False"),
    ({"unknown_option": 1}, "unknown_option"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "   "}, "prompt"),
    ({"prompt": "a\x00b"}, "prompt"),
    ({"prompt": "x" * 5000}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"image": None}, "image"),
    ({"audio": None}, "audio"),
    ({"ckpt_dir": None}, "ckpt_dir"),
    ({"save_file": None}, "save_file"),
    ({"image": "nowhere.png"}, "nowhere.png"),
    ({"audio": "nowhere.wav"}, "nowhere.wav"),
    ({"ckpt_dir": "nowhere"}, "nowhere"),
    ({"lora_path_dmd": "Quark-Vision/Live-Avatar"}, "Quark-Vision/Live-Avatar"),
    ({"image": SPEECH}, "portrait"),
    ({"audio": PORTRAIT}, "speech"),
]


@pytest.mark.parametrize(("changed", "hint"), OPTION_REFUSALS, ids=lambda v: str(v)[:40])
def test_a_bad_option_is_refused_with_one_line_that_names_it(
    changed: dict[str, object],
    hint: str,
    cli: ModuleType,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(tiny, tmp_path / "out.mp4", **changed)
    assert hint in refusal(cli, command, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changed",
    [{"size": "704x384"}, {"num_gpus_dit": 3, "ulysses_size": 2}, {"infer_frames": 50}],
    ids=str,
)
def test_a_wrong_option_is_refused_before_torch_is_read(
    changed: dict[str, object], tmp_path: Path
) -> None:
    command = arguments(tmp_path / "no checkpoint", tmp_path / "out.mp4", **changed)
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[str(SCRIPT), *command]!r}\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["out.avi", "out", "folder.mp4", "missing/out.mp4", ".mp4"])
def test_an_output_that_cannot_be_written_is_refused(
    name: str, cli: ModuleType, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    assert "save_file" in refusal(cli, arguments(tiny, tmp_path / name), capsys)


@pytest.mark.parametrize("listed", ["3,2,1,0", "1,0", "0,0", "0,1,1"])
def test_devices_out_of_order_are_refused(
    listed: str,
    cli: ModuleType,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert "ascending" in refusal(cli, arguments(tiny, tmp_path / "out.mp4"), capsys)


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def pointed(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("damage", [truncated, emptied, removed, pointed])
@pytest.mark.parametrize(
    "part",
    [
        "config.json",
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
        "Wan2.1_VAE.pth",
        "google/umt5-xxl/tokenizer.json",
        "wav2vec2-large-xlsr-53-english/config.json",
        "wav2vec2-large-xlsr-53-english/model.safetensors",
    ],
)
def test_a_damaged_checkpoint_is_refused_with_one_line_that_names_the_file(
    part: str,
    damage: Callable[[Path], None],
    cli: ModuleType,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny, checkpoint, copy_function=os.link)
    (checkpoint / part).unlink()
    shutil.copyfile(tiny / part, checkpoint / part)
    damage(checkpoint / part)
    (tmp_path / "out").mkdir()
    capsys.readouterr()
    assert cli.main(arguments(checkpoint, tmp_path / "out" / "out.mp4")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert Path(part).parts[0] in line or Path(part).name in line
    assert list((tmp_path / "out").iterdir()) == []


def test_no_refusal_ends_in_a_traceback(tiny: Path, tmp_path: Path) -> None:
    result = run(arguments(tiny, tmp_path / "out.mp4", size="704x384"))
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: size: expected WIDTH*HEIGHT, got '704x384'; write 704*384"
    ]
    assert os.listdir(tmp_path) == []
