"""Replicas of a worker's schedules on one store, which a test kills, restarts and looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim

from durable_core import Runner, StepRecord, Store, flow
from durable_core.store import Lease, WakeUp
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker._schedules import Schedules

MINUTE: Final = timedelta(minutes=1)


class Killed(BaseException):
    """The process is gone."""


@flow
async def settle(runner: Runner, day: str = "") -> None: ...


class Seen(Store):
    """A store as one process sees it: notes which runs are asked for, and ends the process before the call number `kill_at`."""

    def __init__(self, store: MemoryStore, begun: Counter[str], *, kill_at: int = 0) -> None:
        self._store: Final = store
        self.begun: Final = begun
        self.kill_at: int = kill_at
        self.calls: int = 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed

    async def append(self, record: StepRecord) -> StepRecord:
        self._call()
        held = await self._store.append(record)
        if record.step_id == "$flow" and held.id == record.id:
            self.begun[record.run_id] += 1
        return held

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        self._call()
        return await self._store.get(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        self._call()
        return await self._store.list(run_id)

    async def clear(self, run_id: str) -> None:
        self._call()
        await self._store.clear(run_id)

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        self._call()
        return await self._store.set_wakeup(run_id, flow, at)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        return await self._store.take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        self._call()
        await self._store.clear_wakeups(wakeups)

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        self._call()
        async with self._store.lock(run_id) as lease:
            yield lease


class Place:
    """A store, a clock, and what was asked for there."""

    def __init__(self, start: datetime, store: Store | None = None, clock: FakeClock | None = None) -> None:
        self.clock: Final = clock or FakeClock(start)
        self.memory: Final = MemoryStore(clock=self.clock)
        self.store: Final = store
        self.begun: Final[Counter[str]] = Counter()

    def replica(self, expression: str = "* * * * *", *, young: float = 60, kill_at: int = 0, **options: Any) -> Schedules:
        """Return the schedules of a process that begins now."""
        store = self.store or Seen(self.memory, self.begun, kill_at=kill_at)
        schedules = Schedules(store, ["settle"], self.clock, young)
        defaults = {"name": None, "timezone": "Europe/Berlin", "catch_up": "none", "input": None}
        schedules.add(expression, settle, **{**defaults, **options})
        return schedules

    async def clean(self) -> None:
        """Clear every run, as if all had ended and nobody kept them."""
        for run_id in [run_id async for run_id in self.memory.runs() if not run_id.startswith("$")]:
            await self.memory.clear(run_id)

    @property
    def started(self) -> list[datetime]:
        """The ticks whose runs were asked for, in order. Fails where one was asked for twice."""
        twice = [run_id for run_id, times in self.begun.items() if times > 1]
        assert not twice
        return sorted(map(tick_of, self.begun))


def tick_of(run_id: str) -> datetime:
    """Return the time in a run id."""
    return datetime.strptime(run_id.rpartition("@")[2], "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)


def ticks(expression: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """Return cronsim's own list, from one iterator."""

    def walk() -> Iterator[datetime]:
        for tick in CronSim(expression.replace("@hourly", "0 * * * *"), after.astimezone(ZoneInfo(zone))):
            if tick.astimezone(UTC) > until:
                return
            if tick.astimezone(UTC) > after:  # begun in the second of two equal hours, it names times of the first
                yield tick.astimezone(UTC)

    return [*walk()]


def utc(text: str) -> datetime:
    """Read a time in UTC, such as `2026-03-29 01:00`."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
