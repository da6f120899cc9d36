"""Our network against tensors recorded from the reference network.

The recordings are not part of the repository. They are looked for in the folder that
LIVEAVATAR_FIXTURES names; without it, in `../shared/fixtures/reference` beside the checkout. Where
there is neither, the test is skipped, unless REQUIRE_FIXTURES is set.
"""

import json
import os
from pathlib import Path

import pytest

from liveavatar.parity.__main__ import main

VARIABLE = "LIVEAVATAR_FIXTURES"
BESIDE = Path(__file__).resolve().parents[3] / "shared/fixtures/reference"
FOLDER = Path(os.environ.get(VARIABLE) or BESIDE)
CASES = sorted(path.parent for path in FOLDER.rglob("fixture.json"))


def test_recorded_tensors_are_found() -> None:
    if CASES:
        return
    reason = f"no recorded tensors in {FOLDER}; {VARIABLE} names the folder that holds them"
    if os.environ.get("REQUIRE_FIXTURES") or os.environ.get(VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize("case", CASES, ids=[str(case.relative_to(FOLDER)) for case in CASES])
def test_network_agrees_with_the_reference(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(case), "--json"])
    printed = capsys.readouterr()
    checks = json.loads(printed.out)
    assert [check for check in checks if check["status"] == "FAIL"] == []
    assert any(check["status"] == "ok" for check in checks)
    assert status == 0, printed.err
