"""The store: one table, four methods, and the abilities that PostgreSQL adds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from types import TracebackType
from typing import ClassVar, Final, Self, TypeVar

from asyncpg import Connection, Pool

from durable_core import (
    Lease,
    OpenableStore,
    StepRecord,
    SupportsLock,
    SupportsRuns,
    SupportsScan,
    SupportsTransaction,
)

from ._appends import Appends
from ._connections import Connections
from ._errors import is_retryable, persistently
from ._limits import Limits
from ._locks import Locks
from ._options import parsed
from ._reads import Reads
from ._rows import Statements
from ._schema import Table
from ._transaction import Transaction

T = TypeVar("T")

_RUNS: Final = 1_000


class PostgresStore(OpenableStore, SupportsRuns, SupportsScan, SupportsLock, SupportsTransaction):
    """Keeps runs in one table of a PostgreSQL database, created at first use; `open_store("postgresql://…")` makes one.

    `pool` is an asyncpg pool of at least five connections, which the caller closes, after the store. An append is durable when
    its commit has returned, as the server is set. Raises `StoreError` for everything that the server or the connection refuses.
    """

    _limits: ClassVar[Limits] = Limits()

    def __init__(self, pool: Pool, *, schema: str = "durable", table: str = "steps") -> None:
        self._start(Connections(Table(schema, table), self._limits, pool=pool))

    @classmethod
    def from_url(cls, url: str) -> Self:
        dsn, options, place = parsed(url)
        table = Table(options.pop("schema", "durable"), options.pop("table", "steps"))
        self = cls.__new__(cls)
        self._start(Connections(table, self._limits, dsn=dsn, options=options, place=place))
        return self

    def _start(self, connections: Connections) -> None:
        self._connections = connections
        self._statements = Statements(connections.table)
        self._appends = Appends(connections, self._statements)
        self._reads = Reads(connections, self._statements)
        self._locks = Locks(connections)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._connections.table.sql}>"

    async def append(self, record: StepRecord) -> StepRecord:
        return await self._appends.writer(record.run_id).submit(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._reads.step(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._reads.run(run_id)

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        async with self._connections.borrow() as connection, aclosing(self._reads.pages(connection, run_id)) as pages:
            async for page in pages:
                for record in page:
                    yield record

    async def clear(self, run_id: str) -> None:
        async def delete(connection: Connection) -> None:
            await connection.execute(self._statements.clear, run_id, timeout=self._limits.read)

        await self._with_connection(delete)

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        last = ""
        while True:

            async def read(connection: Connection, last: str = last) -> Sequence[str]:
                rows = await connection.fetch(self._statements.runs, prefix, last, _RUNS, timeout=self._limits.read)
                return [run_id for (run_id,) in rows]

            found = await self._with_connection(read)
            for run_id in found:
                yield run_id
            if len(found) < _RUNS:
                return
            last = found[-1]

    def lock(self, run_id: str) -> AbstractAsyncContextManager[Lease]:
        """Hold the run's advisory lock, which goes with its connection: as the process dies, or when the server ends it.

        Two runs share a lock if 64 bits of a hash of their ids are equal: one of them then waits for the other for no reason.
        """
        return self._locks.hold(run_id)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on a connection of its own, at the isolation level that is the role's default.

        It is committed at the end of the context if `append` was called on it and won the slot, and else rolled back.
        """
        return Transaction.open(self._connections, self._statements)

    def is_retryable(self, error: BaseException) -> bool:
        """Tell whether `error` out of a transaction means: run all of it again.

        So do a serialisation failure (40001), a deadlock (40P01) and a lost connection, also as the cause of another exception.
        After a connection lost while committing, the second try finds the first one's record, if it was committed.
        """
        return is_retryable(error)

    async def __aenter__(self) -> Self:
        self._connections.reopen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._connections.shut()
        async with AsyncExitStack() as closing:  # the last one first, and a failure skips none
            for part in (self._connections, self._reads, self._appends, self._locks):
                closing.push_async_callback(part.close)

    async def _with_connection(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async def once() -> T:
            async with self._connections.borrow() as connection:
                return await work(connection)

        return await persistently(once)
