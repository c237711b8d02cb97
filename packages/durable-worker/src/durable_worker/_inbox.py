"""The wake-ups that a worker takes: those of the store, and its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from durable_core.clock import Clock
from durable_core.record import StepRecord
from durable_core.store import Store, SupportsWakeups, WakeUp, wakeups_of
from durable_core.stores.wakeups import Wakeups


class Inbox(SupportsWakeups):
    """Wake-ups of the store, and the worker's own: for runs that its sweep found, or for all if the store has no wake-ups."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._own: Final = Wakeups(clock)
        self._store: Final = wakeups_of(store)
        self._finds: Final[dict[str, WakeUp]] = {}
        """The worker's own wake-up of each run that the sweep found, until it is cleared."""
        self._store_first = False

    @property
    def is_shared(self) -> bool:
        """True if workers share the wake-ups of the store. If the store has none, each worker has only its own."""
        return self._store is not None

    async def add(self, flow: StepRecord, now: datetime) -> None:
        """Add a wake-up for a run that the sweep found. It replaces that of an earlier sweep, which may be hidden."""
        if (before := self._finds.get(flow.run_id)) is not None:
            await self._own.clear_wakeups([before])
        self._finds[flow.run_id] = await self._own.set_wakeup(flow.run_id, flow.name, now)

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return await (self._own if self._store is None else self._store).set_wakeup(run_id, flow, at)

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        """Take wake-ups. The store's and the own ones come first by turns, so that neither waits until the other has none."""
        self._store_first = not self._store_first
        sources = [self._own] if self._store is None else [self._store, self._own]
        taken: list[WakeUp] = []
        for source in sources if self._store_first else reversed(sources):
            if left := limit - len(taken):
                taken += await source.take_wakeups(flows, limit=left, visibility_timeout=visibility_timeout)
        return taken

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        await self._own.clear_wakeups(wakeups)
        others: list[WakeUp] = []
        for wakeup in wakeups:
            find = self._finds.get(wakeup.run_id)
            if find is not None and find.token == wakeup.token:
                del self._finds[wakeup.run_id]
            else:
                others.append(wakeup)
        if others and self._store is not None:
            await self._store.clear_wakeups(others)
