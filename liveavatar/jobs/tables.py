"""The tables, and how a database is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from liveavatar.errors import JobError, StoreUnavailableError

METADATA = sa.MetaData()

ONLY_ROW = 1
"""Key of the row of a table that has one."""

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("tier", sa.String(40), nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("share_key", sa.String(16), nullable=False, index=True),
    sa.Column("share_token", sa.String(64), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False, default=""),
    sa.Column("frames", sa.Integer, nullable=False, default=0),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("take", sa.Integer, nullable=False, server_default="0"),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("faults", sa.Integer, nullable=False, server_default="0"),
    sa.Column("error", sa.Text),
    sa.Column("restart_note", sa.Text),
    sa.Column("fps", sa.Float(53)),
    sa.Column("first_frame_s", sa.Float(53)),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("started_at", sa.Float(53)),
    sa.Column("finished_at", sa.Float(53)),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("worker", sa.String(200), index=True),
    sa.Column("lease_until", sa.Float(53)),
    sa.Column("queue_order", sa.Float(53), nullable=False, server_default="0"),
    sa.Column("cost_s", sa.Float(53), nullable=False, server_default="0"),
    sa.Column("pixels", sa.Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("ix_jobs_owner_state", "owner", "state"),
    # The queue as a whole, with all that is summed up over it, and by tier; the last of a tier.
    sa.Index("ix_jobs_queue", "state", "queue_order", "number", "tier", "pixels", "cost_s"),
    sa.Index("ix_jobs_lane", "state", "tier", "queue_order", "number", "pixels"),
    sa.Index("ix_jobs_ended", "state", "tier", "number"),
    # A number is never given twice, not even that of the newest job after its deletion.
    sqlite_autoincrement=True,
)

WORKERS = sa.Table(
    "workers",
    METADATA,
    sa.Column("worker", sa.String(200), primary_key=True),
    sa.Column("updated_at", sa.Float(53), nullable=False),
    sa.Column("document", sa.JSON, nullable=False),
)

CEILINGS = sa.Table(
    "ceilings",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tier", sa.String(40), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since", sa.Float(53), nullable=False),
)

CLOCKS = sa.Table(
    "clocks",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Float(53), nullable=False),
    sa.Column("at", sa.Float(53), nullable=False),
)
"""The virtual clock of the queue, one row; see `fair_share.py`."""

SHARES = sa.Table(
    "shares",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("finish", sa.Float(53), nullable=False, index=True),
)
"""What owners were charged for, as far as it lies ahead of the virtual clock."""

_SQLITE_SETTINGS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # what a user was told is queued survives a power cut
    "PRAGMA busy_timeout=10000",
)


def open_database(url: str) -> sa.Engine:
    """Connect to a database.

    Raises:
        JobError: the URL is none, or its driver is not installed.
    """
    try:
        engine = sa.create_engine(url, pool_size=8, max_overflow=56)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, TypeError) as error:
        raise JobError(
            f"database: expected a URL such as sqlite:////var/lib/liveavatar/jobs.db: {error}"
        ) from None
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        sa.event.listen(engine, "handle_error", _give_up_read_only)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver's own habit of beginning transactions late would let two claims see one queue.
    connection.isolation_level = None
    cursor = connection.cursor()
    for setting in _SQLITE_SETTINGS:
        cursor.execute(setting)
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    reading = connection.get_execution_options().get("reading")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _give_up_read_only(context: sa.engine.ExceptionContext) -> None:
    """Drop all connections when one of them turns out to be for reading alone.

    SQLite opens a file that cannot be written at the time so, and never tries again.
    """
    if "readonly database" in str(context.original_exception):
        context.is_disconnect = True


@contextmanager
def available() -> Iterator[None]:
    """Tell of a database that cannot be had by StoreUnavailableError."""
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        what = f"the job database cannot be used now: {one_line(error)}"
        raise StoreUnavailableError(what) from None


def one_line(error: Exception) -> str:
    """What a database says, without its many lines of explanation."""
    return " ".join(str(error).split("\n")[0].split())
