"""The tables: their names, their columns, and how they are created."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Final

from asyncpg import Connection

from durable_core import StoreError

_log: Final = logging.getLogger("durable_postgres")

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,56}")  # the name of the table of locks is six characters longer
LAYOUT: Final = 4
_FLOWS_SINCE: Final = 3
_MARK: Final = "durable-postgres layout "
# The n-th statement migrates from layout n to layout n + 1.
_MIGRATIONS: Final = (
    """
create table {table} (
    seq bigint generated always as identity,
    run_id text collate "C" not null,
    step_id text collate "C" not null,
    revision bigint not null,
    status text not null,
    kind text not null,
    name text not null,
    result json,
    error json,
    note json,
    until timestamptz,
    attempt bigint not null,
    started_at timestamptz not null,
    ended_at timestamptz not null,
    id text not null,
    fingerprint text,
    primary key (run_id, step_id, revision)
);
""",
    """
create unlogged table {locks} (
    key bigint primary key,
    pid integer not null,
    since timestamptz not null
);
""",
    """
create table {flows} (
    run_id text collate "C" primary key,
    revision bigint not null,
    name text not null,
    state text not null,
    started_at timestamptz not null
);
create index on {flows} (state, started_at, run_id);
create index on {flows} (left(name, 100), state, started_at, run_id);
""",
    """
create table {wakes} (
    token text collate "C" primary key,
    run_id text collate "C" not null,
    flow text collate "C" not null,
    at timestamptz not null,
    shows_at timestamptz not null
);
create index on {wakes} (flow, shows_at);
""",
)


class Table:
    """The tables of a store: the log, since when runs are locked, the states of flows, and wake-ups."""

    def __init__(self, schema: str, table: str) -> None:
        for name in (schema, table):
            if not _NAME.fullmatch(name):
                raise StoreError(
                    f"schema and table cannot be {name!r}: expected up to 57 letters, digits and underscores, but no digit first"
                )
        self.schema: Final = schema
        self.name: Final = table
        self.sql: Final = f'"{schema}"."{table}"'
        self.locks: Final = f'"{schema}"."{table}_locks"'
        self.flows: Final = f'"{schema}"."{table}_flows"'
        self.wakes: Final = f'"{schema}"."{table}_wakes"'
        self.channel: Final = f"durable_{lock_key(self.sql, 'watch') % 2**64:016x}"
        """The channel of LISTEN and NOTIFY. PostgreSQL allows at most 63 bytes."""

    def migration(self, layout: int) -> str:
        """Return the statements that migrate from `layout` to the present one."""
        names = {"table": self.sql, "locks": self.locks, "flows": self.flows, "wakes": self.wakes}
        steps = "".join(_MIGRATIONS[layout:]).format(**names)
        return f"{steps}comment on table {self.sql} is '{_MARK}{LAYOUT}';\n"

    async def prepare(self, connection: Connection, fill: Callable[[Connection, Table], Awaitable[None]]) -> None:
        """Create or migrate the tables if needed. Any number of processes may do this at once.

        `fill` fills the table of flows from an older log. After an error a transaction may be open, so drop the connection.
        """
        ((encoding, careless),) = await connection.fetch(
            "select current_setting('server_encoding'),"
            " 'off' in (current_setting('fsync'), current_setting('synchronous_commit'))"
        )
        if encoding != "UTF8":
            raise StoreError(f"the database's encoding is {encoding}; the store needs a database created with encoding 'UTF8'")
        if careless:
            _log.warning("fsync or synchronous_commit is off: a crash of the server can lose steps that have been recorded")
        if await self._layout(connection) == LAYOUT:
            return
        await connection.execute("begin isolation level read committed")
        # One lock for all tables of the schema, because this creates the schema, too.
        await connection.execute("select pg_advisory_xact_lock($1)", lock_key(f'"{self.schema}"', "migration"))
        layout = await self._layout(connection)
        if layout < LAYOUT:
            # `create schema if not exists` needs rights on the database even if the schema exists.
            if not await connection.fetchval("select to_regnamespace($1) is not null", f'"{self.schema}"'):
                await connection.execute(f'create schema "{self.schema}"')
            await connection.execute(self.migration(layout))
            if 0 < layout < _FLOWS_SINCE:
                await fill(connection, self)
        await connection.execute("commit")

    async def _layout(self, connection: Connection) -> int:
        # Not with `to_regclass`, which may not see a table that another session has just made.
        found = await connection.fetch(
            "select obj_description(c.oid, 'pg_class') from pg_class c join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname = $1 and c.relname = $2",
            *(self.schema, self.name),
        )
        if not found:
            return 0
        ((comment,),) = found
        mark, _, number = (comment or "").rpartition(" ")
        if f"{mark} " != _MARK or not number.isdecimal():
            raise StoreError(
                f"{self.sql} is not a table of this store: its comment is {comment!r}, expected '{_MARK}{LAYOUT}';"
                " name another one with the options schema and table"
            )
        if int(number) > LAYOUT:
            raise StoreError(
                f"{self.sql} has layout {number}, and this durable-postgres knows up to {LAYOUT}: upgrade durable-postgres"
            )
        return int(number)


def lock_key(owner: str, text: str) -> int:
    """Map `text` to one of the 2 ** 64 advisory locks of the database. Each owner gets another one."""
    digest = hashlib.blake2b(f"{owner}\0{text}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), signed=True)


def schema_sql(schema: str = "durable", table: str = "steps") -> str:
    """Return the SQL that creates the store's tables, for applying migrations yourself."""
    return f'create schema if not exists "{schema}";\n{Table(schema, table).migration(0)}'
