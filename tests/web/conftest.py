"""One running application for the tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.patience import PATIENCE_S
from tests.web.live_server import Installation, serve


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("data"))
    with serve(installation):
        yield installation


@pytest.fixture
def client(installation: Installation) -> Iterator[httpx.Client]:
    """A browser of its own: its cookie jar is empty."""
    with httpx.Client(base_url=installation.address, timeout=PATIENCE_S) as client:
        yield client
