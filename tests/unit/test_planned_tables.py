"""Tables of planned memory in the documents hold what `python -m liveavatar.plan` says now."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from liveavatar.plan.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def plans(capsys: pytest.CaptureFixture[str], gpus: str, gib: str) -> list[dict[str, Any]]:
    main(["--gpus", gpus, "--gpu_memory_gib", gib, "--json"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["plans"]
    return found


def fullest_gib(plan: dict[str, Any]) -> str:
    return f"{max(plan['device_bytes']) / GIB:.1f}"


def cell(plan: dict[str, Any]) -> str:
    """What a table says of a tier: the fullest card, and what had to be rounded to make it fit."""
    if not plan["fits"]:
        return "-"
    rounded = ", fp8 weights" if plan["precision"]["weights"] == "fp8" else ""
    rounded += ", 8-bit K/V" if plan["precision"]["cache"] == "8-bit" else ""
    return f"{fullest_gib(plan)} GiB{rounded}"


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_cards_and_tiers(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) x [^|]+ \| ([\d.]+) GiB \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) >= 6
    for gpus, gib, cells in rows:
        assert cells.split(" | ") == [cell(plan) for plan in plans(capsys, gpus, gib)], gpus


def test_one_process_on_one_card(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    main(["--alone", "--json", "--host_memory_gib", "128"])
    for plan in json.loads(capsys.readouterr().out)["plans"]:
        for precision in dict.fromkeys(way["precision"] for way in plan["ways"]):
            ways = [way for way in plan["ways"] if way["precision"] == precision]
            cells = [lone_cell(way) for way in ways]
            per_forward = f"{ways[-1]['to_device_per_forward'] / 1e9:.1f} GB"
            cells.append(f"{per_forward}, {ways[-1]['estimated_block_s']:.1f} s")
            row = f"| {plan['name']} | {precision} | {' | '.join(cells)} |"
            assert row in text.splitlines()


def lone_cell(way: dict[str, Any]) -> str:
    """GiB of the card, of host memory in brackets; slanted what does not fit."""
    said = f"{way['bytes'] / GIB:.1f}"
    if way["pinned_bytes"]:
        said += f" ({way['pinned_bytes'] / GIB:.1f})"
    return said if way["fits"] else f"*{said}*"


def test_the_precision_of_one_group_for_all_tiers(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    main([])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "one group for all that fit: bfloat16 weights, 8-bit K/V"
    assert "Here that is bfloat16 weights and 8-bit K/V" in text
    main(["--size", "688*368"])
    assert "one group" not in capsys.readouterr().out
    main(["--json", "--gpus", "3"])
    together = json.loads(capsys.readouterr().out)["together"]
    assert together == {"weights": "fp8", "cache": "8-bit"}


def test_tiers_on_four_cards(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    for plan in plans(capsys, "4", "22.15"):
        (row,) = re.findall(rf"^\| {plan['name']} \| \d+\*.*$", text, re.MULTILINE)
        size, steps = f"{plan['width']} x {plan['height']}", plan["sample_steps"]
        assert f"| {size} | {plan['infer_frames']}, {steps} |" in row
        assert row.endswith(f"| {fullest_gib(plan)} GiB |"), row
