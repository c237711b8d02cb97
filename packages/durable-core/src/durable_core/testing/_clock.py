"""A clock for tests: a day passes in no time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Final, TypeVar
from weakref import WeakSet

from durable_core.clock import Clock

T = TypeVar("T", float, datetime)

_TURNS: Final = 10  # of the loop in which nobody falls asleep: then whoever was about to run has run


class FakeClock(Clock):
    """A clock that stands still while any code runs. When everything sleeps or waits, it jumps to the time of the next wake-up.

    So sleeps side by side take as long as the longest of them, by this clock, and a sleep of a month takes no real time.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._monotonic = 0.0
        self._pauses: Final[list[tuple[float, int, asyncio.Future[None]]]] = []
        """A heap of those who sleep for a time, by the monotonic time at which they wake."""
        self._dates: Final[list[tuple[datetime, int, asyncio.Future[None]]]] = []
        """A heap of those who sleep until a time of day."""
        self._numbers: Final = count(1)
        self._newest = 0
        self._watched: Final[WeakSet[asyncio.AbstractEventLoop]] = WeakSet()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        _ = self._now + timedelta(seconds=seconds)  # raises OverflowError here, not where time moves
        await self._sleep(self._pauses, self._monotonic + seconds)

    async def sleep_until(self, moment: datetime) -> None:
        if moment <= self._now:
            await asyncio.sleep(0)
            return
        await self._sleep(self._dates, moment)

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass, and wake those whose time has come."""
        passed = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        self._now += passed
        self._monotonic += passed.total_seconds()
        self._wake()

    def jump(self, seconds: float | timedelta) -> None:
        """Set the time of day forward or, if negative, back, as when a machine's clock is set: no time passes."""
        self._now += seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        self._wake()

    async def _sleep(self, sleepers: list[tuple[T, int, asyncio.Future[None]]], until: T) -> None:
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        self._newest = next(self._numbers)
        heappush(sleepers, (until, self._newest, sleeper))
        if loop not in self._watched:
            self._watched.add(loop)
            loop.call_soon(self._watch, loop, self._newest, 0)
        await sleeper

    def _watch(self, loop: asyncio.AbstractEventLoop, newest: int, turns: int) -> None:
        """Count the turns of the loop since somebody fell asleep; after enough of them, move time to the earliest sleeper."""
        if newest != self._newest:
            newest, turns = self._newest, 0
        elif turns == _TURNS:
            self._move()
            turns = 0
        if _earliest(self._pauses) is not None or _earliest(self._dates) is not None:
            loop.call_soon(self._watch, loop, newest, turns + 1)
        else:
            self._watched.discard(loop)

    def _move(self) -> None:
        pause, date = _earliest(self._pauses), _earliest(self._dates)
        if pause and not (date and (date[0] - self._now).total_seconds() < pause[0] - self._monotonic):
            self._now += timedelta(seconds=pause[0] - self._monotonic)
            self._monotonic = pause[0]  # not a sum, which may be off by a rounding
        elif date:
            self._monotonic += (date[0] - self._now).total_seconds()
            self._now = date[0]
        self._wake()

    def _wake(self) -> None:
        while (pause := _earliest(self._pauses)) and pause[0] <= self._monotonic:
            _end(heappop(self._pauses)[2])
        while (date := _earliest(self._dates)) and date[0] <= self._now:
            _end(heappop(self._dates)[2])


def _earliest(sleepers: list[tuple[T, int, asyncio.Future[None]]]) -> tuple[T, int, asyncio.Future[None]] | None:
    """Return the first sleeper that still sleeps, and forget those before it, who were cancelled or whose loop is closed."""
    while sleepers and (sleepers[0][2].done() or sleepers[0][2].get_loop().is_closed()):
        heappop(sleepers)
    return sleepers[0] if sleepers else None


def _end(sleeper: asyncio.Future[None]) -> None:
    def end() -> None:
        if not sleeper.done():
            sleeper.set_result(None)

    sleeper.get_loop().call_soon_threadsafe(end)  # a step that is no coroutine moves time in a thread of its own
