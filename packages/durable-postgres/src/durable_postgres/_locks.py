"""One runner at a time: advisory locks on one connection."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from asyncpg import Connection

from durable_core import Lease, LockLost, RunBusy
from durable_core.store import to_the_end

from ._connections import Connections, cut, is_open

_EPOCH: Final = datetime(2020, 1, 1, tzinfo=UTC)
# Beside each lock stands a shared one that nobody waits for: its numbers tell whose it is and since when.
_TAKE: Final = "select pg_try_advisory_lock($1) and pg_try_advisory_lock_shared($2, $3) is not null"
_GIVE: Final = "select pg_advisory_unlock($1), pg_advisory_unlock_shared($2, $3)"
_WHO: Final = """
select held.pid, a.application_name, stamp.objid
from pg_locks held
left join pg_stat_activity a on a.pid = held.pid
left join pg_locks stamp on stamp.pid = held.pid and stamp.database = held.database and stamp.locktype = 'advisory'
    and stamp.objsubid = 2 and stamp.classid = $2
where held.locktype = 'advisory' and held.objsubid = 1 and held.classid = $1 and held.objid = $2 and held.granted
    and held.database = (select oid from pg_database where datname = current_database())
limit 1
"""
# Local to the transaction that holds the locks, so that a pooler's other clients see nothing of it.
_BEGIN: Final = """
select set_config(name, '0', true) from pg_settings
where name in ('idle_in_transaction_session_timeout', 'statement_timeout', 'transaction_timeout')
union all
select set_config('application_name', $1 || coalesce(' (' || nullif(current_setting('application_name'), '') || ')', ''), true)
"""


class Locks:
    """Session locks taken inside one open transaction, so that a pooler keeps the session ours.

    The server gives a session its own lock twice: among the runners of this store, a dictionary decides.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._limits: Final = connections.limits
        self._held: Final[dict[int, HeldLock]] = {}
        self._turn: Final = asyncio.Lock()
        self._connection: Connection | None = None
        self._watcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, run_id: str) -> AsyncIterator[Lease]:
        """Hold the run's lock for the length of the context."""
        lease = HeldLock(run_id, self._connections.table.lock_key(run_id))
        if mine := self._held.get(lease.key):
            raise RunBusy(run_id, holder=f"a runner in this process (pid {os.getpid()})", since=mine.since)
        self._held[lease.key] = lease
        try:
            # A statement that is broken off would end the transaction and lose every lock.
            await to_the_end(self._take(lease))
            yield lease
        finally:
            await to_the_end(self._give(lease))

    async def close(self) -> None:
        """Give up every lock and the connection."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
        async with self._turn:
            await self._disconnect()

    async def _take(self, lease: HeldLock) -> None:
        async with self._turn:
            connection = await self._connect()
            with self._connections.checked(connection):
                if await connection.fetchval(_TAKE, lease.key, *lease.stamp, timeout=self._limits.statement):
                    lease.connection = connection
                    return
                who = await connection.fetchrow(_WHO, *lease.halves, timeout=self._limits.statement)
        raise _busy(lease.run_id, who)

    async def _give(self, lease: HeldLock) -> None:
        async with self._turn:
            del self._held[lease.key]
            connection, lease.connection = lease.connection, None
            if connection is None or not is_open(connection):
                return  # never taken, or gone with its connection
            try:
                with self._connections.checked(connection):
                    await connection.execute(_GIVE, lease.key, *lease.stamp, timeout=self._limits.statement)
            except Exception:
                cut(connection)  # which gives it up just as well

    async def _connect(self) -> Connection:
        if self._connection is not None and is_open(self._connection):
            return self._connection
        connection = await self._connections.acquire(within=self._limits.turn)
        try:
            with self._connections.checked(connection):
                await connection.execute("begin isolation level read committed", timeout=self._limits.statement)
                await connection.execute(_BEGIN, f"pid {os.getpid()} on {socket.gethostname()}", timeout=self._limits.statement)
        except BaseException:
            await self._connections.release(connection)
            raise
        self._connection = connection
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), name="durable-postgres-locks")
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            cut(connection)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._limits.ping)
            async with self._turn:
                if self._connection is None or not self._held or not is_open(self._connection):
                    await self._disconnect()
                    return
                try:
                    # A simple query: it also ends the portal of the statement before, whose snapshot would hold back vacuum.
                    await self._connection.execute("select 1", timeout=self._limits.statement)
                except Exception:
                    await self._disconnect()
                    return


class HeldLock(Lease):
    """A run's lock, for as long as the connection that took it lives."""

    def __init__(self, run_id: str, key: int) -> None:
        self.run_id: Final = run_id
        self.key: Final = key
        self.since: Final = datetime.now(UTC)
        self.connection: Connection | None = None

    @property
    def halves(self) -> tuple[int, int]:
        """The key as `pg_locks` shows it."""
        return (self.key >> 32) & 0xFFFFFFFF, self.key & 0xFFFFFFFF

    @property
    def stamp(self) -> tuple[int, int]:
        """The two numbers of the lock that tells since when this one is held."""
        low = self.halves[1]
        return low - (1 << 32 if low >= 1 << 31 else 0), int((self.since - _EPOCH).total_seconds())

    def check(self) -> None:
        if self.connection is None or not is_open(self.connection):
            raise LockLost(
                f"the lock of run {self.run_id!r} was lost with its connection to PostgreSQL: another runner may hold it by now"
            )


def _busy(run_id: str, who: Any) -> RunBusy:
    if who is None:
        return RunBusy(run_id, holder="a runner that was about to end", since=None)
    pid, application, stamp = who
    since = None if stamp is None else _EPOCH + timedelta(seconds=stamp)
    return RunBusy(run_id, holder=application or f"the server's process {pid}", since=since)
