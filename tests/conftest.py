"""What every test may rely on: devices and programs a test needs are there, or it is skipped.

Set REQUIRE_BROWSER, or CI=true as continuous integration does, to make a missing browser fail the
tests that need one.
"""

import importlib.util
import os

import pytest

from tests.e2e.browser import CHROMIUM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("REQUIRE_BROWSER") or os.environ.get("CI") == "true":
        return
    missing = None
    if importlib.util.find_spec("playwright") is None:
        missing = "playwright is not installed"
    elif not CHROMIUM.is_file():
        missing = f"{CHROMIUM} is not installed"
    if missing:
        for item in items:
            if "browser" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=missing))
