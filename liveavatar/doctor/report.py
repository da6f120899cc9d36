"""Findings as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from liveavatar.doctor.finding import Finding, Status

Groups = Mapping[str, Sequence[Finding]]

_COLOURS: Mapping[Status, int] = {"ok": 32, "warn": 33, "fail": 31, "skip": 90}
_NAME_WIDTH = 18


def count(groups: Groups, status: Status) -> int:
    """How many findings have this status."""
    return sum(finding.status == status for group in groups.values() for finding in group)


def as_text(groups: Groups, *, coloured: bool) -> str:
    """A heading per group, a line per finding, its cure below it, and a last line that sums up."""
    lines = []
    for title, findings in groups.items():
        if findings:
            lines += ["", title]
        for finding in findings:
            mark = f"{finding.status:<4}"
            if coloured:
                mark = f"\x1b[{_COLOURS[finding.status]}m{mark}\x1b[0m"
            name = f"{finding.name} ".ljust(_NAME_WIDTH)
            lines.append(f"  {mark}  {name}{finding.found}")
            if finding.cure:
                lines.append(f"{'':8}{'':<{_NAME_WIDTH}}-> {finding.cure}")
    failed, warned = count(groups, "fail"), count(groups, "warn")
    lines += ["", f"{failed} to fix, {warned} to think about" if failed or warned else "all fine"]
    return "\n".join(lines).lstrip("\n") + "\n"


def as_json(groups: Groups, seconds: float) -> str:
    """One object: `status` ("ok" or "fail"), `seconds`, and `findings` with their group."""
    findings = [
        {"group": title, **asdict(finding)} for title, group in groups.items() for finding in group
    ]
    status = "fail" if count(groups, "fail") else "ok"
    return json.dumps({"status": status, "seconds": round(seconds, 2), "findings": findings}) + "\n"
