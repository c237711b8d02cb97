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

from ._errors import AWAY, explained
from ._limits import Limits
from ._options import EXPECTED, LEAST_CONNECTIONS
from ._schema import Table
from .errors import ConnectionLost, RowRefused, TransactionConflict

_log: Final = logging.getLogger("durable_postgres")


class Connections:
    """A pool that was given, or one of our own from a DSN; every connection it lends reaches a database with the table in it."""

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
        """Take a connection out of the pool; it goes back with `release`, or when it is terminated."""
        connection = await self._lent(self._pool or await self._open(), within)
        if self.closed:
            cut(connection)
            raise self._refusal()
        return connection

    async def _lent(self, pool: Pool, within: float | None) -> Connection:
        with explained(self):
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
        """Give a connection back, reset; one that can't be reset is cut, which is no error: the work on it is done."""
        await self._give_back(self._pool or self._given, connection)

    async def _give_back(self, pool: Pool | None, connection: Connection) -> None:
        if pool is None or not is_open(connection):
            cut(connection)
            return
        try:
            await pool.release(cast("Any", connection), timeout=self.limits.close)
        except Exception as error:
            cut(connection)
            _log.warning(
                "%s: a connection was dropped, since it could not be reset: %s", self, str(error) or type(error).__name__
            )

    @asynccontextmanager
    async def borrow(self, *, within: float | None = None) -> AsyncIterator[Connection]:
        """Take a connection for the length of the context, in which the driver's errors become the store's."""
        connection = await self.acquire(within=self.limits.turn if within is None else within)
        try:
            with self.checked(connection):
                yield connection
        finally:
            await self.release(connection)

    @contextmanager
    def checked(self, connection: Connection) -> Iterator[None]:
        """Turn the driver's errors into the store's, and cut a connection whose state they leave in doubt."""
        try:
            with explained(self):
                yield
        except (TransactionConflict, RowRefused):
            raise
        except BaseException:
            cut(connection)
            raise

    async def answered(self, connection: Connection, work: Awaitable[None], *, within: float) -> None:
        """Await what begins or ends a transaction, which the driver sets no limit to; without answer the connection is lost."""
        with self.checked(connection):
            try:
                async with asyncio.timeout(within):
                    await work
            except TimeoutError as error:
                raise ConnectionLost(f"{self}: no answer in time; whether the server did the work is not known") from error

    def _refusal(self) -> StoreError:
        return StoreError(f"{self}: the store is closed; use it inside `async with`")

    async def close(self) -> None:
        """Close the pool, if it is our own; connections that are still lent after a while are cut."""
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
            with explained(self):
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
        connection = await self._lent(pool, self.limits.turn)
        try:
            with explained(self):
                await self.table.prepare(connection, partial(self.answered, connection, within=self.limits.turn))
        except BaseException:
            cut(connection)
            raise
        finally:
            await self._give_back(pool, connection)


class Kept:
    """One connection that is kept out of the pool, for statements that must not pay for taking and resetting one."""

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._connection: Connection | None = None
        self._lent = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """Lend the connection, to one user at a time; after one that failed, the next gets another connection."""
        if self._connection is None or not is_open(self._connection):
            self._connection = await self._connections.acquire(within=self._connections.limits.turn)
        self._lent = True
        try:
            with self._connections.checked(self._connection):
                yield self._connection
        finally:
            self._lent = False

    async def close(self) -> None:
        """Give the connection back, or cut it, if work is under way on it that nobody waits for any more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._lent:
                cut(connection)
            await self._connections.release(connection)


def is_open(connection: Connection) -> bool:
    """Tell whether a connection is usable, as far as this end knows."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # it died, and the pool took it back
        return False


def cut(connection: Connection) -> None:
    """Close a connection at once; the pool makes another in its place."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()
