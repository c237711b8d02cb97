"""The clock of a runner, which tests can replace."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

_LONGEST: Final = 30.0  # seconds of a pause on the way to a time of day, which comes sooner or later when a clock is set


class Clock(Protocol):
    """The time of day, a time that never jumps, and a way to pause."""

    @abstractmethod
    def now(self) -> datetime:
        """Return the time of day as an aware UTC datetime. It may jump when the machine's clock is set."""

    @abstractmethod
    def monotonic(self) -> float:
        """Return seconds since an arbitrary start. They never decrease."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Pause the calling task for `seconds`."""

    async def sleep_until(self, moment: datetime) -> None:
        """Pause the calling task until the time of day is `moment`. `now` is read again at least every 30 seconds."""
        while (left := (moment - self.now()).total_seconds()) > 0:
            await self.sleep(min(left, _LONGEST))


class SystemClock(Clock):
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    monotonic: Callable[[], float] = staticmethod(time.monotonic)
    """Seconds that never decrease. This is the function itself, because every step calls it three times."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
