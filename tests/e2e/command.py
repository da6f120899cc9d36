"""The command line as tests call it, and what it wrote."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from liveavatar.media.live_file import measure_live_file
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "inference" / "inference_tpp.py"
PORTRAIT, SPEECH = ROOT / "examples" / "maya.png", ROOT / "examples" / "maya.wav"
PROMPT = "A young woman talks to the camera and smiles, in a bright studio room"

LONG: dict[str, object] = {
    "size": "128*128",
    "audio": ROOT / "examples" / "oliver.wav",
    "num_clip": None,
    "enable_online_decode": True,
}
"""Options of a video that can be interrupted."""


def arguments(tiny: Path, output: Path, **changed: object) -> list[str]:
    """The documented command; a value of None leaves an option out, True makes it a switch."""
    options: dict[str, object] = {
        "ckpt_dir": tiny,
        "image": PORTRAIT,
        "audio": SPEECH,
        "prompt": PROMPT,
        "size": "64*64",
        "num_clip": 2,
        "infer_frames": 48,
        "sample_steps": 4,
        "num_gpus_dit": 1,
        "ulysses_size": 1,
        "save_file": output,
    } | changed
    listed = []
    for name, value in options.items():
        if value is not None:
            listed += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return listed


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=ROOT.parent,
        check=False,
    )


def describe(path: Path) -> dict[str, object]:
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        return {
            "codecs": (video.codec_context.name, audio.codec_context.name),
            "pixels": video.codec_context.pix_fmt,
            "frames": sum(1 for _ in container.decode(video)),
            "video_s": float(video.duration * video.time_base),
            "audio_s": float(audio.duration * audio.time_base),
        }


def start(tiny: Path, save_file: Path, **changed: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments(tiny, save_file, **(LONG | changed))],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_frames(live: Path, frames: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if live.exists() and live.stat().st_size and measure_live_file(live).num_frames >= frames:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"no {frames} frames in time: {process.communicate()[1]}")
