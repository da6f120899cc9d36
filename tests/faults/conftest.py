"""One application for all faults, and a table of what they came to.

The short form runs with the other tests; FAULTS=long adds every fault in every state.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.suite import Installation, table


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("FAULTS") == "long":
        return
    for item in items:
        if item.get_closest_marker("long_faults"):
            item.add_marker(pytest.mark.skip(reason="only with FAULTS=long"))


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """A running application and the video it makes when nothing goes wrong."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as name,
        Installation(Path(name)) as installation,
    ):
        yield installation


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # By way of the reports, since the tests may have run in processes of their own.
    rows = [
        [str(value) for _, value in report.user_properties]
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if report.when == "call" and "/faults/" in report.nodeid and report.user_properties
    ]
    if rows:
        terminalreporter.write_sep("-", "faults")
        terminalreporter.write_line(table(rows))
