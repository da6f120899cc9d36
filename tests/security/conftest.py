"""One plain Gradio and one application of ours; both are attacked in the same run.

Ours lives as long as one file of tests: Gradio keeps its folder of uploads in the environment, so
that of two applications in one process only the later one takes files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.security.servers import InternalServer, Target, internal_server, plain_gradio
from tests.web.live_server import SETTINGS, Installation, serve
from webui.auth import read_accounts
from webui.server import Access
from webui.settings import Limits

# Small, so that little has to be sent to reach them.
LIMITS = Limits(portrait_bytes=1_000_000, speech_bytes=2_000_000, requests_per_second=2000)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with plain_gradio(tmp_path_factory.mktemp("plain")) as target:
        yield target


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    settings = replace(SETTINGS, limits=LIMITS)
    installation = Installation(tmp_path_factory.mktemp("ours"), settings=settings, with_page=True)
    with serve(installation):
        yield installation


@pytest.fixture(scope="module")
def ours(installation: Installation) -> Target:
    target = Target(installation.address, installation.data)
    target.learn()
    return target


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The application with a login."""
    access = Access(read_accounts("ann:secret", "test", b"k" * 32))
    settings = replace(SETTINGS, limits=LIMITS)
    data = tmp_path_factory.mktemp("locked")
    installation = Installation(data, settings=settings, access=access, with_page=True)
    with serve(installation):
        yield installation


@pytest.fixture(scope="session")
def internal() -> Iterator[InternalServer]:
    with internal_server() as server:
        yield server
