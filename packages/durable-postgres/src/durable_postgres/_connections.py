"""The pool, opened at first use, and the connections that the store keeps out of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Final, cast

import asyncpg
from asyncpg import Connection, Pool

from durable_core import StoreError

from ._errors import AWAY, driver_errors
from ._limits import Limits
from ._options import EXPECTED, LEAST_CONNECTIONS
from ._schema import Table
from .errors import ConnectionLost, RowRefused, TransactionConflict

_log: Final = logging.getLogger("durable_postgres")


class Connections:
    """A given pool, or one of our own from a DSN. Before it lends the first connection, it makes sure of the table."""

    def __init__(
        self,
        table: Table,
        limits: Limits,
        *,
        pool: Pool | None = None,
        dsn: str = "",
        options: dict[str, Any] | None = None,
        place: str = "",
    ) -> None:
        self.table: Final = table
        self.limits: Final = limits
        self._place: Final = place
        self._given: Final = pool
        self._dsn: Final = dsn
        self._options: Final = options or {}
        self._pool: Pool | None = None
        self._opening: Final = asyncio.Lock()
        self.closed = False
        """Whether no more connections are lent."""

    def __str__(self) -> str:
        return f"PostgreSQL table {self.table.sql}{self._place and f' at {self._place}'}"

    async def acquire(self, *, within: float | None = None) -> Connection:
        """Take a connection out of the pool; give it back with `release`, or drop it."""
        connection = await self._lend(self._pool or await self._open(), within)
        if self.closed:
            drop(connection)
            raise self._refusal()
        return connection

    async def _lend(self, pool: Pool, within: float | None) -> Connection:
        with driver_errors(self):
            try:
                # A proxy that has all of a connection's methods.
                return cast("Connection", await pool.acquire(timeout=within))
            except TimeoutError as error:
                if within is None or pool.get_idle_size() or pool.get_size() < pool.get_max_size():
                    raise StoreError(f"{self}: no answer in time; {AWAY}") from error
                raise StoreError(
                    f"{self}: none of the pool's {pool.get_max_size()} connections came free within {within:g} seconds; each scan"
                    " and transaction that is open holds one: close some, or have more of them (pool_max in the URL)"
                ) from error

    async def release(self, connection: Connection) -> None:
        """Give a connection back, reset; one that can't be reset is dropped without an error: its work is done."""
        await self._give_back(self._pool or self._given, connection)

    async def _give_back(self, pool: Pool | None, connection: Connection) -> None:
        if pool is None or not is_open(connection):
            drop(connection)
            return
        try:
            await pool.release(cast("Any", connection), timeout=self.limits.close)
        except Exception as error:
            drop(connection)
            _log.warning(
                "%s: a connection was dropped, since it could not be reset: %s", self, str(error) or type(error).__name__
            )

    @asynccontextmanager
    async def borrow(self, *, within: float | None = None) -> AsyncIterator[Connection]:
        """Take a connection for the length of the context, in which the driver's errors become the store's."""
        connection = await self.acquire(within=self.limits.turn if within is None else within)
        try:
            with self.guard(connection):
                yield connection
        finally:
            await self.release(connection)

    @contextmanager
    def guard(self, connection: Connection) -> Iterator[None]:
        """Turn the driver's errors into the store's, and drop a connection whose state is in doubt after them."""
        try:
            with driver_errors(self):
                yield
        except (TransactionConflict, RowRefused):
            raise
        except BaseException:
            drop(connection)
            raise

    async def timed(self, connection: Connection, work: Awaitable[None], *, within: float) -> None:
        """Await BEGIN, COMMIT or ROLLBACK, which have no timeout in asyncpg, and drop the connection when the time is over."""
        with self.guard(connection):
            try:
                async with asyncio.timeout(within):
                    await work
            except TimeoutError as error:
                raise ConnectionLost(f"{self}: no answer in time; whether the server did the work is not known") from error

    def _refusal(self) -> StoreError:
        return StoreError(f"{self}: the store is closed; use it inside `async with`")

    async def close(self) -> None:
        """Close the pool, if it is our own; connections that do not come back in time are cut."""
        pool, self._pool = self._pool, None
        if pool is not None and pool is not self._given:
            try:
                await asyncio.wait_for(pool.close(), self.limits.close)
            except TimeoutError:
                pool.terminate()

    async def _open(self) -> Pool:
        async with self._opening:
            if self.closed:
                raise self._refusal()
            if getattr(self._given, "_loop", here := asyncio.get_running_loop()) is not here:
                raise StoreError(f"{self} belongs to another event loop, the pool's: give it a client made on this loop")
            if self._pool is None:
                pool = self._given or await self._connect()
                try:
                    await self._prepare(pool)
                except BaseException:
                    if pool is not self._given:
                        pool.terminate()
                    raise
                self._pool = pool
            return self._pool

    async def _connect(self) -> Pool:
        options = {"pool_min": 0, "pool_max": 10, **self._options}
        if options["pool_min"] > options["pool_max"]:
            raise StoreError(f"pool_min is {options['pool_min']}, which is more than pool_max, {options['pool_max']}")
        passed = {name: options[name] for name in ("statement_cache_size", "target_session_attrs") if name in options}
        try:
            with driver_errors(self):
                pool: Pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=options["pool_min"],
                    max_size=options["pool_max"],
                    timeout=self.limits.connect,
                    **passed,
                )
                return pool
        except ValueError:
            # The driver's own words could repeat a part of the URL that is secret.
            raise StoreError(f"{self}: asyncpg can't read the URL; {EXPECTED}") from None

    async def _prepare(self, pool: Pool) -> None:
        if pool.get_max_size() < LEAST_CONNECTIONS:
            raise StoreError(
                f"{self}: the pool's max_size is {pool.get_max_size()}; the store needs {LEAST_CONNECTIONS} connections at least:"
                " two for appends, one for locks, one for reading, and others for transactions"
            )
        connection = await self._lend(pool, self.limits.turn)
        try:
            with driver_errors(self):
                await self.table.prepare(connection, partial(self.timed, connection, within=self.limits.turn))
        except BaseException:
            drop(connection)
            raise
        finally:
            await self._give_back(pool, connection)


class OwnConnection:
    """One connection kept out of the pool: taking and resetting one for each statement would cost too much."""

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._connection: Connection | None = None
        self._in_use = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Lend the connection, to one user at a time; after one that failed, the next gets another connection."""
        if self._connection is None or not is_open(self._connection):
            self._connection = await self._connections.acquire(within=self._connections.limits.turn)
        self._in_use = True
        try:
            with self._connections.guard(self._connection):
                yield self._connection
        finally:
            self._in_use = False

    async def close(self) -> None:
        """Give the connection back, or drop it if it is still at work."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._in_use:
                drop(connection)
            await self._connections.release(connection)


def is_open(connection: Connection) -> bool:
    """Return True if the connection is usable, as far as this end knows."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # it died, and the pool took it back
        return False


def drop(connection: Connection) -> None:
    """Close a connection at once; the pool makes another in its place."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()
