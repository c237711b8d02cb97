"""What everything that goes on in one run shares: its log, its lock, its clock, and who is at work."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any, Final, Literal, TypeGuard

from durable_core._calls.functions import Identity
from durable_core._log.lock import RunLock
from durable_core._log.runlog import CANCEL, OUTCOMES, RunLog
from durable_core.clock import Clock, SystemClock
from durable_core.context import StepContext
from durable_core.errors import DurableError, RunCancelled, RunSuspended, StepDrift
from durable_core.events import EventType, OnEvent, StepEvent, deliver
from durable_core.record import Kind, StepRecord
from durable_core.store import Store

FLOW: Final = "$flow"
_LOOKING: Final = 0.01  # the share of its time that a process may spend on looking for cancellations,
_LOOK_WITHIN: Final = 2.0  # and yet, however slow the store, each run looks every so many seconds


class _Looking:
    """What the runs that share a clock spend on looking for their cancellations."""

    pause = 0.0
    """Before this time nobody looks who has looked lately."""


_on_the_system_clock: Final = _Looking()
_announced = 0  # cancellations, by this process


def announce_cancellation() -> None:
    """Let every run in this process look before its next step."""
    global _announced
    _announced += 1


class Run:
    """One run, as one runner works on it."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        clock: Clock,
        lock_wait: float,
        store_timeout: float,
        wait_limit: float | None,
        on_event: OnEvent | None,
        on_drift: Literal["warn", "raise"],
    ) -> None:
        self.store: Final = store
        self.id: Final = run_id
        self.clock: Final = clock
        self.log: Final = RunLog(store, clock, store_timeout)
        self.lock: Final = RunLock(store, run_id, clock, lock_wait)
        self.wait_limit: Final = wait_limit
        self.on_event: Final = on_event
        self.running: Final[dict[str, asyncio.Task[Any] | None]] = {}
        """The steps whose functions are running, and the tasks that run them."""
        self._ended: Final[dict[str, asyncio.Future[None]]] = {}
        """What is waiting for some of them to end."""
        self.waiting: Final[list[StepRecord]] = []
        self.suspended: RunSuspended | None = None
        self.calls: Final[dict[str, Identity]] = {}
        """What each id was used for on this runner."""
        self._on_drift: Final = on_drift
        self.loading: Final = asyncio.Lock()
        """Held while the log is read or cleared: steps that begin meanwhile wait."""
        self.loaded = False
        self._looking: Final = _on_the_system_clock if type(clock) is SystemClock else _Looking()
        self._look_from = self._look_by = 0.0
        self._announced = 0

    async def enter(self) -> None:
        """Take the lock, then read the log."""
        await self.lock.__aenter__()
        try:
            self.suspended = None
            await self.load(again=True)
        except BaseException:
            await self.lock.__aexit__(None, None, None)
            raise

    async def leave(self, *, stopped: bool = False) -> None:
        """Let no further step start, wait for those that run, and give the lock back.

        It cancels them first where the program was `stopped`, by a cancellation or an interrupt, before this or meanwhile.
        """
        self.lock.close()
        cancelled: asyncio.CancelledError | None = None
        if stopped:
            self._cancel_steps()
        try:
            while True:
                try:
                    if await self.idle():
                        break
                except asyncio.CancelledError as cancellation:
                    cancelled = cancellation
                    self._cancel_steps()
            await self.log.settle_if_possible()
        finally:
            await self.lock.__aexit__(None, None, None)
        if cancelled is not None:
            raise cancelled

    def _cancel_steps(self) -> None:
        for task in self.running.values():
            if task is not None:
                task.cancel()

    def forget(self) -> None:
        """Begin anew with what the store then holds: the run is about to be cleared."""
        self.log.forget()
        self.loaded = False
        self.calls.clear()
        self.suspended = None

    def refuse_reset(self) -> None:
        """Raise `DurableError` while anything runs or waits: its outcome would be lost, or land in the cleared run."""
        if self.running or self.waiting:
            busy = ", ".join(map(repr, [*self.running, *(record.step_id for record in self.waiting)]))
            raise DurableError(f"run {self.id!r} can't be reset while it is at {busy}")

    async def load(self, *, again: bool = False) -> None:
        """Read the log, once."""
        async with self.loading:
            if again or not self.loaded:
                began, announced = self.clock.monotonic(), _announced
                self.log.load(await self.store.list(self.id))
                self._looked(began, announced)
                self.loaded = True

    async def ready(self) -> None:
        """Read the log and append what the store had not taken; raise what keeps this runner from going on."""
        if not self.loaded:
            await self.load()
        if self.log.kept:
            await self.log.settle()
        if self.suspended is not None:
            raise self.suspended

    async def begin(self) -> None:
        """Raise what keeps anything new from beginning: a lock that was lost, or the run's cancellation."""
        if self.must_look(self.clock.monotonic()):
            await self.look(CANCEL)
            self.must_look(self.clock.monotonic())

    def must_look(self, now: float) -> bool:
        """Raise what is known to keep anything new from beginning; tell whether it is time to look for a cancellation."""
        self.lock.lease.check()
        if self.log.cancelled is not None:
            raise RunCancelled(self.log.cancelled)
        due = now >= self._look_from and now >= self._looking.pause
        return due or now >= self._look_by or self._announced != _announced

    async def look(self, step_id: str) -> StepRecord | None:
        """Ask the store for the step's newest entry, which another process may have appended."""
        if step_id != CANCEL:
            record = await self.log.newest(self.id, step_id)
        else:
            began, announced = self.clock.monotonic(), _announced
            self._look_by = self._looking.pause = began + _LOOK_WITHIN  # or all would begin to look at once
            record = await self.log.newest(self.id, step_id)
            self._looking.pause = self._looked(began, announced)
        if record is not None:
            self.log.add(record)
        return record

    def _looked(self, began: float, announced: int) -> float:
        """Note what was true when a look began, and return when the next is due; an earlier one may have been overtaken."""
        now = self.clock.monotonic()
        self._announced, self._look_by = max(self._announced, announced), began + _LOOK_WITHIN
        self._look_from = now + min((now - began) / _LOOKING, _LOOK_WITHIN)
        return self._look_from

    def context(self, step_id: str, attempt: int) -> StepContext:
        """Return what the function of a step may know of it."""
        return StepContext(self.id, step_id, attempt, self, self.log.reopened.get(step_id, 0))

    def stopped(self, step_id: str) -> None:
        """Take the step off those that run, and wake who waits for that."""
        del self.running[step_id]
        if self._ended:
            ended = self._ended.pop(step_id, None)
            if ended is not None:
                ended.set_result(None)

    async def idle(self) -> bool:
        """Return False after one of the running steps ended, True if there was none."""
        await asyncio.sleep(0)  # a sibling of the same gather may be about to begin
        if not self.running:
            return True
        await self.ended(next(iter(self.running)))
        return False

    async def ended(self, step_id: str) -> None:
        """Wait until the step's function is not running any more."""
        if step_id not in self._ended:
            self._ended[step_id] = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._ended[step_id],))

    def check_kind(self, record: StepRecord, kind: Kind) -> None:
        """Raise `StepDrift` if an earlier run recorded something of another kind under the id."""
        if record.kind != kind:
            raise StepDrift(
                f"{record.step_id!r} of run {self.id!r} was recorded by an earlier run as {record.kind!r}, and is now asked for"
                f" as {kind!r}; give it another id"
            )

    def drifted(self, record: StepRecord) -> None:
        """Tell that the arguments are not those that were recorded."""
        drift = StepDrift(
            f"step {record.step_id!r} of run {self.id!r} was recorded with other arguments than it is now called with; the"
            " recorded outcome is used. Give it another id to run it anew"
        )
        if self._on_drift == "raise":
            raise drift
        warnings.warn(drift, stacklevel=4)

    async def emit(
        self,
        type_: EventType,
        step_id: str,
        name: str,
        attempt: int,
        *,
        record: StepRecord | None = None,
        error: Exception | None = None,
        delay: float | None = None,
    ) -> None:
        """Tell the listener, if there is one."""
        if self.on_event is not None:
            event = StepEvent(
                type=type_,
                run_id=self.id,
                step_id=step_id,
                name=name,
                attempt=attempt,
                record=record,
                error=error,
                delay=delay,
            )
            await deliver(self.on_event, event)

    async def emit_record(self, type_: EventType, record: StepRecord, error: Exception | None = None) -> None:
        """Tell the listener of a recorded entry."""
        if self.on_event is not None:
            await self.emit(type_, record.step_id, record.name, record.attempt, record=record, error=error)


def decided(record: StepRecord | None) -> TypeGuard[StepRecord]:
    """Tell whether an entry is an outcome."""
    return record is not None and record.status in OUTCOMES
