"""The PostgreSQL store: the four methods, and further abilities."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Final, Self

from asyncpg import Pool, create_pool

from durable_core import Lease, OpenableStore, StepRecord, SupportsLock, SupportsRuns, SupportsScan, SupportsTransaction
from durable_core.store import (
    Holder,
    Joined,
    SupportsConnection,
    SupportsFlows,
    SupportsHolder,
    SupportsPolling,
    SupportsWakeups,
    SupportsWatch,
    WakeUp,
    to_the_end,
)
from durable_core.stores.flows import FlowState
from durable_core.stores.loops import OneLoop

from ._appends import Writer
from ._connections import Connections, Limits, closed
from ._errors import is_retryable
from ._joined import JoinedTransaction
from ._locks import Locks
from ._options import parse_url
from ._reads import Reads
from ._rows import Statements
from ._schema import Table
from ._transaction import Transaction
from ._wakeups import Wakeups
from ._watches import Watches

_RUNS: Final = 1_000


class PostgresStore(
    OpenableStore,
    SupportsRuns,
    SupportsScan,
    SupportsLock,
    SupportsHolder,
    SupportsPolling,
    SupportsFlows,
    SupportsWakeups,
    SupportsWatch,
    SupportsTransaction,
    SupportsConnection,
):
    """Keeps runs in a table of a PostgreSQL database, created at first use. `open_store("postgresql://…")` makes such a store.

    `pool` is an asyncpg pool of at least five connections. Close it after the store. An append is durable when its commit has
    returned, unless the server's settings say otherwise. Raises `StoreError` for all errors of server and connection.
    """

    poll_seconds: float = 2.0
    _limits: ClassVar[Limits] = Limits()

    def __init__(self, pool: Pool, *, schema: str = "durable", table: str = "steps") -> None:
        self._start(partial(Connections, Table(schema, table), self._limits, lambda: pool, given=True))

    @classmethod
    def from_url(cls, url: str) -> Self:
        dsn, options, host = parse_url(url)
        table = Table(options.pop("schema", "durable"), options.pop("table", "steps"))
        self = cls.__new__(cls)
        make = partial(create_pool, dsn, timeout=cls._limits.connect, **options)
        self._start(partial(Connections, table, cls._limits, make, host=host))
        return self

    def _start(self, connect: Callable[[], Connections]) -> None:
        self._connect = connect
        self._name = str(connect())
        self._loop = OneLoop(self._name, given=connect().is_given)
        self._parts: Parts | None = None
        self._is_closed = False

    def _here(self) -> Parts:
        """Return the connections of the running loop, made at the first call. Every method calls this."""
        is_new = self._loop.enter()
        if self._is_closed:
            raise closed(self._name)
        if is_new or self._parts is None:
            self._parts = Parts(self._connect())
        return self._parts

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}>"

    async def append(self, record: StepRecord) -> StepRecord:
        writers = self._here().writers
        return await writers[hash(record.run_id) % len(writers)].submit(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._here().reads.step(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._here().reads.run(run_id)

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        parts = self._here()
        async with parts.connections.borrow() as connection, aclosing(parts.reads.pages(connection, run_id)) as pages:
            async for page in pages:
                for record in page:
                    yield record

    async def clear(self, run_id: str) -> None:
        parts = self._here()
        await parts.connections.fetch(parts.statements.clear, run_id, within=self._limits.read)

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        last = ""
        while True:
            parts = self._here()
            found = await parts.connections.fetch(parts.statements.runs, prefix, last, _RUNS, within=self._limits.read)
            for (last,) in found:
                yield last
            if len(found) < _RUNS:
                return

    def lock(self, run_id: str) -> AbstractAsyncContextManager[Lease]:
        """Hold the run's advisory lock. It ends with its connection: when the process dies, or when the server closes it.

        Two runs share a lock if 64 bits of a hash of their ids are equal. Then one of them waits for the other needlessly.
        """
        return self._here().locks.hold(run_id)

    async def holder(self, run_id: str) -> Holder | None:
        return await self._here().locks.holder(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        return await self._here().locks.holders(run_ids)

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        return await self._here().reads.newer(known)

    async def flows(
        self,
        prefix: str = "",
        *,
        names: Collection[str] | None = None,
        states: Collection[FlowState] | None = None,
        since: datetime | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 50,
    ) -> Sequence[StepRecord]:
        return await self._here().reads.flows(prefix, names, states, since, before, limit)

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return await self._here().wakeups.set_wakeup(run_id, flow, at)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return await self._here().wakeups.take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        await self._here().wakeups.clear_wakeups(wakeups)

    def watch(self, run_id: str) -> AsyncIterator[None]:
        """Listen for all watched runs on one connection of the pool, if the pool has six or more.

        It ends at once on a smaller pool, behind a pooler that doesn't forward notifications, and when the store is closed.
        """
        return self._here().watches.watch(run_id)

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on its own connection, at the role's default isolation level.

        The end of the context commits it if `append` was called and won the slot, and otherwise rolls it back.
        """
        parts = self._here()
        return Transaction.open(parts.connections, parts.statements, parts.locks.holds)

    def within(self, connection: Any) -> Joined:
        """Join the caller's transaction on an asyncpg connection, from a pool or not. Appended records commit with it.

        Raises `TypeError` for another driver's connection, and `StoreError` for a connection that is not in a transaction. After
        an error of the server the transaction must be rolled back, as after an error of the caller's own SQL.
        """
        parts = self._here()
        return JoinedTransaction(parts.connections, parts.statements, parts.locks.holds, connection)

    def is_retryable(self, error: BaseException) -> bool:
        """Return True if the whole transaction should run again after `error`.

        True for a serialisation failure (40001), a deadlock (40P01) and a lost connection, or for an exception that one of them
        caused. If the connection was lost during the commit, the second attempt finds the record if it was committed.
        """
        return is_retryable(error)

    async def __aenter__(self) -> Self:
        self._is_closed = False
        self._here()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        is_new = self._loop.enter()
        parts, self._parts, self._is_closed = self._parts, None, True
        if parts is not None and not is_new:
            await to_the_end(parts.close())


class Parts:
    """The state that belongs to one event loop: the connections and their users."""

    def __init__(self, connections: Connections) -> None:
        self.connections: Final = connections
        self.statements: Final = Statements(connections.table)
        self.locks: Final = Locks(connections)
        # With two writers, one prepares rows while the server inserts for the other.
        self.writers: Final = tuple(Writer(connections, self.statements, self.locks.holds) for _ in range(2))
        self.reads: Final = Reads(connections, self.statements)
        self.wakeups: Final = Wakeups(connections, self.statements)
        self.watches: Final = Watches(connections)
        # A loop that ends closes its asynchronous generators. This one closes the connections, if nobody has closed them before.
        self._guard: Final = self._closing()
        with suppress(StopIteration):
            self._guard.asend(None).send(None)

    async def close(self) -> None:
        self.locks.close()
        self.watches.close()
        await self.connections.close()

    async def _closing(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self.close()
