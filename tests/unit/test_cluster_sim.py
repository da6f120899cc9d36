"""The simulation of a cluster, small: every job once, fair, the same again; the load it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cluster_events import Cluster
from benchmarks.cluster_load import KINDS, Load, draw_jobs
from benchmarks.cluster_sim import FPS, jain, main, simulate

SPEEDS = {tier: float(fps) for tier, fps in (each.split("=") for each in FPS.split(","))}


def test_with_failing_groups_every_job_ends_once_and_owners_share(tmp_path: Path) -> None:
    load = Load(jobs=240, waiting=240, owners=8, share=1.0, bursts=1.0, burst_s=600.0, seed=3)
    cluster = Cluster(groups=6, small=0.34, fps=SPEEDS, mtbf_s=3600.0, repair_s=120.0)
    result = simulate(load, cluster, tmp_path)
    assert result["jobs"] == 240
    assert result["not_ended_once"] == 0
    assert result["failures"] > 0
    assert result["claim_ms"]["count"] > 240  # some were claimed again
    assert result["owners_compared"]["count"] >= 3
    assert result["fairness"] > 0.8
    waits = result["wait_s"]
    assert waits["short, fast"]["p50"] < 0.5 * waits["minutes, balanced"]["p50"]
    again = tmp_path / "again"
    again.mkdir()
    for name, found in simulate(load, cluster, again).items():
        if not name.startswith("claim"):
            assert found == result[name]


def test_the_load_asks_for_the_share_it_says_and_comes_in_bursts() -> None:
    load = Load(jobs=5000, waiting=0, owners=50, share=0.5, bursts=5.0, burst_s=600.0, seed=1)
    jobs = draw_jobs(load, SPEEDS, groups=10)
    asked = sum(job.spec.total_frames / SPEEDS[job.spec.tier] for job in jobs)
    assert asked / (10 * jobs[-1].at) == pytest.approx(0.5, rel=0.1)
    in_burst = sum(job.at % 6000 > 5400 for job in jobs) / len(jobs)
    assert in_burst == pytest.approx(0.5 / 1.4, rel=0.2)
    assert {job.kind for job in jobs} == {kind.name for kind in KINDS}


def test_the_index_of_fairness() -> None:
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([5.0, 0.0, 0.0, 0.0]) == 0.25


def test_the_command_reports_in_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--groups", "2", "--jobs", "10", "--dir", str(tmp_path), "--json"]
    assert main(options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["result"]["jobs"] == 10
    assert 0 < report["result"]["utilisation"] <= 1
