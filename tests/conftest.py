"""What every test may rely on: devices and programs a test needs are there, or it is skipped.

Set REQUIRE_GPUS to make a missing GPU fail the tests that need one. Set REQUIRE_BROWSER, or CI=true
as continuous integration does, to make a missing browser fail those that need one.
"""

import importlib.util
import os

import pytest

from tests.e2e.browser import CHROMIUM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (os.environ.get("REQUIRE_BROWSER") or os.environ.get("CI") == "true"):
        _skip([item for item in items if item.get_closest_marker("browser")], _missing_browser())
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not os.environ.get("REQUIRE_GPUS"):
        _skip(on_gpu, _missing_gpu())


def _skip(items: list[pytest.Item], missing: str) -> None:
    if missing:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=missing))


def _missing_browser() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return "" if CHROMIUM.is_file() else f"{CHROMIUM} is not installed"


def _missing_gpu() -> str:
    import torch  # here, since it takes seconds and few tests ask

    return "" if torch.cuda.is_available() else "no CUDA device"
