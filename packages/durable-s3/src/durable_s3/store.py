"""The S3 store: one object for each entry, one conditional PUT for each append."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import chain
from types import TracebackType
from typing import Any, Final, Self

from durable_core.errors import CorruptLog, StoreError
from durable_core.record import StepRecord, check_id
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
    WakeUp,
    to_the_end,
)
from durable_core.stores.flows import FLOW, FlowState, has_ended
from durable_core.stores.lease import Leases
from durable_core.stores.loops import OneLoop

from . import _entry, _url
from ._bucket import Bucket
from ._connection import Connection
from ._entry import Entry, OrderClock
from ._flows import OPEN, OpenRuns
from ._keys import Keys, number
from ._lease import LEASE_SECONDS, RunLease, highest_of
from ._probe import HONOURED, refuse_careless
from ._reader import Reader, listed_but_missing, together
from ._wakeups import Wakeups

_LEAST_LEASE_SECONDS: Final = 1.0
_NOT_AT_ONCE: Final = ("GLACIER", "DEEP_ARCHIVE")
_log: Final = logging.getLogger("durable_s3")


class S3Store(
    OpenableStore, SupportsRuns, SupportsScan, SupportsLock, SupportsHolder, SupportsPolling, SupportsFlows, SupportsWakeups
):
    """Keeps runs in a bucket, under `prefix`. An append is durable once S3 has answered 200.

    `client` is a boto3 S3 client; the store doesn't close it. It handles as many requests at a time as it has connections, and
    should leave retries to the store: `Config(retries={"total_max_attempts": 1})`. `sse` and `kms_key_id` apply to all objects,
    `storage_class` to entries and snapshots. `lease` is the number of seconds after which the lock of a dead holder may be taken
    over. `probe=False` skips the check that the endpoint honours `If-None-Match`.
    """

    poll_seconds: float = 20.0
    flow_states: Collection[FlowState] | None = OPEN
    hides_wakeups: bool = False

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str = "",
        *,
        sse: str | None = None,
        kms_key_id: str | None = None,
        storage_class: str | None = None,
        lease: float = LEASE_SECONDS,
        probe: bool = True,
    ) -> None:
        if storage_class in _NOT_AT_ONCE:
            raise StoreError(f"objects of storage class {storage_class!r} can't be read immediately; choose another class")
        if lease < _LEAST_LEASE_SECONDS:
            raise StoreError(f"a lease of {lease:g} s is too short to be renewed in time; give at least {_LEAST_LEASE_SECONDS:g}")
        writes = {}
        if sse or kms_key_id:
            writes["ServerSideEncryption"] = sse or "aws:kms"
        if kms_key_id:
            writes["SSEKMSKeyId"] = kms_key_id
        self._connection: Final = client if isinstance(client, Connection) else _around(client)
        self._bucket: Final = Bucket(bucket, self._connection, writes)
        self._lease_bucket: Final = Bucket(bucket, self._connection, writes, for_leases=True)
        self._storage_class: Final = storage_class
        self._keys: Final = Keys(prefix)
        self._reader: Final = Reader(self._bucket, self._keys, storage_class)
        self._flows: Final = OpenRuns(self._bucket, self._keys, self._reader, self.get)
        self._wakeups: Final = Wakeups(self._bucket, self._keys)
        self._order: Final = OrderClock()
        self._leases: Final = Leases("durable-s3-leases")
        self._lease: Final = lease
        self.lease_seconds: float | None = lease
        self._probe = probe
        self._is_closed = False
        self._honoured = HONOURED
        self._loop: Final = OneLoop(type(self).__name__, given=False)  # boto3's clients belong to no loop
        self._probing = asyncio.Lock()

    @classmethod
    def from_url(cls, url: str) -> Self:
        place = _url.parse(url)
        connection = Connection(place.connect, threads=place.connections, owned=True)
        return cls(connection, place.bucket, place.prefix, **place.options)

    async def append(self, record: StepRecord) -> StepRecord:
        await self._ready()
        if record.step_id != FLOW:
            return await self._append(record)
        if not has_ended(record):
            await self._flows.add(record)
        holder = await self._append(record)
        if has_ended(holder):
            await self._flows.end(holder.run_id, holder.revision)
        return holder

    async def _append(self, record: StepRecord) -> StepRecord:
        key = self._keys.entry(record.run_id, record.step_id, record.revision)
        for _ in range(5):
            body = _entry.encode(record, self._order.next(record.run_id))
            if await self._bucket.create(key, body, storage_class=self._storage_class):
                return record
            held = await self._bucket.read(key)
            if held is not None:
                return self._seen(key, held.body)
        raise StoreError(f"{key!r} exists when it is written, but not when it is read; is the run being cleared?")

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        await self._ready()
        folder = self._keys.step(run_id, step_id)
        missing: Entry | None = None
        while objects := (await self._bucket.first(folder)).objects:
            newest = Entry(objects[0].key, objects[0].etag)
            content = await self._bucket.read(newest.key)
            if content is not None:
                return self._seen(newest.key, content.body)
            if newest == missing:
                raise listed_but_missing(self._bucket, newest)
            missing = newest  # if it was cleared since, the next LIST won't have it
        return None

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        await self._ready()
        entries, highest = await self._reader.read(run_id)
        self._order.saw(run_id, highest)
        return entries

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        await self._ready()
        async for record, order in self._reader.scan(run_id):
            self._order.saw(run_id, order)
            yield record

    async def clear(self, run_id: str) -> None:
        await self._ready()
        marks = await self._flows.of_run(run_id)
        snapshot = self._keys.snapshot(run_id)
        newest_first = await self._reader.removable(run_id)
        await self._bucket.delete([snapshot])
        if newest_first:
            await self._bucket.delete(newest_first)
            await self._bucket.delete([snapshot])  # a reader may have written another meanwhile
        await self._flows.remove(run_id, marks)

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        self._enter()
        folders = self._bucket.pages(self._keys.runs(prefix), delimiter="/")
        async for page in folders:
            for folder in page.folders:
                try:
                    run_id = self._keys.run_id(folder) or await self._reader.run_id(folder)
                except (ValueError, CorruptLog) as error:
                    _log.warning(
                        "%r in bucket %s is not the folder of a run, and is passed over: %s", folder, self._bucket.name, error
                    )
                    continue
                if run_id is not None and run_id.startswith(prefix):
                    yield run_id

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        check_id("run_id", run_id)
        await self._ready()
        seconds = self._lease
        requests = RunLease(self._lease_bucket, self._keys, run_id, seconds, self._leases.clock)
        # Each renewal is a paid request. A third of the lease is left for failed ones.
        async with self._leases.hold(run_id, requests, seconds=seconds, every=seconds * 2 / 3) as lease:
            yield lease

    async def holder(self, run_id: str) -> Holder | None:
        return (await self.holders([run_id])).get(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        await self._ready()
        runs = [*run_ids]
        found = await together(highest_of(self._bucket, self._keys, run_id) for run_id in runs)
        return {run_id: holder for run_id, (_, holder) in zip(runs, found, strict=True) if holder}

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        await self._ready()
        runs: dict[str, dict[str, int]] = {}
        for run_id, step_id, revision in known:
            steps = runs.setdefault(run_id, {})
            steps[step_id] = min(revision, steps.get(step_id, revision))
        return [*chain.from_iterable(await together(self._newer(run_id, steps) for run_id, steps in runs.items()))]

    async def _newer(self, run_id: str, steps: Mapping[str, int]) -> Sequence[StepRecord]:
        newest = await self._reader.newest(run_id, steps)
        keys = [at.key for step_id, at in newest if number(at.key) > steps[step_id]]
        contents = await together(map(self._bucket.read, keys))
        # Entries cleared since have no content.
        return [self._seen(key, content.body) for key, content in zip(keys, contents, strict=True) if content]

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
        """Return runs that have not ended, as the protocol says: one LIST for each 1,000 marks, two requests for each run."""
        await self._ready()
        return await self._flows.find(prefix, names, states, since, before, limit)

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        check_id("run_id", run_id)
        await self._ready()
        return await self._wakeups.set(run_id, flow, at)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        """Return due wake-ups, as the protocol says, and hide them only from this store: one LIST for each flow."""
        await self._ready()
        return await self._wakeups.take(flows, limit, visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        await self._ready()
        await self._wakeups.clear(wakeups)

    async def __aenter__(self) -> Self:
        self._is_closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await to_the_end(self._close())

    async def _close(self) -> None:
        self._loop.enter()
        self._loop.leave()
        self._is_closed = True
        await self._leases.close()
        await self._connection.close()

    def __repr__(self) -> str:
        return f"<S3Store s3://{self._bucket.name}/{self._keys.root}>"

    def _seen(self, key: str, body: bytes) -> StepRecord:
        head = _entry.head(body, key)
        self._order.saw(head.run_id, head.order)
        return StepRecord.from_json(body, where=f"the object {key!r}")

    def _enter(self) -> None:
        if self._is_closed:  # nobody would end the threads and close the client that a request opens
            raise StoreError(f"{self!r} is closed: use it inside `async with`, or make another one")
        if self._loop.enter():
            self._probing = asyncio.Lock()

    async def _ready(self) -> None:
        self._enter()
        if self._probe:
            async with self._probing:
                if self._probe:
                    await refuse_careless(self._bucket, self._keys.probe, self._honoured)
                    self._probe = False


def _around(client: Any) -> Connection:
    threads = int(client.meta.config.max_pool_connections)
    return Connection(lambda: client, threads=threads, owned=False)
