"""The worker's loop: take due wake-ups, sweep from time to time, and pause."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from durable_core.clock import Clock
from durable_core.engine import FLOW, Limit, cancellations, first_of, holding, is_parked
from durable_core.engine import tell as tell_run
from durable_core.errors import DurableError, RunBusy
from durable_core.events import OnEvent, StepEvent, tell
from durable_core.flow import Flow
from durable_core.record import StepRecord
from durable_core.store import Store, WakeUp, runs_of, wakeups_of

from ._ends import Ends
from ._inbox import Inbox
from ._memory import Memory
from ._places import Places
from ._schedules import Schedules
from ._signals import stop_signals
from ._sweep import Sweep
from ._visit import Visit
from .report import SweepReport

_SWEEP_SECONDS: Final = 600.0
_SWEEP_SECONDS_AFTER_FAILURE: Final = 30.0
_SWEEP_SECONDS_ALONE: Final = 2.0  # on a store without wake-ups, where only the sweep finds runs
_PATIENCE: Final = 10  # visibility timeouts until a busy worker lets its runs end, to drive a run alone that keeps dying
_MANY: Final = 10  # how many times `concurrency` runs may wait for a place of their limit
_logger: Final = logging.getLogger("durable_worker")


class Settings(msgspec.Struct, frozen=True):
    """A worker's settings. Times are in seconds."""

    concurrency: int
    visibility_timeout: float
    poll: float
    max_crashes: int
    adopt: float
    shutdown_timeout: float


