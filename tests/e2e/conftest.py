"""For all tests here: one tiny checkpoint, one finished video, the command line, one Chromium."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from liveavatar.random_checkpoint import write_checkpoint
from tests.e2e.browser import chromium
from tests.e2e.command import SCRIPT, arguments, run, start
from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="session")
def cli() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inference_tpp", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["inference_tpp"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "out.mp4"
    result = run(arguments(tiny, path, enable_online_decode=True))
    assert result.returncode == 0, result.stderr
    assert "96 frames, 3.84 s" in result.stderr.splitlines()[-1]
    assert "peak memory" in result.stderr.splitlines()[-1]
    return path


@pytest.fixture
def launch(tiny: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command in the background; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(save_file: Path, **changed: object) -> subprocess.Popen[str]:
        started.append(start(tiny, save_file, **changed))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that nobody used before."""
    context = browser.new_context(locale="en-US", viewport={"width": 1366, "height": 900})
    yield context
    context.close()


@pytest.fixture(scope="module")
def installation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Installation:
    """The page over a group that draws, at the `PACE` of the file of tests."""
    pace = request.module.PACE
    return Installation(tmp_path_factory.mktemp("page"), pace=pace, with_page=True)


@pytest.fixture(scope="module")
def address(installation: Installation) -> Iterator[str]:
    with serve(installation) as address:
        yield address
