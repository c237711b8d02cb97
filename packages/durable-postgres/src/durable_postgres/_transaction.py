"""A transaction that holds a step's own writes and its record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from asyncpg import Connection

from durable_core import StepRecord, StoreError

from ._appends import claim
from ._connections import Connections, drop, is_open
from ._rows import Statements
from .errors import ConnectionLost


class Transaction:
    """An open transaction: `connection` is asyncpg's, for your own SQL, and `append` claims the step's slot within it."""

    def __init__(
        self, connections: Connections, statements: Statements, holds: Callable[[str], bool], connection: Connection
    ) -> None:
        self.connection: Final = connection
        self._connections: Final = connections
        self._statements: Final = statements
        self._holds: Final = holds
        self._won = False

    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot as the transaction's last act; return the record that holds it.

        Waits for a rival that has claimed the slot and not committed yet. Unless the holder is `record` itself, the transaction
        is rolled back when its context ends, and so it is when this is never called.
        """
        if not self.connection.is_in_transaction():
            raise StoreError("the transaction was ended before its record was appended; leave commit and rollback to the runner")
        seconds = self._connections.limits.statement
        with self._connections.guard(self.connection):
            # Others wait for this claim: a process that stops dead between it and the commit must not hold them up for long.
            await self.connection.execute("set local idle_in_transaction_session_timeout = '10s'", timeout=seconds)
            (holder,) = await claim(self.connection, self._statements, [record], seconds, self._holds)
        self._won = holder is record
        return holder

    @classmethod
    @asynccontextmanager
    async def open(
        cls, connections: Connections, statements: Statements, holds: Callable[[str], bool]
    ) -> AsyncIterator[Transaction]:
        """Open a transaction; commit it at the end if its record won its slot, and else roll it back.

        When the connection is lost, or the commit fails, the error is one of those that `PostgresStore.is_retryable` knows.
        """
        connection = await connections.acquire()  # however long that takes: a thousand runs may be in the queue
        limits = connections.limits
        try:
            with connections.guard(connection):
                sql = connection.transaction()
            await connections.timed(connection, sql.start(), within=limits.statement)
            transaction = cls(connections, statements, holds, connection)
            try:
                yield transaction
            except Exception as error:
                if not is_open(connection):
                    raise ConnectionLost(f"{connections}: the connection was lost during a transaction") from error
                await connections.timed(connection, sql.rollback(), within=limits.statement)
                # Perhaps the error was that the server is a standby: the next connection may reach the primary.
                if await _is_read_only(connection, limits.statement):
                    drop(connection)
                raise
            end = sql.commit() if transaction._won else sql.rollback()
            await connections.timed(connection, end, within=limits.read)
        finally:
            await connections.release(connection)


async def _is_read_only(connection: Connection, seconds: float) -> bool:
    with suppress(Exception):
        return bool(await connection.fetchval("show transaction_read_only", timeout=seconds) == "on")
    return True
