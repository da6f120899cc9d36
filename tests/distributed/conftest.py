"""A checkpoint and jobs for the worker groups of a file of tests."""

import multiprocessing.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from liveavatar.random_checkpoint import write_checkpoint
from tests.distributed.rendering import Studio


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where groups make their folders; short, as a socket's path has to be."""
    # Made now, or they would be made in here and go with it.
    tmp_path_factory.getbasetemp()
    multiprocessing.util.get_temp_dir()
    with (
        tempfile.TemporaryDirectory(prefix="groups-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(tempfile, "tempdir", name)
        yield Path(name)
