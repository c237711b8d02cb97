"""Wake-ups in memory: a heap of those that will show, for stores whose messages live in one process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Final

import msgspec

from durable_core._system.ids import new_id
from durable_core.clock import Clock
from durable_core.store import SupportsWakeups, WakeUp


class Wakeups(SupportsWakeups):
    """Keeps wake-ups for as long as the process lives; for any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._kept: Final[dict[str, WakeUp]] = {}
        """Of each token its wake-up, until it is cleared."""
        self._shown: Final[dict[str, list[tuple[datetime, datetime, str]]]] = {}
        """Of each flow a heap: when each wake-up shows next, when it was due, and its token."""
        self._runs: Final[Counter[str]] = Counter()
        self._mutex: Final = threading.Lock()

    def has(self, run_id: str) -> bool:
        """Tell whether a wake-up of the run is kept."""
        return run_id in self._runs

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        wakeup = WakeUp(run_id=run_id, flow=flow, at=at, token=new_id(), now=self._clock.now())
        with self._mutex:
            self._kept[wakeup.token] = wakeup
            self._runs[run_id] += 1
            heappush(self._shown.setdefault(flow, []), (at, at, wakeup.token))
        return wakeup

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        now = self._clock.now()
        taken: list[WakeUp] = []
        with self._mutex:
            heaps = {flow: self._shown[flow] for flow in flows if flow in self._shown}
            while len(taken) < limit:
                for heap in heaps.values():
                    while heap and heap[0][2] not in self._kept:
                        heappop(heap)  # it was cleared
                due = [flow for flow, heap in heaps.items() if heap and heap[0][0] <= now]
                if not due:
                    break
                heap = heaps[min(due, key=lambda flow: heaps[flow][0][1])]
                _, at, token = heappop(heap)
                heappush(heap, (now + visibility_timeout, at, token))
                taken.append(msgspec.structs.replace(self._kept[token], now=now))
        return taken

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        with self._mutex:
            for wakeup in wakeups:
                if (kept := self._kept.pop(wakeup.token, None)) is not None:
                    self._runs[kept.run_id] -= 1
                    if not self._runs[kept.run_id]:
                        del self._runs[kept.run_id]
