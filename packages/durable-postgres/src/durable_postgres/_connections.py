"""The pool, opened at first use, and the connections that the store keeps out of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, cast

import asyncpg
import msgspec
from asyncpg import Connection, Pool

from durable_core import StoreError

from ._errors import AWAY, driver_errors, retry
from ._flows import fill
from ._options import LEAST_CONNECTIONS
from ._schema import Table
from .errors import ConnectionLost, RowRefused, TransactionConflict

_log: Final = logging.getLogger("durable_postgres")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds until the store gives up, and seconds between checks."""

    connect: float = 10.0
    turn: float = 60.0
    """To wait for a free connection of the pool."""
    statement: float = 10.0
    read: float = 60.0
    """For statements on a long log, and for commits, which also check deferred constraints."""
    close: float = 10.0
    ping: float = 5.0
    """Between checks of the connection with the locks, and of the one that listens."""
    probe: float = 5.0
    """To wait until the listening connection receives a token."""


class Connections:
    """The connections of a store: the caller's pool, or one made at first use. Prepares the table before it lends any."""

    def __init__(self, table: Table, limits: Limits, make: Callable[[], Pool], *, host: str = "", given: bool = False) -> None:
        self.table: Final = table
        self.limits: Final = limits
        self.is_given: Final = given
        self._make: Final = make
        self._host: Final = host
        self._pool: Pool | None = None
        self._opening: Final = asyncio.Lock()
        self._is_ready = False
        self._is_closed = False
        self._own: Final[list[OwnConnection]] = []

    def __str__(self) -> str:
        return f"PostgreSQL table {self.table.sql}{self._host and f' at {self._host}'}"

    async def fetch(self, query: str, *arguments: Any, within: float) -> list[Any]:
        """Run one statement on any connection, and return its rows. The statement may run twice."""

        async def once() -> list[Any]:
            async with self.borrow() as connection:
                return await connection.fetch(query, *arguments, timeout=within)

        return await retry(once)

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Connection]:
        """Take a connection for the length of the context. Turns the driver's errors into the store's."""
        connection = await self.acquire(within=self.limits.turn)
        try:
            with self.guard(connection):
                yield connection
        finally:
            await self.release(connection)

    async def acquire(self, *, within: float | None = None) -> Connection:
        """Take a connection out of the pool. Give it back with `release`, or drop it."""
        await self.ready()
        connection = await self._lend(within)
        if self._is_closed:
            drop(connection)
            raise closed(self)
        return connection

    async def ready(self) -> None:
        """Open the pool and prepare the table, once."""
        if not self._is_ready:
            await self._open()

    async def release(self, connection: Connection) -> None:
        """Reset a connection and give it back. Drop it if it is in a transaction or can't be reset."""
        if self._pool is None or not is_open(connection) or connection.is_in_transaction():
            drop(connection)  # without awaiting anything: the caller may have been cancelled
            return
        try:
            await self._pool.release(cast("Any", connection), timeout=self.limits.close)
        except Exception as error:
            drop(connection)
            _log.warning("%s: a connection was dropped, since it could not be reset: %r", self, error)

    @contextmanager
    def guard(self, connection: Connection) -> Iterator[None]:
        """Turn the driver's errors into the store's. Drop the connection if the error leaves its state in doubt."""
        try:
            with driver_errors(self):
                yield
        except (TransactionConflict, RowRefused):
            raise
        except BaseException as error:
            was_open = is_open(connection)
            drop(connection)
            # asyncpg raises this one where `close` came between two requests of a statement.
            if isinstance(error, AttributeError) and not was_open:
                raise ConnectionLost(f"{self}: the connection was dropped during a statement") from error
            raise

    async def timed(self, connection: Connection, work: Awaitable[None], *, within: float) -> None:
        """Await work that has no timeout in asyncpg, such as COMMIT. Drop the connection when the time is up."""
        with self.guard(connection):
            try:
                async with asyncio.timeout(within):
                    await work
            except TimeoutError as error:
                raise ConnectionLost(f"{self}: the server did not answer in time; it may have done the work or not") from error

    @property
    def can_spare_one(self) -> bool:
        """Return True if the pool has a connection more than the store needs. Call `ready` first."""
        return self._pool is not None and self._pool.get_max_size() > LEAST_CONNECTIONS

    def own(self, begin: Callable[[Connection], Awaitable[None]] | None = None) -> OwnConnection:
        """Make a connection that stays out of the pool. `begin` is called with each connection that it takes."""
        self._own.append(OwnConnection(self, begin))
        return self._own[-1]

    async def close(self) -> None:
        """Drop the connections kept out of the pool, and close the pool if it is ours. Cut connections that don't come back."""
        self._is_closed = True
        for own in self._own:
            own.close()
        pool, self._pool = self._pool, None
        if pool is not None and not self.is_given:
            try:
                await asyncio.wait_for(pool.close(), self.limits.close)
            except TimeoutError:
                pool.terminate()

    async def _lend(self, within: float | None) -> Connection:
        if (pool := self._pool) is None:
            raise closed(self)
        with driver_errors(self):
            try:
                # The pool returns a proxy with all methods of a connection.
                return cast("Connection", await pool.acquire(timeout=within))
            except TimeoutError as error:
                if within is None or pool.get_idle_size() or pool.get_size() < pool.get_max_size():
                    raise StoreError(f"{self}: the server did not answer in time; {AWAY}") from error
                raise StoreError(
                    f"{self}: none of the pool's {pool.get_max_size()} connections became free within {within:g} seconds; each"
                    " open scan and transaction holds one: close some, or allow more connections (pool_max in the URL)"
                ) from error

    async def _open(self) -> None:
        async with self._opening:
            if self._is_ready:
                return
            if self._is_closed:
                raise closed(self)
            self._pool = pool = self._make()
            if cast("Any", pool)._loop is not asyncio.get_running_loop():
                raise StoreError(f"{self} belongs to another event loop, that of its pool: give it a pool made on this loop")
            if pool.get_max_size() < LEAST_CONNECTIONS:
                raise StoreError(
                    f"{self}: the pool's max_size is {pool.get_max_size()}; the store needs at least {LEAST_CONNECTIONS}"
                    " connections: two for appends, one for locks, one for reading, and the rest for transactions"
                )
            try:
                await self._prepare(pool)
            except BaseException as error:
                if not self.is_given:
                    pool.terminate()
                if isinstance(error, ValueError):
                    # The driver's message could repeat a secret part of the URL.
                    expected = "expected postgresql://user:password@host:port/database?option=value"
                    raise StoreError(f"{self}: asyncpg can't read the URL; {expected}") from None
                raise
            self._is_ready = True

    async def _prepare(self, pool: Pool) -> None:
        with driver_errors(self):
            await cast("Any", pool)
        connection = await self._lend(self.limits.turn)
        try:
            await self.timed(connection, self.table.prepare(connection, fill), within=self.limits.turn)
        finally:
            await self.release(connection)


def closed(store: object) -> StoreError:
    return StoreError(f"{store}: the store is closed; use it inside `async with`")


class OwnConnection:
    """A connection kept out of the pool, because taking and resetting one for each statement would cost too much."""

    def __init__(self, connections: Connections, begin: Callable[[Connection], Awaitable[None]] | None) -> None:
        self._connections: Final = connections
        self._begin: Final = begin
        self._connection: Connection | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Lend the connection, to one caller at a time. If it was lost, take another from the pool first."""
        connection = self._connection
        if connection is None or not is_open(connection):
            # Known before it begins, so that `close` drops it then, too.
            self._connection = connection = await self._connections.acquire(within=self._connections.limits.turn)
            if self._begin:
                with self._connections.guard(connection):
                    await self._begin(connection)
        with self._connections.guard(connection):
            yield connection

    def close(self) -> None:
        """Drop the connection, even if it is in use."""
        if self._connection is not None:
            drop(self._connection)


def is_open(connection: Connection) -> bool:
    """Return True if the connection is open, as far as this end knows."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # it died, and the pool took it back
        return False


def drop(connection: Connection) -> None:
    """Close a connection at once. The pool makes another in its place."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()
