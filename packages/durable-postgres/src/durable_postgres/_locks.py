"""One runner at a time: advisory locks on one connection, taken and given in batches."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Final

import asyncpg
from asyncpg import Connection

from durable_core import Batcher, Lease, LockLost, RunBusy, StoreError
from durable_core.store import Holder, to_the_end

from ._connections import Connections, drop, is_open
from ._holders import Holders

_TAKE_AND_GIVE: Final = """
select case when take then pg_try_advisory_lock(key) else pg_advisory_unlock(key) end
from unnest($1::bigint[], $2::boolean[]) as asked(key, take)
"""
_GIVE: Final = "select pg_advisory_unlock(key) from unnest($1::bigint[]) as asked(key)"
_COUNT: Final = """
select (select count(*) from pg_locks where not fastpath and mode <> 'SIReadLock'), most,
    most * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)
from (select current_setting('max_locks_per_transaction')::bigint) as setting(most)
"""
_ADVICE: Final = "work on fewer runs at once, or raise max_locks_per_transaction in the server's settings and restart it"
# All settings are local to the transaction that holds the locks, so that a pooler's other clients see nothing of them.
# The server ends the session half a minute after it hears no more of this machine.
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


Asked = tuple["HeldLock", bool]  # to be taken or given


class Locks:
    """Session locks taken inside one open transaction, so that a pooler keeps the session ours.

    The server gives a session its own lock twice: among the runners of this store, a dictionary decides.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections: Final = connections
        self._limits: Final = connections.limits
        self._holders: Final = Holders(connections)
        self._held: Final[dict[int, HeldLock]] = {}
        self._submit: Final = Batcher(self._flush, size=lambda asked: 8).submit
        self._turn: Final = asyncio.Lock()
        self._connection: Connection | None = None
        self._pid = 0  # of the server's process, which a pooler hides
        self._room = 0  # how many more locks may be taken before the server's are counted again
        self._watcher: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def hold(self, run_id: str) -> AsyncIterator[Lease]:
        """Hold the run's lock for the length of the context."""
        lease = HeldLock(run_id, self._connections.table.lock_key(run_id))
        if mine := self._held.get(lease.key):
            raise RunBusy(run_id, holder=mine.holder.name, since=mine.since)
        self._held[lease.key] = lease
        try:
            await self._take(lease)
            yield lease
        finally:
            await self._give(lease)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        """Return who holds those of the runs that are held."""
        keys = {self._connections.table.lock_key(run_id): run_id for run_id in run_ids}
        mine = {key: self._held[key].holder for key in keys if key in self._held}
        others = [key for key in keys if key not in mine]
        found = {**mine, **(await self._holders.find(others) if others else {})}
        return {keys[key]: holder for key, holder in found.items()}

    async def close(self) -> None:
        """Give up every lock and the connection."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
        async with self._turn:
            self._disconnect()

    async def _take(self, lease: HeldLock) -> None:
        if (refusal := await self._submit((lease, True))) is not None:
            raise refusal
        if not lease.is_held:
            holder = await self._holders.get(lease.key)
            if holder is None:
                holder = Holder("a runner that was about to end", None)
            raise RunBusy(lease.run_id, holder=holder.name, since=holder.since)

    async def _give(self, lease: HeldLock) -> None:
        try:
            await self._submit((lease, False))
        except StoreError:
            pass  # the connection was cut, which gives it up just as well
        except asyncio.CancelledError:
            # Asked for once more, where no cancellation reaches it: giving a lock twice does nothing the second time.
            with suppress(StoreError):
                await to_the_end(self._submit((lease, False)))
            raise
        finally:
            lease.connection = None
            del self._held[lease.key]

    async def _flush(self, asked: Sequence[Asked]) -> Sequence[StoreError | None]:
        # A statement that is broken off would end the transaction and lose every lock.
        return await to_the_end(self._exchange(asked))

    async def _exchange(self, asked: Sequence[Asked]) -> Sequence[StoreError | None]:
        """Take and give locks in one statement; return for each None, or why the server has no room for it."""
        async with self._turn:
            connection = await self._connect() if any(take for _, take in asked) else self._connection
            if connection is None:
                return [None] * len(asked)
            refused: dict[HeldLock, StoreError] = {}
            with self._connections.guard(connection):
                try:
                    takes = [lease for lease, take in asked if take]
                    if len(takes) > self._room:
                        refused = await self._without_room(connection, takes)
                    await self._send(connection, [each for each in asked if each[0] not in refused])
                except asyncpg.OutOfMemoryError as error:
                    await self._recover(connection, asked)
                    text = f"{self._connections}: the run can't be locked, since all locks of the server are in use: {_ADVICE}"
                    refused = {lease: StoreError(f"{text} ({error})") for lease in takes}
        return [refused.get(lease) if take else None for lease, take in asked]

    async def _without_room(self, connection: Connection, takes: Sequence[HeldLock]) -> dict[HeldLock, StoreError]:
        """Count the server's locks, and return errors for those of `takes` that have no room in the half that stores may use."""
        ((used, most, total),) = await connection.fetch(_COUNT, timeout=self._limits.statement)
        free = max(total // 2 - used, 0)
        # An eighth of what is left may be taken without counting again: other stores count too, and take theirs.
        self._room = min(len(takes), free) + max((free - len(takes)) // 8, 0)
        text = f"{used:,} of the server's {total:,} locks are in use, and half of them are left to its other clients: {_ADVICE}"
        return {
            lease: StoreError(f"{self._connections}: run {lease.run_id!r} can't be locked: {text} (now {most})")
            for lease in takes[free:]
        }

    async def _send(self, connection: Connection, asked: Sequence[Asked]) -> None:
        asked = [(lease, take) for lease, take in asked if take or lease.is_held]
        if asked:
            keys, takes = [lease.key for lease, _ in asked], [take for _, take in asked]
            rows = await connection.fetch(_TAKE_AND_GIVE, keys, takes, timeout=self._limits.statement)
            for (lease, take), (done,) in zip(asked, rows, strict=True):
                if done:
                    lease.connection = connection if take else None
                self._room += (not take) - (take and done)

    async def _recover(self, connection: Connection, asked: Sequence[Asked]) -> None:
        """Go on with the locks that were held before; they outlive the transaction that failed."""
        # Chained, so that a pooler has no moment to give the session to others.
        await connection.execute("rollback and chain", timeout=self._limits.statement)
        await self._begin(connection)
        await connection.execute(_GIVE, [lease.key for lease, _ in asked], timeout=self._limits.statement)
        self._room = 0

    async def _connect(self) -> Connection:
        if self._connection is not None and is_open(self._connection):
            return self._connection
        connection = await self._connections.acquire(within=self._limits.turn)
        try:
            with self._connections.guard(connection):
                await connection.execute("begin isolation level read committed", timeout=self._limits.statement)
                await self._begin(connection)
        except BaseException:
            await self._connections.release(connection)
            raise
        self._connection, self._room = connection, 0
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch(), name="durable-postgres-locks")
        return connection

    async def _begin(self, connection: Connection) -> None:
        me = f"pid {os.getpid()} on {socket.gethostname()}"
        self._pid = await connection.fetchval(_BEGIN, me, timeout=self._limits.statement)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            drop(connection)

    async def _watch(self) -> None:
        """Ask from time to time whether the connection lives, and note since when locks are held."""
        while True:
            await asyncio.sleep(self._limits.ping)
            await self._holders.note(self._pid, {lease.key: lease.since for lease in self._held.values() if lease.is_held})
            async with self._turn:
                self._room = 0  # others may have taken it by now
                try:
                    if self._connection is None or not self._held or not is_open(self._connection):
                        raise ConnectionError
                    # A simple query: it also ends the portal of the statement before, whose snapshot would hold back vacuum.
                    await self._connection.execute("select 1", timeout=self._limits.statement)
                except Exception:
                    self._disconnect()
                    return


class HeldLock(Lease):
    """A run's lock, for as long as the connection that took it lives."""

    def __init__(self, run_id: str, key: int) -> None:
        self.run_id: Final = run_id
        self.key: Final = key
        self.since: Final = datetime.now(UTC)
        self.connection: Connection | None = None

    @property
    def is_held(self) -> bool:
        """The very connection that took the lock is there."""
        return self.connection is not None and is_open(self.connection)

    @property
    def holder(self) -> Holder:
        return Holder(f"a runner in this process (pid {os.getpid()})", self.since)

    def check(self) -> None:
        if not self.is_held:
            raise LockLost(
                f"the lock of run {self.run_id!r} was lost with its connection to PostgreSQL: another runner may hold it by now"
            )
