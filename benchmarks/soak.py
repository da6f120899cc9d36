"""Does a long video use more memory than a short one?

    python -m benchmarks.soak [--clips 10,100] [--size 64*64] [--json]
    python -m benchmarks.soak --jobs 200 --minutes 30 [--test-picture] [--json]

The command line makes one video per number of clips, each in a process of its own, from repeated
example speech and the tiny random checkpoint (or --ckpt_dir). The resident memory of the process is
sampled from outside. Exit status 1 when the longest video's peak is over 2 % above the shortest's.

With --jobs the application is asked for many short videos instead, see `soak_jobs`; exit status 1
when one is lost or something is leaked.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import describe_environment
from benchmarks.soak_jobs import measure as measure_jobs
from liveavatar.config import FPS, SPEECH_RATE_HZ
from liveavatar.random_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parent.parent
PORTRAIT, SPEECH = ROOT / "examples" / "maya.png", ROOT / "examples" / "maya.wav"
CLIP_FRAMES = 48
ALLOWED_GROWTH = 1.02
SAMPLE_EVERY_S = 0.1
RUN_LIMIT_S = 3600


@dataclass(frozen=True)
class Measurement:
    """One video.

    Attributes:
        clips: clips asked for.
        frames: frames of the video.
        seconds: duration of the process.
        steady_mib: median resident memory over the second half of the process's life.
        peak_mib: largest resident memory.
    """

    clips: int
    frames: int
    seconds: float
    steady_mib: float
    peak_mib: float


def write_speech(path: Path, seconds: float) -> None:
    """Repeat the example speech until it is long enough."""
    with wave.open(str(SPEECH)) as given:
        settings, sound = given.getparams(), given.readframes(given.getnframes())
    wanted = round(seconds * SPEECH_RATE_HZ) * settings.sampwidth
    with wave.open(str(path), "wb") as made:
        made.setparams(settings)
        made.writeframes((sound * (wanted // len(sound) + 1))[:wanted])


def measure(checkpoint: Path, clips: int, size: str, folder: Path) -> Measurement:
    """Make one video and watch its process; RuntimeError when the command fails."""
    speech, output = folder / f"{clips}.wav", folder / f"{clips}.mp4"
    write_speech(speech, clips * CLIP_FRAMES / FPS)
    command = [
        *(sys.executable, str(ROOT / "inference" / "inference_tpp.py")),
        *("--ckpt_dir", str(checkpoint), "--image", str(PORTRAIT), "--audio", str(speech)),
        *("--prompt", "A woman talks to the camera", "--size", size),
        *("--infer_frames", str(CLIP_FRAMES), "--num_clip", str(clips)),
        *("--enable_online_decode", "--save_file", str(output)),
    ]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    resident: list[float] = []
    peak = 0.0
    while process.poll() is None:
        if time.monotonic() - started > RUN_LIMIT_S:
            process.kill()
            raise RuntimeError(f"{clips} clips took over {RUN_LIMIT_S} s")
        now, high = _memory_mib(process.pid)
        if now:
            resident.append(now)
            peak = max(peak, high)
        time.sleep(SAMPLE_EVERY_S)
    said = process.communicate()[1]
    if process.returncode != 0:
        raise RuntimeError(f"the command failed: {said[-400:]}")
    frames = re.search(r": (\d+) frames, ", said)
    return Measurement(
        clips=clips,
        frames=int(frames[1]) if frames else 0,
        seconds=round(time.monotonic() - started, 1),
        steady_mib=round(statistics.median(resident[len(resident) // 2 :]), 1),
        peak_mib=round(peak, 1),
    )


def _memory_mib(pid: int) -> tuple[float, float]:
    """Resident memory of a process, now and at most; zeros when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    return int(found.get("VmRSS", 0)) / 1024, int(found.get("VmHWM", 0)) / 1024


def _report_jobs(report: dict[str, Any]) -> int:
    report["environment"] = describe_environment(torch.device("cpu"))
    sys.stdout.write(json.dumps(report) + "\n")
    return int(bool(report["faults"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--clips", default="10,100", help="numbers of clips, separated by commas")
    parser.add_argument("--size", default="64*64", metavar="W*H")
    parser.add_argument("--ckpt_dir", type=Path, help="a tiny random checkpoint by default")
    parser.add_argument("--jobs", type=int, help="soak the application with so many short jobs")
    parser.add_argument("--minutes", type=float, default=30.0, help="over how long")
    parser.add_argument("--test-picture", action="store_true", help="with --jobs: draw, no model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.jobs:
            model = ["--test-picture"] if options.test_picture else ["--model", "demo"]
            return _report_jobs(measure_jobs(folder, options.jobs, options.minutes, model))
        checkpoint = options.ckpt_dir or folder / "checkpoint"
        if options.ckpt_dir is None:
            write_checkpoint(checkpoint)
        counts = sorted(int(count) for count in options.clips.split(","))
        results = [measure(checkpoint, count, options.size, folder) for count in counts]
    growth = results[-1].peak_mib / results[0].peak_mib
    report = {
        "benchmark": "soak",
        "environment": describe_environment(torch.device("cpu")),
        "size": options.size,
        "results": [asdict(result) for result in results],
        "peak_growth": round(growth, 4),
        "steady_growth": round(results[-1].steady_mib / results[0].steady_mib, 4),
    }
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        for result in results:
            sys.stdout.write(
                f"{result.clips} clips, {result.frames} frames, {result.seconds} s: resident "
                f"{result.steady_mib} MiB, at most {result.peak_mib} MiB\n"
            )
        sys.stdout.write(f"peak grows by a factor of {growth:.4f}\n")
    return int(growth > ALLOWED_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
