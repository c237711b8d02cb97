"""Locks on runs: advisory locks on one connection, taken and released in batches."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, cast

import asyncpg
from asyncpg import Connection

from durable_core import Batcher, Lease, LockLost, RunBusy, StoreError
from durable_core.store import Holder, to_the_end

from ._connections import Connections
from ._schema import lock_key

_TAKE_AND_GIVE: Final = """
select case when take then pg_try_advisory_lock(key) else pg_advisory_unlock(key) end
from unnest($1::bigint[], $2::boolean[]) as asked(key, take)
"""
_GIVE: Final = "select pg_advisory_unlock(key) from unnest($1::bigint[]) as asked(key)"
_COUNT: Final = """
select (select count(*) from pg_locks where not fastpath and mode <> 'SIReadLock'),
    current_setting('max_locks_per_transaction')::bigint
        * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)
"""
# All settings are local to the transaction with the locks, so that other clients of a pooler don't get them. The server ends the
# session half a minute after it last heard from this machine.
_BEGIN: Final = """
select pg_backend_pid(), count(done) from (
    select set_config(name, '0', true) from pg_settings
    where name in ('idle_in_transaction_session_timeout', 'statement_timeout', 'transaction_timeout')
    union all
    select set_config(name, value, true) from (values ('tcp_user_timeout', '30000'), ('tcp_keepalives_idle', '10'),
        ('tcp_keepalives_interval', '5'), ('tcp_keepalives_count', '4')) as own(name, value)
    union all
    select set_config('application_name',
        $1 || coalesce(' (' || nullif(current_setting('application_name'), '') || ')', ''), true)
) as settings(done)
"""
# The advisory locks held in this database, each with the server process that holds it.
_HELD: Final = """
    (select pid, (classid::bigint << 32) | objid::bigint from pg_locks where locktype = 'advisory' and objsubid = 1 and granted
        and database = (select oid from pg_database where datname = current_database())) as held(pid, key)"""

Change = tuple["HeldLock", bool]
"""A lock, and True to take it or False to release it."""


class Locks:
    """Session locks, taken inside one open transaction so that a pooler leaves us the session.

    The server would grant a session its own lock twice, so `_held` decides between runners of this store.
    """

    def __init__(self, connections: Connections) -> None:
        self._table: Final = connections.table.sql
        self._store: Final = str(connections)
        self._limits: Final = connections.limits
        self._holders: Final = Holders(connections)
        self._held: Final[dict[int, HeldLock]] = {}
        self._of_runs: Final[dict[str, HeldLock]] = {}
        self._submit: Final = Batcher(self._flush, size=lambda _: 8).submit
        self._turn: Final = asyncio.Lock()
        self._own: Final = connections.own(self._begin)
        self._pid = 0  # of the server's process; asked for, because asyncpg doesn't know it behind a pooler
        self._room = 0  # how many more locks we may take before we count the server's locks again
        self._watcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, run_id: str) -> AsyncIterator[Lease]:
        """Hold the run's lock for the length of the context."""
        lease = HeldLock(run_id, lock_key(self._table, run_id))
        if mine := self._held.get(lease.key):
            raise RunBusy(run_id, holder=mine.holder.name, since=mine.holder.since)
        self._held[lease.key] = self._of_runs[run_id] = lease
        try:
            await self._submit((lease, True))
            if lease.refusal is not None:
                raise lease.refusal
            if not lease.is_held:
                holder = await self._holders.get(lease.key) or Holder("a runner that was about to end", None)
                raise RunBusy(run_id, holder=holder.name, since=holder.since)
            yield lease
        finally:
            await self._give(lease)

    def holds(self, run_id: str) -> bool:
        """Return True if this store holds the run's lock."""
        lease = self._of_runs.get(run_id)
        return lease is not None and lease.is_held

    async def holder(self, run_id: str) -> Holder | None:
        """Return the run's holder, or None. Calls at the same time share a query."""
        key = lock_key(self._table, run_id)
        return self._held[key].holder if key in self._held else await self._holders.get(key)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        """Return the holder of each run that is held."""
        keys = {run_id: lock_key(self._table, run_id) for run_id in run_ids}
        others = [key for key in keys.values() if key not in self._held]
        found = dict(zip(others, await self._holders.find(others) if others else (), strict=True))
        holders = {run_id: self._held[key].holder if key in self._held else found.get(key) for run_id, key in keys.items()}
        return {run_id: holder for run_id, holder in holders.items() if holder}

    def close(self) -> None:
        """Stop managing the locks. They end with their connection."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _give(self, lease: HeldLock) -> None:
        try:
            with suppress(StoreError):  # the connection was lost, and the lock with it
                await self._submit((lease, False))
        except asyncio.CancelledError:
            # Repeat it in a task that can't be cancelled. Releasing a lock a second time does nothing.
            with suppress(StoreError):
                await to_the_end(self._submit((lease, False)))
            raise
        finally:
            lease.connection = None
            del self._held[lease.key], self._of_runs[lease.run_id]

    async def _flush(self, asked: Sequence[Change]) -> Sequence[None]:
        # Cancelling a statement would end the transaction, and lose every lock.
        await to_the_end(self._exchange(asked))
        return [None] * len(asked)

    async def _exchange(self, asked: Sequence[Change]) -> None:
        """Take and release locks in one statement. Set `refusal` on locks for which the server has no room."""
        takes = [lease for lease, take in asked if take]
        async with self._turn:
            if takes or any(lease.is_held for lease, _ in asked):
                async with self._own.use() as connection:
                    try:
                        if len(takes) > self._room:
                            await self._count(connection, takes)
                        self._room -= len(takes)
                        await self._send(connection, [each for each in asked if each[0].refusal is None])
                    except asyncpg.OutOfMemoryError as error:
                        await self._recover(connection, asked)
                        for lease in takes:
                            lease.refusal = self._refusal(lease, f"all locks of the server are in use ({error})")

    async def _send(self, connection: Connection, asked: Sequence[Change]) -> None:
        asked = [(lease, take) for lease, take in asked if take or lease.is_held]
        keys, takes = [lease.key for lease, _ in asked], [take for _, take in asked]
        rows = await connection.fetch(_TAKE_AND_GIVE, keys, takes, timeout=self._limits.statement)
        for (lease, take), (done,) in zip(asked, rows, strict=True):
            if done:
                # The connection itself: each step asks twice whether it is open, and the pool's proxy takes four times as long.
                lease.connection = cast("Any", connection)._con if take else None

    async def _count(self, connection: Connection, takes: Sequence[HeldLock]) -> None:
        """Count the server's locks, and refuse those of `takes` that exceed the half that stores may use."""
        ((used, total),) = await connection.fetch(_COUNT, timeout=self._limits.statement)
        free = max(total // 2 - used, 0)
        # Take an eighth of the rest without counting again. Other stores count and take locks, too.
        self._room = len(takes) + max(free - len(takes), 0) // 8
        for lease in takes[free:]:
            why = f"{used:,} of the server's {total:,} locks are in use, and half of them are left to its other clients"
            lease.refusal = self._refusal(lease, why)

    def _refusal(self, lease: HeldLock, why: str) -> StoreError:
        return StoreError(
            f"{self._store}: run {lease.run_id!r} can't be locked: {why}: work on fewer runs at once, or raise"
            " max_locks_per_transaction in the server's settings and restart it"
        )

    async def _recover(self, connection: Connection, asked: Sequence[Change]) -> None:
        """Begin a new transaction, and keep the locks held before: session locks outlive the failed transaction."""
        # Chained, so that a pooler can't give the session to others in between.
        await connection.execute("rollback and chain", timeout=self._limits.statement)
        await self._set(connection)
        await connection.execute(_GIVE, [lease.key for lease, _ in asked], timeout=self._limits.statement)

    async def _begin(self, connection: Connection) -> None:
        await connection.execute("begin isolation level read committed", timeout=self._limits.statement)
        await self._set(connection)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), name="durable-postgres-locks")

    async def _set(self, connection: Connection) -> None:
        me = f"pid {os.getpid()} on {socket.gethostname()}"
        self._room, self._pid = 0, await connection.fetchval(_BEGIN, me, timeout=self._limits.statement)

    async def _watch(self) -> None:
        """Check the connection from time to time, and write down since when locks are held."""
        while self._held:
            await asyncio.sleep(self._limits.ping)
            new = [lease for lease in self._held.values() if lease.is_held and not lease.is_noted]
            with suppress(StoreError, TimeoutError):  # the next round tries again
                if new:
                    async with asyncio.timeout(self._limits.statement):
                        await self._holders.note(self._pid, {lease.key: lease.holder.since for lease in new})
                for lease in new:
                    lease.is_noted = True
            with suppress(StoreError):
                async with self._turn, self._own.use() as connection:
                    self._room = 0  # other clients may have taken locks meanwhile
                    # A simple query: it also ends the last statement's portal, and its snapshot, which would hold back vacuum.
                    await connection.execute("select 1", timeout=self._limits.statement)
        self._own.close()


