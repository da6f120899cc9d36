"""Databases for the tests of the store: SQLite, and a PostgreSQL of the tests' own.

Set REQUIRE_POSTGRES, or CI=true as continuous integration does, to make a missing PostgreSQL fail
the tests that need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from liveavatar.jobs.store import JobStore, sqlite_url
from liveavatar.jobs.tables import METADATA
from tests.unit.postgres_cluster import cluster, find_binaries


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    binaries = find_binaries()
    if binaries is None:
        missing = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
        if os.environ.get("REQUIRE_POSTGRES") or os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    with cluster(binaries) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "jobs.db")
    address: str = request.getfixturevalue("postgres_url")
    engine = sa.create_engine(address, poolclass=sa.NullPool)
    METADATA.drop_all(engine)
    return address


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    store = JobStore(url)
    yield store
    store.close()
