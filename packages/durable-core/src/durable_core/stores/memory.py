"""A store for tests and experiments: a dictionary."""

from __future__ import annotations

import asyncio
import os
import threading
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from heapq import merge
from types import TracebackType
from typing import Final, Self

from durable_core.clock import Clock, SystemClock
from durable_core.errors import RunBusy, StoreError
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
    SupportsWakeups,
    SupportsWatch,
    WakeUp,
)

from .flows import FLOW, FlowState, has_ended, state_of
from .urls import StoreURL
from .wakeups import Wakeups


class MemoryStore(
    OpenableStore, SupportsRuns, SupportsLock, SupportsHolder, SupportsPolling, SupportsFlows, SupportsWakeups, SupportsWatch
):
    """Keeps runs in memory until the process ends. Its locks work within the process.

    `clock` replaces the machine's clock for deciding when wake-ups are due.
    """

    poll_seconds: float = 30.0  # only this process can append, and it wakes its watches itself

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._runs: Final[dict[str, tuple[dict[tuple[str, int], StepRecord], dict[str, StepRecord]]]] = {}
        """For each run its entries by slot, and the newest entry of each step."""
        self._begun: Final[dict[tuple[str, FlowState], list[tuple[datetime, str]]]] = {}
        """For each name and state of flows when they began, and their runs, in order."""
        self._mutex: Final = threading.Lock()
        self._held: Final[dict[str, Holder]] = {}
        self._watches: Final[dict[str, dict[asyncio.Event, asyncio.AbstractEventLoop]]] = {}
        """For each watched run the events that wake its watches, and their loops."""
        self._wakeups: Final = Wakeups(clock or SystemClock())

    @classmethod
    def from_url(cls, url: str) -> Self:
        parsed = StoreURL(url)
        parsed.options({})
        if parsed.parts.netloc or parsed.path:
            raise StoreError(f"{parsed} takes no path; write 'memory:'")
        return cls()

    async def append(self, record: StepRecord) -> StepRecord:
        step_id, revision = record.step_id, record.revision
        if (run := self._runs.get(record.run_id)) is None:
            run = self._runs[record.run_id] = {}, {}
        entries, newest = run
        holder = entries.setdefault((step_id, revision), record)
        if holder is record and newest.get(step_id, record).revision <= revision:
            known, newest[step_id] = newest.get(step_id), record
            if step_id == FLOW:
                self._index(known, record)
        if holder is record and record.run_id in self._watches:
            self._tell(record)
        return holder

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return run[1].get(step_id) if (run := self._runs.get(run_id)) else None

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return tuple(run[0].values()) if (run := self._runs.get(run_id)) else ()

    async def clear(self, run_id: str) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None and FLOW in run[1]:
            self._index(run[1][FLOW], None)

    def _index(self, old: StepRecord | None, new: StepRecord | None) -> None:
        """Keep one place in `_begun` for each run that has a flow."""
        with self._mutex:
            if old is not None:
                group = (old.name, state_of(old))
                begun = self._begun[group]
                del begun[bisect_left(begun, (old.started_at, old.run_id))]
                if not begun:
                    del self._begun[group]
            if new is not None:
                insort(self._begun.setdefault((new.name, state_of(new)), []), (new.started_at, new.run_id))

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        for run_id in [*self._runs]:
            if run_id.startswith(prefix):
                yield run_id

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        mine = Holder(f"a runner in this process ({os.getpid()})", datetime.now(UTC))
        holder = self._held.setdefault(run_id, mine)
        if holder is not mine:
            raise RunBusy(run_id, holder=holder.name, since=holder.since)
        try:
            yield _Held()
        finally:
            del self._held[run_id]

    async def holder(self, run_id: str) -> Holder | None:
        return self._held.get(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        return {run_id: self._held[run_id] for run_id in run_ids if run_id in self._held}

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        newest = [(await self.get(run_id, step_id), revision) for run_id, step_id, revision in known]
        return [record for record, revision in newest if record is not None and record.revision > revision]

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
        with self._mutex:
            groups = [
                map(begun.__getitem__, range((len(begun) if before is None else bisect_left(begun, before)) - 1, -1, -1))
                for (name, state), begun in self._begun.items()
                if (names is None or name in names) and (states is None or state in states)
            ]
            found: list[StepRecord] = []
            for began, run_id in merge(*groups, reverse=True):
                if len(found) == limit or (since is not None and began < since):
                    break
                if run_id.startswith(prefix) and (run := self._runs.get(run_id)):
                    found.append(run[1][FLOW])
            return found

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return await self._wakeups.set_wakeup(run_id, flow, at)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return await self._wakeups.take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        await self._wakeups.clear_wakeups(wakeups)

    async def watch(self, run_id: str) -> AsyncIterator[None]:
        acted = asyncio.Event()
        with self._mutex:
            watches = self._watches.setdefault(run_id, {})
            watches[acted] = asyncio.get_running_loop()
        try:
            while True:
                yield
                await acted.wait()
                acted.clear()
        finally:
            with self._mutex:
                del watches[acted]
                if not watches:
                    del self._watches[run_id]

    def _tell(self, record: StepRecord) -> None:
        """Wake the run's watches. If its lock is held, its runner knows the entry: then wake them only for the flow's end."""
        if record.run_id in self._held and not (record.step_id == FLOW and has_ended(record)):
            return
        with self._mutex:
            watches = [*self._watches.get(record.run_id, {}).items()]
        for acted, loop in watches:
            with suppress(RuntimeError):  # its loop was closed
                loop.call_soon_threadsafe(acted.set)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        return None


class _Held(Lease):
    def check(self) -> None:
        """A lock in this process can't be lost while the process lives."""
