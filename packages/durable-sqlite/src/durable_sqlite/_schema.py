"""The tables, and how they are created and checked."""

from __future__ import annotations

from collections.abc import Set
from contextlib import closing
from functools import cache
from sqlite3 import Connection, connect
from typing import Final

from durable_core import CorruptLog, StoreError

from ._errors import ADVICE, file_of
from ._writing import writing

LAYOUT: Final = 1
# The prefix leaves other names to the tables that users write to in `transact`. Times are ISO 8601 in UTC, and sort as text.
_TABLES: Final = (
    """
create table durable_steps (
    seq integer primary key,
    run_id text not null,
    step_id text not null,
    revision integer not null,
    status text not null,
    kind text not null,
    name text not null,
    result text,
    error text,
    note text,
    until text,
    attempt integer not null,
    started_at text not null,
    ended_at text not null,
    id text not null,
    fingerprint text,
    crc integer,
    unique (run_id, step_id, revision)
)""",
    "create index durable_steps_in_order on durable_steps (run_id, seq)",
    """
create table durable_flows (
    run_id text primary key,
    revision integer not null,
    name text not null,
    state text not null,
    started_at text not null
) without rowid""",
    "create index durable_flows_in_order on durable_flows (started_at, run_id)",
    "create index durable_flows_by_state on durable_flows (state, started_at, run_id)",
    "create index durable_flows_by_name on durable_flows (name, state, started_at, run_id)",
    """
create table durable_wakeups (
    token text primary key,
    run_id text not null,
    flow text not null,
    at text not null,
    shows_at text not null
) without rowid""",
    "create index durable_wakeups_in_order on durable_wakeups (flow, shows_at)",
    "create table durable_layout (version integer not null)",
    f"insert into durable_layout values ({LAYOUT})",
)

# For a table of an earlier version. That version may still write to it: its rows have null here, and are not checked.
_ADD_CHECKSUM: Final = "alter table durable_steps add column crc integer"
_COLUMNS: Final = """
    select tables.name, columns.name, columns.type from sqlite_master as tables, pragma_table_info(tables.name) as columns
    where tables.name in ('durable_steps', 'durable_flows', 'durable_wakeups', 'durable_layout')"""

Columns = Set[tuple[str, str, str]]
"""The table, name and type of each column."""


def prepare(connection: Connection) -> None:
    """Create the tables unless they exist. Any number of processes may do this at once."""
    if _layout(connection) == LAYOUT and _columns_of(connection) >= _columns():
        return
    with writing(connection):
        found = _columns_of(connection)
        if _layout(connection) != LAYOUT and not found:
            for statement in _TABLES:
                connection.execute(statement)
        elif found == {column for column in _columns() if column[1] != "crc"}:
            connection.execute(_ADD_CHECKSUM)
        elif missing := sorted(_columns() - found):  # with another type, a column would find other rows
            raise CorruptLog(f"{file_of(connection)}: its tables should have the columns {missing}; {ADVICE}")


@cache
def _columns() -> Columns:
    """Return the columns that the tables should have."""
    with closing(connect(":memory:")) as connection:
        for statement in _TABLES:
            connection.execute(statement)
        return _columns_of(connection)


def _columns_of(connection: Connection) -> Columns:
    return frozenset(connection.execute(_COLUMNS))


def _layout(connection: Connection) -> int:
    """Return the version of the tables, 0 if there are none."""
    if not connection.execute("select 1 from sqlite_master where name = 'durable_layout'").fetchone():
        return 0
    match connection.execute("select version from durable_layout").fetchall():
        case [(int(version),)]:
            pass
        case found:
            raise CorruptLog(f"{file_of(connection)} is damaged: it should say its layout once, by a number, and says {found!r}")
    if version != LAYOUT:
        raise StoreError(
            f"{file_of(connection)}: its tables have layout {version!r}, and this durable-sqlite knows up to {LAYOUT}:"
            " upgrade durable-sqlite"
        )
    return LAYOUT