class Loop:
    """The work of one worker, and the runs that it has taken."""

    def __init__(
        self,
        store: Store,
        flows: Mapping[str, Flow[Any, Any]],
        settings: Settings,
        schedules: Schedules,
        clock: Clock,
        on_event: OnEvent | None,
    ) -> None:
        if wakeups_of(store) is None and runs_of(store) is None:
            raise TypeError(
                f"{store!r} has neither wake-ups nor a list of its runs, and a worker needs one of them to find its work"
            )
        self.store: Final = store
        self.flows: Final = flows
        self.settings: Final = settings
        self.clock: Final = clock
        self.on_event: Final = on_event
        self.ends: Final = Ends(store)
        self.memory: Final = Memory(clock)
        self._schedules: Final = schedules
        self.wakeups: Final = Inbox(store, clock)
        self._sweeper: Final = Sweep(store, flows.keys(), clock, settings.adopt, self.tries_once_more, self.tell_damage)
        self._visits: Final[dict[str, Visit]] = {}
        self._tasks: Final[dict[asyncio.Task[None], Visit]] = {}
        self._waiting: Final[set[Visit]] = set()
        """Visits that wait for a place of a limit, or to be alone. They don't count as driven."""
        self._full: Final[dict[str, float]] = {}
        """The times until which flows are skipped because too many of their runs wait for a place."""
        self._alone: Visit | None = None
        """The visit that runs alone."""
        self._last_poll = -float("inf")
        self._next_sweep = -float("inf")
        self._main: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._store_is_away = False
        self.places: Final = Places(store, clock, settings.poll)
        self._renew()

    def _renew(self) -> None:
        """Begin to work, perhaps in another event loop than last time."""
        self.stopping = False
        self._began: datetime = self.clock.now()
        self._changed = asyncio.Event()
        """Set when a visit ends or frees its place."""
        self._hurries = asyncio.Event()
        """Set when running steps get no more time to stop."""

    def is_healthy(self) -> bool:
        """Return True if the last poll is younger than three polls."""
        return self.clock.monotonic() - self._last_poll < 3 * max(self.settings.poll, 1.0)

    async def begin(self) -> None:
        """Work in the background."""
        if self._main is not None:
            raise DurableError("this worker is already running; make another Worker to run a second one")
        self._renew()
        self._next_sweep = -float("inf")
        self._main = asyncio.create_task(self._work(), name="durable-worker")
        _logger.info("working for %s, on %r", ", ".join(sorted(self.flows)), self.store)

    async def stop(self) -> None:
        """Take no more runs, give running steps time to end, and hand all runs to others."""
        main, self._main = self._main, None
        if main is None:
            return
        self._take_no_more()
        if self._visits:
            _logger.info("stopping, with %d run(s) in hand", len(self._visits))
        await asyncio.wait([main])
        await self._end_visits()

    async def serve(self) -> None:
        """Work until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        with stop_signals(lambda: (self._hurries if stop.is_set() else stop).set()):
            await self.begin()
            assert self._main is not None
            try:
                await first_of(stop.wait(), asyncio.wait([self._main]))
            finally:
                await self.stop()

    async def sweep(self) -> SweepReport:
        """Do everything that is due once."""
        if self._main is not None:
            raise DurableError("this worker is already running, and sweeps by itself")
        self._renew()
        report = SweepReport(started=await self._schedules.tick())
        await self._sweep()
        stood: dict[str, str] = {}
        try:
            while await self._take(stood) or self._tasks:
                if self._tasks:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._take_no_more()
            await self._end_visits()
            raise
        for name, number in Counter(stood.values()).items():
            setattr(report, name, number)
        return report

    async def _work(self) -> None:
        while not self.stopping:
            self._changed.clear()
            if self.clock.monotonic() >= self._next_sweep and (self._sweeping is None or self._sweeping.done()):
                self._sweeping = asyncio.create_task(self._sweep(), name="durable-sweep")
            try:
                await self._schedules.tick()
                full = await self._take()
                self._last_poll = self.clock.monotonic()
                self._store_is_away = False
            except (Exception, asyncio.CancelledError) as error:
                if cancellations():
                    raise
                full = False
                if not self._store_is_away:
                    _logger.warning("could not take wake-ups, trying again: %r", error)
                self._store_is_away = True
            if not full:
                await first_of(self.clock.sleep(self.settings.poll), self._changed.wait())
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])

    def _room(self) -> int:
        if self._alone is not None:
            return 0
        return max(0, self.settings.concurrency - len(self._visits) + len(self._waiting))

    async def _take(self, stood: dict[str, str] | None = None) -> bool:
        """Take due wake-ups and begin a visit for each of their runs; return True if there may be more, and room for them.

        The state of each run afterwards goes into `stood`.
        """
        if not (room := self._room()):
            return False
        begun = 0
        hidden = timedelta(seconds=self.settings.visibility_timeout)
        now = self.clock.monotonic()
        flows = [name for name in self.flows if self._full.get(name, now) <= now]
        taken = await self.wakeups.take_wakeups(flows, limit=room, visibility_timeout=hidden)
        if self._alone is not None:  # a visit became alone meanwhile: the wake-ups are shown again
            return False
        for wakeup in taken:
            if (visit := self._visits.get(wakeup.run_id)) is not None:
                visit.taken.setdefault(wakeup.token, wakeup)
            elif begun < room and not self.memory.is_left_alone(wakeup.run_id):
                self._visit(wakeup, stood)
                begun += 1
        return len(taken) >= room

    def _visit(self, wakeup: WakeUp, stood: dict[str, str] | None = None) -> tuple[Visit, asyncio.Task[None]]:
        """Begin a visit. When it ends, the state of the run goes into `stood`."""
        visit = self._visits[wakeup.run_id] = Visit(self, wakeup)
        task = asyncio.create_task(visit.go(), name=f"durable-visit {wakeup.run_id}")
        self._tasks[task] = visit
        task.add_done_callback(lambda task: self._end_visit(task, stood))
        return visit, task

    def _end_visit(self, task: asyncio.Task[None], stood: dict[str, str] | None) -> None:
        visit = self._tasks.pop(task)
        if stood is not None and visit.state:
            names = {"waiting": "suspended", "started": "unknown", "cancelling": "suspended"}
            stood[visit.run_id] = names.get(visit.state, visit.state)

    def leave(self, visit: Visit) -> None:
        """Forget a visit, because it takes no further wake-ups. Those that it could not clear are shown again."""
        del self._visits[visit.run_id]
        if self._alone is visit:
            self._alone = None
        self._changed.set()

    def _take_no_more(self) -> None:
        """Stop: hand back the runs that wait in this process, and the running ones as soon as possible."""
        self.stopping = True
        self._changed.set()
        for run_id in self._visits:
            tell_run(run_id)

    async def _end_visits(self) -> None:
        """Let the visits end, cancel those that take too long, and wait until all runs are handed back."""
        for task, visit in self._tasks.items():
            if visit in self._waiting:
                task.cancel()
        if self._tasks:
            patience = self.clock.sleep(self.settings.shutdown_timeout)
            await first_of(asyncio.wait([*self._tasks]), patience, self._hurries.wait())
        if tasks := [*self._tasks]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _sweep(self) -> None:
        """Add wake-ups for the runs that could continue, unless another worker is sweeping."""
        shared = self.wakeups.is_shared  # otherwise each worker sweeps for itself
        self._next_sweep = self.clock.monotonic() + (_SWEEP_SECONDS if shared else _SWEEP_SECONDS_ALONE)
        try:
            async with holding(self.store, "$sweep") if shared else nullcontext():
                async for flow in self._sweeper.due():
                    if flow.run_id not in self._visits:
                        await self.wakeups.add(flow, self.clock.now())
        except RunBusy:
            pass
        except Exception as error:
            self._next_sweep = min(self._next_sweep, self.clock.monotonic() + _SWEEP_SECONDS_AFTER_FAILURE)
            _logger.warning("could not sweep, trying again in %g s: %r", _SWEEP_SECONDS_AFTER_FAILURE, error)

    def tries_once_more(self, flow: StepRecord) -> bool:
        """Return True if drift or crashes parked the run before this worker began, because new code may have fixed it."""
        parked = flow.notes.get("parked") if is_parked(flow) else None
        by = parked.get("by") if isinstance(parked, dict) else None
        return by in ("drift", "crashes") and flow.ended_at < self._began

    async def tell_damage(self, run_id: str, flow: str, error: Exception) -> None:
        """Report a run with a damaged log, and skip it for a while without further reports."""
        if self.memory.is_left_alone(run_id):
            return
        self.memory.leave_alone(run_id)
        _logger.error("run %r can't continue: %s", run_id, error, extra={"run_id": run_id})
        names: dict[str, Any] = {"run_id": run_id, "step_id": FLOW, "name": flow}
        await tell(self.on_event, StepEvent(type="run:crash", attempt=1, error=error, **names))

    @asynccontextmanager
    async def place_for(self, visit: Visit, limit: Limit) -> AsyncIterator[None]:
        """Hold a place of a limit. While a visit waits for one, another may begin."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.places.one(limit))
            except RunBusy:
                if len(self._waiting) >= _MANY * self.settings.concurrency:
                    # Its wake-up shows again. Skip the flow for a while, or the worker would take nothing but such runs.
                    self._full[visit.wakeup.flow] = self.clock.monotonic() + self.settings.poll
                    raise
                self._waiting.add(visit)
                self._changed.set()
                try:
                    await stack.enter_async_context(self.places.next(limit, lambda: self._alone is not None))
                finally:
                    self._waiting.discard(visit)
            yield

    async def isolate(self, visit: Visit) -> bool:
        """Drive only this run, because its processes keep dying. Return False if that is impossible now."""
        patience = _PATIENCE * self.settings.visibility_timeout if self._main is not None else 0  # one round ends soon
        waiting = self.memory.seconds_waiting(visit.run_id)
        if self._alone is not None or (len(self._visits) > 1 and waiting < patience):
            return False
        self._alone = visit
        self._waiting.add(visit)
        try:
            while others := [task for task, each in self._tasks.items() if each is not visit]:
                await asyncio.wait(others)
        finally:
            self._waiting.discard(visit)
        self.memory.end_wait(visit.run_id)
        return True
