"""A transaction with a step's own writes and its record."""

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
    """An open transaction. `connection` is asyncpg's, for your own SQL; `append` claims the step's slot in the transaction."""

    def __init__(
        self, connections: Connections, statements: Statements, holds: Callable[[str], bool], connection: Connection
    ) -> None:
        self.connection: Final = connection
        self._connections: Final = connections
        self._statements: Final = statements
        self._holds: Final = holds
        self._won = False

    async def append(self, record: StepRecord) -> StepRecord:
        """Claim the record's slot, as the last statement of the transaction. Return the record that holds the slot.

        Waits for a rival that has claimed the slot and not committed yet. The transaction commits when its context ends if the
        holder is `record` itself. Otherwise, or if this is never called, it rolls back.
        """
        if not self.connection.is_in_transaction():
            raise StoreError("the transaction was ended before its record was appended; leave commit and rollback to the runner")
        seconds = self._connections.limits.statement
        with self._connections.guard(self.connection):
            # Others wait for this claim. If this process hangs before the commit, it must not hold them up for long.
            await self.connection.execute("set local idle_in_transaction_session_timeout = '10s'", timeout=seconds)
            (holder,) = await claim(self.connection, self._statements, [record], seconds, self._holds)
        self._won = holder is record
        return holder

    @classmethod
    @asynccontextmanager
    async def open(
        cls, connections: Connections, statements: Statements, holds: Callable[[str], bool]
    ) -> AsyncIterator[Transaction]:
        """Open a transaction. At the end, commit it if its record won its slot, and otherwise roll it back.

        If the connection is lost or the commit fails, raises an error that `PostgresStore.is_retryable` recognises.
        """
        connection = await connections.acquire()  # no time limit: a thousand runs may be in the queue
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
                # The server may be a standby. Then drop the connection, so that the next one may reach the primary.
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