class HeldLock(Lease):
    """A run's lock. It ends with the connection that took it."""

    def __init__(self, run_id: str, key: int) -> None:
        self.run_id: Final = run_id
        self.key: Final = key
        self.holder: Final = Holder(f"a runner in this process (pid {os.getpid()})", datetime.now(UTC))
        self.connection: Connection | None = None
        self.refusal: StoreError | None = None
        self.is_noted = False

    @property
    def is_held(self) -> bool:
        """True while the connection that took the lock is open."""
        return self.connection is not None and not self.connection.is_closed()

    def check(self) -> None:
        if not self.is_held or _has_ended(self.connection):
            raise LockLost(
                f"the lock of run {self.run_id!r} was lost with its connection to PostgreSQL; another runner may hold it now"
            )


def _has_ended(connection: Connection | None) -> bool:
    """Return True if the server has ended the connection. Asks the socket: asyncpg may learn that a moment later."""
    if not hasattr(select, "poll"):  # on Windows
        return False
    sock = cast("Any", connection)._transport.get_extra_info("socket")
    if sock is None or (fd := sock.fileno()) < 0:  # asyncio has closed it, and is about to tell asyncpg
        return True
    poll = select.poll()
    poll.register(fd, getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


class Holders:
    """Finds the holder of a run's lock. The server knows the holder; a separate table says since when.

    A lock gets its row at the first ping after it was taken, so that short runs cost no write.
    """

    def __init__(self, connections: Connections) -> None:
        self._fetch: Final = partial(connections.fetch, within=connections.limits.statement)
        self.get: Final = Batcher(self.find, size=lambda _: 8).submit
        table = connections.table.locks
        self._forget: Final = (
            f"delete from {table} note where not exists (select from {_HELD} where held.pid = note.pid and held.key = note.key)"
        )
        self._note: Final = (
            f"insert into {table} (key, pid, since) select key, $1, since from unnest($2::bigint[], $3::timestamptz[])"
            " as new(key, since) on conflict (key) do update set pid = excluded.pid, since = excluded.since"
        )
        self._read: Final = f"""
            select key, coalesce(nullif(a.application_name, ''), 'the server''s process ' || held.pid), note.since
            from {_HELD} left join pg_stat_activity a using (pid) left join {table} note using (pid, key)
            where key = any($1::bigint[])"""

    async def find(self, keys: Sequence[int]) -> Sequence[Holder | None]:
        """Return the holder of each lock, or None if nobody holds it."""
        found = {key: Holder(name, since) for key, name, since in await self._fetch(self._read, keys)}
        return [found.get(key) for key in keys]

    async def note(self, pid: int, since: Mapping[int, datetime | None]) -> None:
        """Write down since when the server process `pid` holds these locks. Delete the rows of locks that nobody holds."""
        await self._fetch(self._forget)
        await self._fetch(self._note, pid, [*since], [*since.values()])
