"""The store: one SQLite file, the four methods, and further abilities."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex
from sqlite3 import Connection
from types import TracebackType
from typing import Final, Self

from durable_core import (
    Batcher,
    Lease,
    LockLost,
    OpenableStore,
    RunBusy,
    StepRecord,
    StoreError,
    StoreURL,
    SupportsLock,
    SupportsRuns,
    SupportsScan,
)
from durable_core.clock import Clock, SystemClock
from durable_core.store import (
    Holder,
    SupportsFlows,
    SupportsHolder,
    SupportsPolling,
    SupportsTransact,
    SupportsWakeups,
    WakeUp,
    to_the_end,
)
from durable_core.stores.filelock import RUN_FILES, Locks, RunLock, Spot, spot_of
from durable_core.stores.flows import FlowState
from durable_core.stores.urls import local_path, seconds
from durable_core.stores.wakeups import check_time

from . import _flows, _steps, _transaction, _wakeups
from ._database import Database
from ._errors import explain_errors
from ._rows import REFUSED, size_of

_PAGE: Final = 1_000


class SqliteStore(
    OpenableStore,
    SupportsRuns,
    SupportsScan,
    SupportsLock,
    SupportsHolder,
    SupportsPolling,
    SupportsFlows,
    SupportsWakeups,
    SupportsTransact,
):
    """Keeps runs in one SQLite file on a local disk, created at first use; `open_store("sqlite:./runs.db")` makes one.

    Any number of processes may use the file, and any number of event loops may share one store. An append is durable when its
    commit has returned; appends that wait at the same time share one commit. The files are private to their owner.

    The store waits up to `lock_timeout` seconds for a file that another program has locked, and then raises `StoreError`.
    `clock` says when wake-ups are due, in place of the machine's clock.
    """

    poll_seconds: float = 2.0

    def __init__(self, path: str | os.PathLike[str], *, lock_timeout: float = 30.0, clock: Clock | None = None) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given or "\0" in given:
            raise ValueError(f"{path!r} is not a path; expected one such as './runs.db'")
        if given == ":memory:":
            raise ValueError("a database in memory lives in one connection: use MemoryStore(), or the URL 'memory:'")
        self._path: Final = Path(given).resolve()
        self._clock: Final = clock or SystemClock()
        self._database: Final = Database(self._path, lock_timeout)
        self._locks: Final = Locks(self._path.parent, make_folder=lambda folder: None)
        self._writers: Final[dict[asyncio.AbstractEventLoop, Batcher[StepRecord, StepRecord]]] = {}
        self._is_closed = False

    @classmethod
    def from_url(cls, url: str) -> Self:
        parsed = StoreURL(url)
        options = parsed.options({"lock_timeout": seconds})
        if parsed.path == ":memory:":
            raise StoreError(f"{parsed}: a database in memory lives in one connection; write 'memory:'")
        return cls(local_path(parsed, example="runs.db", advice="'sqlite:./runs.db'"), **options)

    async def append(self, record: StepRecord) -> StepRecord:
        return await self._writer().submit(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._open().ask(_steps.newest, run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        _, records = await self._open().ask(_steps.page, run_id)
        return records

    async def scan(self, run_id: str) -> AsyncIterator[StepRecord]:
        last = seen = 0
        while True:
            last, records = await self._open().ask(partial(_steps.page, before=seen), run_id, last, _PAGE)
            seen += len(records)
            for record in records:
                yield record
            if len(records) < _PAGE:
                return

    async def clear(self, run_id: str) -> None:
        await self._open().ask(_steps.clear, run_id)

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        last = ""
        while True:
            found = await self._open().ask(_steps.run_ids, prefix, last, _PAGE)
            for last in found:
                yield last
            if len(found) < _PAGE:
                return

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        database = self._open()
        lock = _RunLock(self, run_id)

        def take() -> bool:
            with explain_errors(self._path):
                return lock.take()

        try:
            if not await database.run(take):
                holder = await self.holder(run_id) or Holder("another process", None)
                raise RunBusy(run_id, holder=holder.name, since=holder.since)
            yield lock
        finally:
            # On the thread that takes locks, so that this also gives back a lock that is still being taken.
            await to_the_end(database.run(lock.release))

    async def holder(self, run_id: str) -> Holder | None:
        return (await self.holders([run_id])).get(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        def look() -> Mapping[str, Holder]:
            with explain_errors(self._path):
                held = {run_id: self._locks.holder(self._spot(run_id)) for run_id in run_ids}
                return {run_id: holder for run_id, holder in held.items() if holder}

        return await self._open().run(look)

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        return await self._open().ask(_steps.newer, known)

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
        return await self._open().ask(_flows.find, prefix, names, states, since, before, limit)

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        check_time(at)
        wakeup = WakeUp(run_id=run_id, flow=flow, at=at, token=token_hex(12), now=self._clock.now())
        await self._open().ask(_wakeups.set_one, wakeup)
        return wakeup

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return await self._open().ask(_wakeups.take, flows, limit, self._clock.now(), visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        await self._open().ask(_wakeups.clear, wakeups)

    async def transact(self, work: Callable[[Connection], StepRecord | None]) -> StepRecord | None:
        return await self._open().ask(_transaction.transact, work)

    async def __aenter__(self) -> Self:
        self._is_closed = False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._is_closed = True
        await self._database.close()
        self._locks.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def _open(self) -> Database:
        if self._is_closed:
            raise StoreError(f"{self!r} is closed: use it inside `async with`, or make another one")
        return self._database

    def _spot(self, run_id: str) -> Spot:
        return spot_of("run", self._path.name, run_id, files=RUN_FILES)

    def _writer(self) -> Batcher[StepRecord, StepRecord]:
        """Return the batcher for appends of the running loop."""
        loop = asyncio.get_running_loop()
        if (writer := self._writers.get(loop)) is None:
            for each in [*self._writers]:
                if each.is_closed():
                    self._writers.pop(each, None)
            writer = self._writers[loop] = Batcher(self._append, size=size_of, refused=REFUSED)
        return writer

    async def _append(self, records: Sequence[StepRecord]) -> Sequence[StepRecord]:
        return await self._open().ask(_steps.append, records)


class _RunLock(RunLock):
    """A lock on a run, which is of no use once the store is closed: a runner that waits would wait for ever, and keep it."""

    def __init__(self, store: SqliteStore, run_id: str) -> None:
        super().__init__(run_id, store._locks, store._spot(run_id))
        self._store: Final = store

    def check(self) -> None:
        super().check()
        if self._store._is_closed:
            raise LockLost(f"run {self._run_id!r}: {self._store!r} was closed, so this runner can't continue")
