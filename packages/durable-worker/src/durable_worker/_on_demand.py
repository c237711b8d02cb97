"""A loop that takes no wake-ups by itself. Celery delivers them, and has it look at one run for each."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from random import uniform
from typing import Final

from durable_core.engine import FLOW, Limit
from durable_core.record import StepRecord
from durable_core.store import WakeUp

from ._loop import Loop
from ._visit import Visit

_CARRIED: Final = "carried:"
_SHORTEST: Final = 1.0
_EARLY: Final = 0.5  # seconds by which a requested look may come early
_logger: Final = logging.getLogger("durable_worker")


def carried(run_id: str, flow: str, at: datetime, now: datetime) -> WakeUp:
    """Return a wake-up that isn't in a store."""
    return WakeUp(run_id=run_id, flow=flow, at=at, token=_CARRIED + os.urandom(8).hex(), now=now)


def is_carried(wakeup: WakeUp) -> bool:
    return wakeup.token.startswith(_CARRIED)


class OnDemand(Loop):
    """Looks at runs on request.

    It is made like a worker's loop. `since` is when its code was deployed; `longest` is the most seconds until another look.
    """

    def __init__(self, like: Loop, *, since: datetime, longest: float) -> None:
        super().__init__(like.store, like.flows, like.settings, like._schedules, like.clock, like.on_event)
        self.ends.handlers.extend(like.ends.handlers)
        self._began = since
        self._longest: Final = min(longest, self.settings.visibility_timeout)
        self._again: dict[str, float] = {}
        """The time of another look at a run that is already requested."""

    async def look(self, run_id: str, flow: str) -> None:
        """Drive a run as far as it can. If its state is unknown then, this requests another look before it returns."""
        if self.memory.is_left_alone(run_id):
            return
        if flow not in self.flows or run_id in self._visits or self._alone is not None:
            await self._look_again(run_id, flow)
            return
        now = self.clock.now()
        visit, task = self._visit(carried(run_id, flow, now, now))
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()  # the run is handed back
            await asyncio.wait([task])
            raise
        if visit.taken and not self.memory.is_left_alone(run_id):
            await self._look_again(run_id, flow)

    def due(self) -> AsyncIterator[StepRecord]:
        """Yield the newest entries of flows that could continue, in case no task was sent for them."""
        return self._sweeper.due()

    async def end(self) -> None:
        """Give running steps time to end, and hand all runs to others. From now on, pass on every run without looking at it."""
        _logger.info("stopping: steps that run have %g s to end, and runs are handed to others", self.settings.shutdown_timeout)
        self._take_no_more()
        await self._end_visits()

    @asynccontextmanager
    async def place_for(self, visit: Visit, limit: Limit) -> AsyncIterator[None]:
        """Hold a place of a limit. If there is none, look again later instead of keeping a process waiting."""
        async with self.places.one(limit):
            yield

    async def _look_again(self, run_id: str, flow: str) -> None:
        """Request another look, unless one is requested already. It comes later the longer the run's state hasn't changed."""
        began = self.clock.monotonic()
        self._again = {each: until for each, until in self._again.items() if until > began}
        if run_id in self._again:
            return
        delay = self._longest
        try:
            record = await self.store.get(run_id, FLOW)
            if record is not None:
                age = (self.clock.now() - record.ended_at).total_seconds()
                delay = min(max(_SHORTEST, age / 4), self._longest)
        except Exception:  # the store is unreachable; that was logged before
            pass
        delay = max(_SHORTEST, delay * uniform(0.7, 1))
        await self.wakeups.set_wakeup(run_id, flow, self.clock.now() + timedelta(seconds=delay))
        self._again[run_id] = began + delay - _EARLY
