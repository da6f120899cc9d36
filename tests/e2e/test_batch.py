"""Many videos by one command: bad lines, kills, groups that die, and nothing made twice."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.batch import run_batch
from inference.options import build_parser
from liveavatar.engine.fake import FakeGroup, Pace
from liveavatar.engine.messages import GroupSpec, RankStatus
from liveavatar.errors import ConfigError, WorkerDiedError
from liveavatar.media.remux import count_frames
from tests.e2e.command import PORTRAIT, ROOT, describe
from tests.patience import PATIENCE_S

QUICK = Pace(load_s=0.01, prepare_s=0.01, fps=5000.0)
FRAMES = 30
DEMO = ROOT / "ckpt" / "demo"
BAD = {
    3: '{"portrait": "face.png", "audio": "speech.wav", "prompt": "She talks", "tier": "huge"}',
    9: "{not JSON",
    14: '{"portrait": "gone.png", "audio": "speech.wav", "prompt": "She talks", "tier": "fast"}',
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A portrait and a speech of 30 frames."""
    with Image.open(PORTRAIT) as portrait:
        portrait.resize((256, 256)).save(tmp_path / "face.png")
    tone = np.sin(np.arange(16_000 * FRAMES // 25) / 20) * 9000
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(tone.astype(np.int16).tobytes())
    return tmp_path


def line(number: int, **changed: object) -> str:
    given = {"portrait": "face.png", "audio": "speech.wav", "prompt": "She talks", "tier": "fast"}
    return json.dumps({**given, "seed": number, "output": f"v{number}.mp4", **changed})


def write_batch(folder: Path, *lines: str) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def options(batch: Path, **changed: object) -> list[str]:
    given = {"ckpt_dir": DEMO, "batch": batch} | changed
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def parsed(batch: Path, **changed: object) -> argparse.Namespace:
    return build_parser().parse_args(options(batch, **changed))


class Groups:
    """Makes groups that draw and keeps them."""

    def __init__(self, pace: Pace = QUICK) -> None:
        self.pace = pace
        self.made: list[FakeGroup] = []

    def __call__(self, _spec: GroupSpec) -> FakeGroup:
        self.made.append(FakeGroup(self.pace))
        return self.made[-1]


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Videos that are whole by name: when they were written, and their bytes."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("*.mp4")
        if not path.name.endswith(".live.mp4") and count_frames(path) == FRAMES
    }


@pytest.fixture
def killed(folder: Path) -> tuple[Path, dict[str, tuple[int, bytes]]]:
    """Twenty lines, three of them bad; killed when five videos and a part of one are there."""
    batch = write_batch(folder, *(BAD.get(number, line(number)) for number in range(1, 21)))
    script = [sys.executable, "-m", "tests.e2e.drawing_batch", "60", *options(batch)]
    process = subprocess.Popen(
        script, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.glob("v*.json"))) < 5 or not list(folder.glob("*.live.mp4")):
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            pytest.fail(f"not killed in time: {process.communicate()[1]}")
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    return batch, finished(folder)


def test_twenty_lines_three_bad_a_kill_and_a_run_again(
    killed: tuple[Path, dict[str, tuple[int, bytes]]], capsys: pytest.CaptureFixture[str]
) -> None:
    batch, before = killed
    folder, groups = batch.parent, Groups()
    assert 4 <= len(before) < 17
    assert run_batch(parsed(batch), groups) == 2
    said = capsys.readouterr()
    after = finished(folder)
    assert set(after) == {f"v{number}.mp4" for number in range(1, 21) if number not in BAD}
    assert {name: after[name] for name in before} == before  # nothing finished is made again
    refused = [text for text in said.err.splitlines() if text.startswith("line ")]
    assert [text.split(":")[0] for text in refused] == ["line 3", "line 9", "line 14"]
    assert "tier: expected fast or balanced or high, got 'huge'" in refused[0]
    assert "expected a JSON object on one line" in refused[1]
    assert "gone.png" in refused[2]
    counts = said.out.splitlines()[-1]
    assert f"{len(before)} kept" in counts
    assert "3 bad" in counts
    assert f"{17 - len(before)} made" in counts
    assert len(groups.made) == 1
    left = {path.name for path in folder.iterdir()} - set(after)
    reports = {name.replace(".mp4", ".json") for name in after}
    assert left == {"face.png", "speech.wav", "jobs.jsonl"} | reports
    report = json.loads((folder / "v20.json").read_text())
    assert (report["frames"], report["seed"], report["tier"]) == (FRAMES, 20, "fast")
    nothing = Groups()
    assert run_batch(parsed(batch), nothing) == 2
    assert not nothing.made


