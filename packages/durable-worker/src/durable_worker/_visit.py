"""A worker's visit of a run: look, drive the run as far as it can, look once more, and clear the wake-ups."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from durable_core.engine import (
    FLOW,
    Driver,
    Limit,
    could_go_on,
    decided,
    hold,
    is_parked,
    root_of,
    state_of,
    wake,
)
from durable_core.errors import CorruptLog, LockLost, ResultNotRecorded, RunBusy, StoreError
from durable_core.record import StepRecord
from durable_core.store import Store, WakeUp, holder_of, to_the_end

from ._crashes import count
from ._logging import log

if TYPE_CHECKING:
    from ._loop import Loop

_WAIT_LIMIT: Final = 5.0
"""Seconds for which a waiting run keeps its place in the worker, unless its flow sets `wait_limit`."""
_logger: Final = logging.getLogger("durable_worker")


class Visit(Driver):
    """Drives one run while there is anything to do."""

    def __init__(self, loop: Loop, wakeup: WakeUp) -> None:
        self._loop: Final = loop
        self._store: Final = loop.store
        self.run_id: Final = wakeup.run_id
        self.wakeup = wakeup
        """The wake-up of this visit."""
        self._taken_at: Final = loop.clock.monotonic()
        self.taken: Final[dict[str, WakeUp]] = {wakeup.token: wakeup}
        """The wake-ups that were taken and not yet cleared."""
        self._left_open = False
        """True if this pass has driven the run, and the run has not ended."""
        self.state = ""
        """The state of the run after the last pass."""

    async def go(self) -> None:
        """Drive the run until nothing more can be done now. If its state is unknown, keep the wake-ups."""
        try:
            while self.taken:
                if self._loop.stopping:
                    await self._hand_back()
                    return
                self._left_open = False
                noted = [*self.taken]  # without those that this pass sets, or that come after it has looked
                if await self._pass():
                    if not await self._came_meanwhile():
                        await self._clear(noted)
                elif len(self.taken) == len(noted):  # otherwise something may have come after this pass looked
                    return
        except asyncio.CancelledError:
            await to_the_end(self._hand_back())
            raise
        except CorruptLog as error:
            self.state = "unknown"
            await self._loop.tell_damage(self.run_id, self.wakeup.flow, error)
        except (LockLost, StoreError, ResultNotRecorded) as error:
            self.state = "unknown"
            _logger.warning("run %r is left to the next look: %s", self.run_id, error, extra={"run_id": self.run_id})
        except Exception:
            self.state = "unknown"
            _logger.exception("could not continue run %r; it is tried again", self.run_id, extra={"run_id": self.run_id})
        finally:
            self._loop.leave(self)

    async def _clear(self, noted: Collection[str]) -> None:
        """Clear the wake-ups that were taken before this pass."""
        await self._loop.wakeups.clear_wakeups([self.taken[token] for token in noted])
        for token in noted:
            del self.taken[token]
        if self.taken:
            self.wakeup = next(iter(self.taken.values()))

    async def _came_meanwhile(self) -> bool:
        """Look once more after the run was released: an answer may have come while it was driven."""
        flow = await self._store.get(self.run_id, FLOW) if self._left_open else None
        return flow is not None and flow.status != "started" and await self._is_due(flow)

    async def _hand_back(self) -> None:
        """Let others continue the run at once."""
        try:
            await self._loop.wakeups.set_wakeup(self.run_id, self.wakeup.flow, self.wakeup.now)
            await self._loop.wakeups.clear_wakeups([*self.taken.values()])
            self.taken.clear()
        except Exception as error:
            _logger.warning(
                "run %r could not be handed back; it continues when its wake-up shows again: %r",
                *(self.run_id, error),
                extra={"run_id": self.run_id},
            )

    async def _pass(self) -> bool:
        """Look at the run, and drive it if it could continue. Return True if its state is known afterwards."""
        flow = await self._store.get(self.run_id, FLOW)
        if flow is None:
            return True
        if decided(flow):
            await self._end(flow)
            return True
        if (root := root_of(flow)) is not None and not await self._is_over(root[0]):
            await self._loop.wakeups.set_wakeup(*root, self.wakeup.now)
            return True
        if flow.name not in self._loop.flows:
            await self._loop.wakeups.set_wakeup(self.run_id, flow.name, self.wakeup.now)
            return True
        if not await self._is_due(flow):
            await self._set_for(flow)
            return True
        if flow.status == "started" and not await self._may_take_from_the_dead():
            self.state = "busy"
            return False
        limit: Limit | None = None
        misfit: str | None = None
        try:
            limit = self._loop.flows[flow.name].limit(flow)
        except Exception as error:  # the function `concurrency=` doesn't accept the recorded input
            misfit = f"concurrency= of flow {flow.name!r} raised {type(error).__name__}: {error}"
        try:
            async with nullcontext() if limit is None else self._loop.place_for(self, limit):
                return await self._drive(flow.name, limit, misfit)
        except RunBusy:
            self.state = "busy"
        return False

    async def _drive(self, name: str, limit: Limit | None, misfit: str | None) -> bool:
        """Drive the run under its lock if it still can continue, or park it after too many crashes or a drift."""
        loop, settings = self._loop, self._loop.settings
        error: BaseException | None = None
        async with hold(
            loop.flows[name],
            self._store,
            self.run_id,
            name=name,
            driver=self,
            limits=[limit[0]] if limit else [],
            clock=loop.clock,
            on_event=loop.on_event,
            wait_limit=_WAIT_LIMIT,
        ) as run:
            flow = run.record
            if flow is None or decided(flow) or flow.name != name or not await self._is_due(flow):
                return await self._leave(flow, name)
            crashes = await count(self._store, run.entries)
            if crashes.too_many(settings.max_crashes):
                mend = f"mend the flow and deploy it; or durable_core.control.retry(store, {self.run_id!r})"
                flow = await run.park("crashes", crashes.why(), mend)
            elif (misfit := run.misfit() or misfit) is not None:
                flow = await run.park("drift", misfit, "mend the flow and deploy it")
            else:
                standing = await run.drive()
                flow, error = standing.record, standing.error
                self._left_open = not decided(flow)
        log(flow, error)
        self.state = state_of(flow)
        if decided(flow):
            await self._end(flow)
        return True

    async def _leave(self, flow: StepRecord | None, name: str) -> bool:
        """Leave a run that somebody else took before we held its lock."""
        if flow is not None and decided(flow):
            await self._end(flow)
        elif flow is not None and flow.name != name:
            await self._loop.wakeups.set_wakeup(self.run_id, flow.name, self.wakeup.now)
        elif flow is not None:
            await self._set_for(flow)
        return True

    async def _is_due(self, flow: StepRecord) -> bool:
        if self._loop.tries_once_more(flow):
            return True
        return (await could_go_on(self._store, [flow], self._loop.clock.now()))[flow.run_id]

    async def _is_over(self, run_id: str) -> bool:
        """Return True if a run can no longer drive its children."""
        flow = await self._store.get(run_id, FLOW)
        return flow is None or decided(flow)

    async def _may_take_from_the_dead(self) -> bool:
        """Return True if we should drive a run with a process that may have died. From its second death on, drive it alone."""
        if (holders := holder_of(self._store)) is not None and await holders.holder(self.run_id) is not None:
            return False
        crashes = await count(self._store, await self._store.list(self.run_id))
        return crashes.deaths < 2 or await self._loop.isolate(self)

    async def _end(self, flow: StepRecord) -> None:
        """Report the end of the run to the handlers, and wake the run that waits for it."""
        self.state = state_of(flow)
        self._loop.memory.forget(self.run_id)
        await self._loop.ends.tell(flow)
        await wake(self._store, flow, self.wakeup.now)

    async def _set_for(self, flow: StepRecord) -> None:
        """Set a wake-up for the run's time, if it waits for one."""
        if flow.until is not None and not is_parked(flow):
            await self.suspends(self._store, flow, flow.until)

    async def suspends(self, store: Store, flow: StepRecord, until: datetime) -> None:
        """Set a wake-up for `until`, or, if a fast clock woke the run too early, a little later each time."""
        at = until
        if until <= self.wakeup.now:
            passed = timedelta(seconds=self._loop.clock.monotonic() - self._taken_at)
            at = self.wakeup.now + passed + self._loop.memory.later_each_time(self.run_id, until)
        await self._loop.wakeups.set_wakeup(self.run_id, flow.name, at)

    def hands_back(self) -> bool:
        return self._loop.stopping

    def limited(self, store: Store, limit: Limit) -> AbstractAsyncContextManager[object]:
        return self._loop.places.one(limit)
