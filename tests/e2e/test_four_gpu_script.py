"""The measurement on four GPUs, rehearsed with four CPU processes and a tiny network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.command import ROOT
from tests.patience import PATIENCE_S

REHEARSAL = {"GPUS": "0", "CLIPS": "1", "INFER_FRAMES": "24", "PYTHON": sys.executable}


def rehearse(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "benchmarks/four_gpu.sh"), str(out)],
        env=os.environ | REHEARSAL | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_one_start_serves_all_sizes_and_sections_leave_results_and_a_table(tmp_path: Path) -> None:
    done = rehearse(tmp_path, SECTIONS="all-sizes")
    assert done.returncode == 0, done.stderr + done.stdout
    videos = json.loads((tmp_path / "all-sizes/pipeline.json").read_text())["videos"]
    assert [(video["size"], video["sample_steps"]) for video in videos] == [
        ("64*64", 4),
        ("80*64", 4),
        ("64*64", 3),
    ]
    # A video may be so short that not every rank reports while it is made.
    roles = {rank["role"] for video in videos for rank in video["ranks"]}
    assert roles <= {"stage 0", "stage 1", "stage 2", "media"}
    # Before the sizes that the group is not warm for it makes a video that does not count.
    numbers = [[job["number"] for job in video["jobs"]] for video in videos]
    assert numbers == [[2, 3], [4, 5], [7, 8]]
    recovery = json.loads((tmp_path / "all-sizes/recovery.json").read_text())
    assert recovery["size"] == "80*64"
    assert recovery["said"] == "rank 1 was killed by signal 9"
    assert 0 < recovery["noticed_s"] < recovery["ready_s"] < recovery["first_frame_s"]
    said = (tmp_path / "log.txt").read_text()
    assert said.count("rank 3 is ready") == 1, said  # of the group that made all of them
    table = (tmp_path / "table.md").read_text()
    assert table in done.stdout
    assert all(f"| {video['fps']} |" in table for video in videos)
    assert f"its first frame after {recovery['first_frame_s']} s" in table
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".json", ".md", ".txt"}


def test_a_section_whose_time_is_over_fails_and_the_next_ones_are_skipped(tmp_path: Path) -> None:
    # The first has 10 or 11 s left, whenever the clock ticks, and the second one less than 10.
    done = rehearse(tmp_path, SECTION_S="2", TOTAL_S="11", SECTIONS="all-sizes fast-alone")
    assert done.returncode == 1
    said = (tmp_path / "log.txt").read_text()
    assert "all-sizes: failed with status 124" in said
    assert "fast-alone: skipped, 11 s are over" in said
