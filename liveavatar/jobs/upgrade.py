"""Make the tables that are missing, and bring those of an earlier version up to date."""

from __future__ import annotations

import sqlalchemy as sa

from liveavatar.jobs.costs import PLANNED_S
from liveavatar.jobs.tables import CLOCKS, JOBS, METADATA, ONLY_ROW

_LOCK = 0x11FEA7A2
"""A number by which PostgreSQL knows who makes tables."""


def make_tables(engine: sa.Engine) -> None:
    """Make the tables that are missing, and in older ones columns and indexes; no job is lost.

    Of processes that begin this at once, one does it and the others wait.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # SQLite's transactions wait for each other anyway
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        METADATA.create_all(connection)
        for table in METADATA.sorted_tables:
            added = _add_columns(connection, table)
            for index in table.indexes:
                index.create(connection, checkfirst=True)
            if JOBS.c.pixels.name in added:
                _estimate(connection)
        if not connection.execute(sa.select(CLOCKS.c.id)).first():
            connection.execute(CLOCKS.insert().values(id=ONLY_ROW, value=0.0, at=0.0))


def _add_columns(connection: sa.Connection, table: sa.Table) -> set[str]:
    there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    added = {column.name for column in table.columns} - there
    for name in sorted(added):
        kind = sa.schema.CreateColumn(table.columns[name]).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {kind}")
    return added


def _estimate(connection: sa.Connection) -> None:
    """Say of older jobs what they take; their order of 0 puts those that wait before newer ones."""
    pixels = JOBS.c.spec["width"].as_integer() * JOBS.c.spec["height"].as_integer()
    steps = JOBS.c.spec[("sampling", "num_steps")].as_integer()
    cost_s = PLANNED_S * JOBS.c.spec["total_frames"].as_integer() * pixels * steps
    connection.execute(JOBS.update().values(pixels=pixels, cost_s=cost_s))
