"""A checkpoint and jobs for the worker groups of a file of tests."""

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
