"""Wake-ups in memory, for stores within one process; and a check for all stores."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Final

import msgspec

from durable_core._system.ids import new_id
from durable_core.clock import Clock
from durable_core.store import SupportsWakeups, WakeUp


def check_time(at: datetime) -> None:
    """Raise `ValueError` if a wake-up's time has no time zone."""
    if at.tzinfo is None:
        raise ValueError(f"at {at!r} has no time zone; give an aware datetime, such as datetime.now(UTC)")


class Wakeups(SupportsWakeups):
    """Keeps wake-ups in memory until the process ends. Works from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._kept: Final[dict[str, WakeUp]] = {}
        """Each wake-up by its token, until it is cleared."""
        self._shown: Final[dict[str, list[tuple[datetime, datetime, int, str]]]] = {}
        """For each flow a heap: when each wake-up shows next, when it was due, its number, and its token."""
        self._numbers: Final = count()
        self._mutex: Final = threading.Lock()

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        check_time(at)
        wakeup = WakeUp(run_id=run_id, flow=flow, at=at, token=new_id(), now=self._clock.now())
        with self._mutex:
            self._kept[wakeup.token] = wakeup
            heappush(self._shown.setdefault(flow, []), (at, at, next(self._numbers), wakeup.token))
        return wakeup

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        now = self._clock.now()
        taken: list[WakeUp] = []
        with self._mutex:
            heaps = {flow: self._shown[flow] for flow in flows if flow in self._shown}
            while len(taken) < limit:
                for heap in heaps.values():
                    while heap and heap[0][3] not in self._kept:
                        heappop(heap)  # it was cleared
                due = [flow for flow, heap in heaps.items() if heap and heap[0][0] <= now]
                if not due:
                    break
                heap = heaps[min(due, key=lambda flow: heaps[flow][0][1])]
                _, at, number, token = heappop(heap)
                heappush(heap, (now + visibility_timeout, at, number, token))
                taken.append(msgspec.structs.replace(self._kept[token], now=now))
        return taken

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        with self._mutex:
            for wakeup in wakeups:
                self._kept.pop(wakeup.token, None)
