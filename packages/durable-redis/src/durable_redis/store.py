"""The Redis store. Each run is one hash, and each append is one call of a script."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self

from redis.asyncio import Redis, RedisCluster

from durable_core.errors import StoreError
from durable_core.record import StepRecord
from durable_core.store import (
    Holder,
    Lease,
    OpenableStore,
    SupportsFlows,
    SupportsHolder,
    SupportsLock,
    SupportsPolling,
    SupportsRuns,
    SupportsScan,
    SupportsWakeups,
    SupportsWatch,
    WakeUp,
    to_the_end,
)
from durable_core.stores.flows import FLOW, FlowState
from durable_core.stores.lease import Leases
from durable_core.stores.lines import RecordLines
from durable_core.stores.loops import OneLoop
from durable_core.stores.urls import StoreURL

from ._another import another
from ._copies import Copies
from ._flows import FlowIndex
from ._keys import Keys
from ._lease import RunLease, holder_in
from ._scripts import APPEND, CLEAR, HELD, NEWER, READ
from ._server import Server
from ._url import parse
from ._wakeups import Wakeups

Page = list[bytes]
_PAGE_BYTES: Final = 128 * 1024
_READS: Final = 5
_SHORTEST_PAUSE: Final = 0.02
_log: Final = logging.getLogger("durable_redis")


class RedisStore(
    OpenableStore,
    SupportsRuns,
    SupportsScan,
    SupportsLock,
    SupportsHolder,
    SupportsPolling,
    SupportsFlows,
    SupportsWakeups,
    SupportsWatch,
):
    """Keeps runs in Redis 7 or later, or in Valkey, with a client of `redis.asyncio` for a single server, Sentinel or a cluster.

    `ttl` is the number of seconds that a run is kept after its last append; a run that waits, or whose lock is held, doesn't
    expire. With `wait=(replicas, ms)` or `waitaof=(local, replicas, ms)`, an append returns once that many copies exist. If they
    don't exist within that time, it raises `StoreError`, and the record may be stored or not. `lease` is the number of seconds
    after which the lock of a killed holder is free. `max_connections` limits the calls in flight, and so the connections in use.
    A client of your own needs a `socket_timeout` longer than these waits. The store doesn't close it.
    """

    poll_seconds: float = 2.0

    def __init__(
        self,
        client: Redis | RedisCluster,
        *,
        prefix: str = "durable",
        ttl: float | None = None,
        wait: tuple[int, int] | None = None,
        waitaof: tuple[int, int, int] | None = None,
        lease: float = 15.0,
        max_connections: int | None = 10,
    ) -> None:
        self._client = client
        self._connect: Callable[[], Redis | RedisCluster] | None = None
        """Makes a client; None if the caller gave one."""
        self._keys: Final = Keys(prefix)
        self._copies: Final = Copies(wait, waitaof)
        self._touch: Final = int(bool(self._copies))
        self._options: Final = f"{self._touch}\x1f{'' if ttl is None else max(1, int(ttl * 1000))}"
        self._flows: Final = FlowIndex(self._serving, self._keys, self._touch)
        self._wakeups: Final = Wakeups(self._serving, self._keys)
        self._lease: Final = lease
        self.lease_seconds: float | None = lease
        self._ttl: Final = ttl
        self._limit: Final = max_connections
        self._loop = OneLoop(type(self).__name__, given=True)
        self._server = self._new_server()
        self._is_closed = False
        self._leases: Final = Leases("durable-redis-leases")
        self._held: Final[set[str]] = set()
        """The runs that this store holds locks of."""
        self._locks: Server | None = None
        """The server for the thread that renews leases, with a client of its own."""

    @classmethod
    def from_url(cls, url: str) -> Self:
        connect, options = parse(url)
        try:
            store = cls(connect(), **options)
        except ValueError as error:
            raise StoreError(f"{StoreURL(url)} is not a URL that redis-py accepts: {error}") from None
        store._connect = connect
        store._loop = OneLoop(cls.__name__, given=False)
        store._server = store._new_server()
        return store

    async def append(self, record: StepRecord) -> StepRecord:
        if record.step_id != FLOW:
            return await self._append(record)
        token = await self._flows.add(record)
        holder = await self._append(record)
        await self._flows.settle(record, token, won=holder.id == record.id)
        return holder

    async def _append(self, record: StepRecord) -> StepRecord:
        key = self._keys.log(record.run_id)
        told = record.run_id not in self._held or (record.step_id == FLOW and record.status in ("success", "failure"))
        head = f"{record.revision}\x1f{record.status == 'waiting':d}\x1f{told:d}\x1f{self._options}\x1f{record.step_id}"
        holder = await self._serving().submit(APPEND, (key, record.to_json(), head))
        return StepRecord.from_json(holder, where=f"step {record.step_id!r} in {key}") if holder else record

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return next(iter(await self._newer([(run_id, step_id, -1)])), None)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        for _ in range(_READS - 1):
            with suppress(_Rewritten):
                return await self._read(run_id)
        return await self._read(run_id)

    async def _read(self, run_id: str) -> Sequence[StepRecord]:
        return _records(self._keys.log(run_id), [line async for page in self._pages(run_id) for line in page])

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        number = 0
        async for page in self._pages(run_id):
            for record in _records(self._keys.log(run_id), page, before=number):
                yield record
            number += len(page)

    async def clear(self, run_id: str) -> None:
        # Read the entries first: those that are added after the clear belong to a new log.
        entries = await self._flows.of_run(run_id)
        await self._serving().ask(CLEAR, [(self._keys.log(run_id), self._touch)])
        await self._flows.drop(entries)

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        seen: set[str] = set()
        async for key in self._serving().keys(self._keys.pattern(prefix)):
            run_id = self._keys.run_id(key)
            if run_id is None:
                _log.warning("the key %r does not belong to a run, and is passed over", key)
            elif run_id not in seen:
                seen.add(run_id)
                yield run_id

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        await self._serving().reach()  # if this fails, no lock was taken
        if self._locks is None or self._locks.pid != os.getpid():
            self._locks = Server(self._connect() if self._connect else another(self._client), copies=self._copies)
        keys = {"lock": self._keys.lock(run_id), "log": self._keys.log(run_id)}
        requests = RunLease(self._locks, run_id, **keys, seconds=self._lease, clock=self._leases.clock)
        # Renewals also keep the log from expiring, so renew often enough for its `ttl`.
        every = max(min(self._lease, self._ttl or self._lease) / 3, _SHORTEST_PAUSE)
        async with self._leases.hold(run_id, requests, seconds=self._lease, every=every) as lease:
            self._held.add(run_id)
            try:
                yield lease
            finally:
                self._held.discard(run_id)

    async def holder(self, run_id: str) -> Holder | None:
        return (await self.holders([run_id])).get(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        values = await self._serving().ask(HELD, [(self._keys.lock(run_id),) for run_id in run_ids], confirm=False)
        held = {run_id: holder_in(value) for run_id, value in zip(run_ids, values, strict=True) if value is not None}
        return {run_id: holder for run_id, holder in held.items() if holder is not None}

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        found = await self._newer(known, confirm=False)
        return await self._newer(known) if found and self._copies else found

    async def _newer(self, known: Sequence[tuple[str, str, int]], *, confirm: bool = True) -> Sequence[StepRecord]:
        looks = [(self._keys.log(run_id), step_id, revision, self._touch * confirm) for run_id, step_id, revision in known]
        lines = await self._serving().ask(NEWER, looks, confirm=confirm)
        return [
            StepRecord.from_json(line, where=f"step {step_id!r} in {key}")
            for (key, step_id, *_), line in zip(looks, lines, strict=True)
            if line is not None
        ]

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
        await self._flows.fill(self.runs)
        return await self._flows.find(prefix, names, states, since, before, limit)

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return await self._wakeups.set(run_id, flow, at)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return await self._wakeups.take(flows, limit, visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        await self._wakeups.clear(wakeups)

    def watch(self, run_id: str) -> AsyncIterator[None]:
        return self._serving().watches.watch(self._keys.log(run_id))

    async def __aenter__(self) -> Self:
        self._is_closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await to_the_end(self._close())

    async def _close(self) -> None:
        if self._connect is not None and not self._is_closed:
            self._serving()
        self._is_closed = True
        locks, self._locks = self._locks, None
        await self._leases.close(locks.close if locks else None)
        await self._server.watches.end()
        if self._connect is not None:
            self._loop.leave()
            await self._server.close()

    def _new_server(self) -> Server:
        expires, holds = self._ttl is not None, self._connect is not None
        return Server(self._client, copies=self._copies, limit=self._limit, expires=expires, holds=holds)

    def _serving(self) -> Server:
        """Return the server. On another event loop than before, make a new client first."""
        if self._is_closed:  # nobody would close what this connects
            raise StoreError(f"this {type(self).__name__} is closed: use it inside `async with`, or make another one")
        if self._loop.enter() and self._connect is not None:
            self._client = self._connect()
            self._server = self._new_server()
        return self._server

    async def _pages(self, run_id: str) -> AsyncIterator[Page]:
        """Read the records that exist when the first page is read. The first page waits for their copies."""
        key = self._keys.log(run_id)
        server = self._serving()
        ((log, count, lines),) = await server.ask(READ, [(key, 1, _PAGE_BYTES, "", self._touch)])
        done = 0
        while done < count:
            page = lines.split(b"\n")[: count - done]
            yield page
            done += len(page)
            if done < count:
                item = (key, done + 1, _PAGE_BYTES, log, 0)
                ((same, _, lines),) = await server.ask(READ, [item], confirm=False)
                if same != log:
                    raise _Rewritten(f"run {run_id!r} was cleared while it was read; read it again")


class _Rewritten(StoreError):
    """The log was cleared between two pages, and may have been begun again."""


def _records(key: str, lines: Sequence[bytes], *, before: int = 0) -> RecordLines:
    return RecordLines(lines, where=lambda number: f"field {before + number} of {key}")
