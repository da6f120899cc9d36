"""The measurement on four GPUs, rehearsed with four CPU processes and a tiny network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.command import ROOT

REHEARSAL = {"GPUS": "0", "CLIPS": "1", "INFER_FRAMES": "24", "PYTHON": sys.executable}


def rehearse(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "benchmarks/four_gpu.sh"), str(out)],
        env=os.environ | REHEARSAL | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_sections_leave_their_results_and_a_table(tmp_path: Path) -> None:
    done = rehearse(tmp_path, SECTIONS="balanced recovery")
    assert done.returncode == 0, done.stderr + done.stdout
    pipeline = json.loads((tmp_path / "balanced/pipeline.json").read_text())
    assert [rank["role"] for rank in pipeline["ranks"]] in (
        [],  # a video may be too short for a report while it is made
        ["stage 0", "stage 1", "stage 2", "media"],
    )
    assert [job["number"] for job in pipeline["jobs"]] == [1, 2]
    recovery = json.loads((tmp_path / "recovery/recovery.json").read_text())
    assert recovery["said"] == "rank 1 was killed by signal 9"
    assert 0 < recovery["noticed_s"] < recovery["ready_s"] < recovery["first_frame_s"]
    table = (tmp_path / "table.md").read_text()
    assert table in done.stdout
    assert f"| {pipeline['fps']} |" in table
    assert f"its first frame after {recovery['first_frame_s']} s" in table
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".json", ".md", ".txt"}


def test_a_section_whose_time_is_over_fails_and_the_next_ones_are_skipped(tmp_path: Path) -> None:
    done = rehearse(tmp_path, SECTION_S="1", TOTAL_S="10", SECTIONS="balanced fast")
    assert done.returncode == 1
    said = (tmp_path / "log.txt").read_text()
    assert "balanced: failed with status 124" in said
    assert "fast: skipped, 10 s are over" in said
