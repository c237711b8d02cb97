"""A clock for tests: a day passes in no time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from durable_core.clock import Clock


class FakeClock(Clock):
    """Stands still until somebody sleeps or moves it; a sleep is over at once, and time has passed."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass."""
        passed = seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
        self._now += passed
        self._monotonic += passed.total_seconds()

    def jump(self, seconds: float | timedelta) -> None:
        """Set the time of day forward or, if negative, back, as when a machine's clock is set: no time passes."""
        self._now += seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds)