def test_what_ranks_do_before_they_are_ready_is_no_time_of_a_video(folder: Path) -> None:
    loading = RankStatus(9, "loads", "cpu", None, 0, 0, 0, 1.0, "warm-up")

    def make_group(_spec: GroupSpec) -> FakeGroup:
        group = FakeGroup(Pace(load_s=2.0, prepare_s=0.01, fps=10.0))
        group._events.put(loading)
        return group

    assert run_batch(parsed(write_batch(folder, line(1))), make_group) == 0
    ranks = json.loads((folder / "v1.json").read_text())["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1, 2, 3]


def test_another_request_under_the_same_name_is_made_anew(folder: Path) -> None:
    batch = write_batch(folder, line(1), line(2))
    assert run_batch(parsed(batch), Groups()) == 0
    first = finished(folder)
    write_batch(folder, line(1), line(2, prompt="He talks"))
    assert run_batch(parsed(batch), Groups()) == 0
    second = finished(folder)
    assert second["v1.mp4"] == first["v1.mp4"]
    assert second["v2.mp4"][0] > first["v2.mp4"][0]


class DyingGroup(FakeGroup):
    """Dies whenever it is to make one of these videos."""

    def __init__(self, deadly: set[int]) -> None:
        super().__init__(QUICK)
        self._deadly = deadly

    def next_event(self, timeout_s: float) -> Any:
        event = super().next_event(timeout_s)
        if getattr(event, "number", None) in self._deadly:
            self.die("rank 1 was killed by signal 9")
            raise WorkerDiedError("rank 1 was killed by signal 9")
        return event


def test_a_video_that_ends_its_group_twice_fails_and_the_others_are_made(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = write_batch(folder, *(line(number) for number in range(1, 5)))
    made: list[FakeGroup] = []

    def make(_spec: GroupSpec) -> FakeGroup:
        made.append(DyingGroup({2}))
        return made[-1]

    assert run_batch(parsed(batch), make) == 1
    assert set(finished(folder)) == {"v1.mp4", "v3.mp4", "v4.mp4"}
    assert len(made) == 3
    said = capsys.readouterr()
    assert "line 2: rank 1 was killed by signal 9" in said.err
    assert said.out.splitlines()[-1].startswith("3 made, 1 failed")
    assert run_batch(parsed(batch), Groups()) == 0
    assert len(finished(folder)) == 4


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("[1]", "expected a JSON object, got list"),
        ('{"portrait": "face.png"}', "missing: audio, prompt, tier"),
        (line(2, seed=True), "seed: expected a whole number, got true"),
        (line(2, clips=0), "num_clip: expected a whole number from 1"),
        (line(2, fps=30), "fps: is not known"),
        (line(2, prompt=" "), "prompt: it is empty"),
        (line(2, output="v1.mp4"), "output: line 3 writes 'v1.mp4' already"),
        (line(2, output="v2.avi"), "expected a name that ends in .mp4"),
        (line(2, output="no/v2.mp4"), "is not there or cannot be written"),
        (line(2, audio="face.png"), "face.png"),
    ],
)
def test_a_bad_line_is_named_in_one_line(
    folder: Path, bad: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = write_batch(folder, "# the first one is fine", "", line(1), bad)
    assert run_batch(parsed(batch), Groups()) == 2
    assert list(finished(folder)) == ["v1.mp4"]
    spoken = [text for text in capsys.readouterr().err.splitlines() if text.startswith("line ")]
    assert len(spoken) == 1
    assert spoken[0].startswith("line 4: ")
    assert said in spoken[0]


def test_options_that_belong_into_the_lines_are_refused(folder: Path) -> None:
    batch = write_batch(folder, line(1))
    with pytest.raises(ConfigError, match="prompt: expected in the lines of --batch"):
        run_batch(parsed(batch, prompt="She talks"), Groups())
    with pytest.raises(ConfigError, match="cannot be read"):
        run_batch(parsed(folder / "none.jsonl"), Groups())
    with pytest.raises(ConfigError, match="is empty"):
        run_batch(parsed(write_batch(folder, "", "# nothing")), Groups())


def test_a_batch_through_real_ranks(cli: ModuleType, tiny: Path, folder: Path) -> None:
    batch = write_batch(folder, "{}", line(2, clips=1))
    assert cli.main(options(batch, ckpt_dir=tiny)) == 2
    assert describe(folder / "v2.mp4")["frames"] == FRAMES
    assert json.loads((folder / "v2.json").read_text())["num_clip"] == 1
