"""State shared by all steps and waits of one run: its log, its lock, its clock, and what is running."""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from weakref import ref

from durable_core._calls.functions import Identity
from durable_core._log.cancelling import cancellation
from durable_core._log.chain import CANCEL, FLOW, decided, new_entry
from durable_core._log.lock import RunLock, driven_elsewhere
from durable_core._log.news import news_of
from durable_core._log.runlog import RunLog
from durable_core._system.faces import Home, asked_at
from durable_core._system.waits import answered, to_the_end
from durable_core.clock import Clock
from durable_core.errors import DeadlinePassed, DurableError, RunCancelled, RunSuspended, StepDrift
from durable_core.events import EventType, OnEvent, StepEvent, ask_to_carry, is_logged, tell
from durable_core.record import Kind, StepError, StepRecord
from durable_core.store import Store, polling_of

from .driver import ALONE, Driver, Replay
from .ending import Answer, leaves
from .race import admitted, is_within

if TYPE_CHECKING:
    from .looking import Listener

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

_POLL_SECONDS: Final = 2.0
_ENDS_ATTEMPT: Final = frozenset({"step:retry", "step:success", "step:failure", "step:stop"})
_logger: Final = logging.getLogger("durable_core")


def poll_seconds(store: Store) -> float:
    """Return the seconds between two looks of a run into its store for the acts of others."""
    polling = polling_of(store)
    return _POLL_SECONDS if polling is None else polling.poll_seconds


class Run:
    """One run, as seen by one runner."""

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
        self.face: Callable[[], Any] = lambda: None
        """Returns the user's `Runner`, while it exists."""
        self.home: Home | None = None
        """The loop for blocking calls of the run: the one on which it was entered; None for that of `durable_core.sync`."""
        self.clock: Final = clock
        self.log: Final = RunLog(store, run_id, clock, store_timeout)
        self.lock: Final = RunLock(store, run_id, clock, lock_wait)
        self.wait_limit: Final = wait_limit
        self.on_event: Final = on_event
        self.on_drift: Final = on_drift

        self.loading: Final = asyncio.Lock()
        """Held while the log is read or cleared. Steps that begin meanwhile wait."""
        self.loaded = False
        self.calls: Final[dict[str, Identity]] = {}
        """The call for which each id was used on this runner."""
        self.passed_over: Final[set[str]] = set()
        """Ids that losers of a race used in an earlier process, including all ids below them. They don't begin again."""

        self.running: Final[dict[str, asyncio.Task[object] | None]] = {}
        """The running steps and their tasks. While there is one, no wait suspends the run, and the runner isn't closed."""
        self.delayed: Final[set[str]] = set()
        """Running steps that wait for their next attempt or for a child. They don't prevent a suspension."""
        self.waiting: Final[dict[Listener, None]] = {}
        """The waits in progress,"""
        self.named: Final[set[Listener]] = set()
        """and those that the suspension already names."""
        self._arriving = 0
        """The number of waits that ask their store or a handler for something, and are not among those in progress."""
        self._replaying = 0
        """The number of handlers that are getting a replay's event."""
        self._replayed: Final = asyncio.Event()
        """Set whenever one of them has returned, which may take a while."""
        self._end: asyncio.Future[None] | None = None
        """Done when the next step ends, if something waits for that."""
        self.under_way: Final[dict[str, asyncio.Future[None]]] = {}
        """The races and maps in progress, each with a future that is done when it ends."""
        self.published: Final[dict[str, int]] = {}
        """The number of entries that this runner has published under each id."""
        self.publishing: Final = asyncio.Lock()
        """Held while an entry is published, because the next one must follow it."""
        self.suspended: RunSuspended | None = None
        """The exception with which a wait suspended the run. Every later step raises it again."""

        self.news: Final = news_of(run_id)
        """The acts of others in this process on the run."""
        self._seen = 0
        """The number of acts that the last look for a cancellation saw."""
        self._poll_seconds: Final = poll_seconds(store)
        self._next_poll = 0.0

        self.flow: StepRecord | None = None
        """The entry of `$flow` with which this runner drives the run; None if it drives no flow."""
        self.deadline: datetime | None = None
        """The deadline of the whole run."""
        self.told = False
        """True if `RunCancelled` was raised in the flow."""
        self.told_at: Final[dict[str, None]] = {}
        """The steps and waits that raised it."""
        self.undoing: Final[set[str]] = set()
        """The steps with `when_cancelled=True`."""
        self.trying: Final[dict[str, int]] = {}
        """The attempts whose start handlers got, but not yet their end."""
        self.carried: dict[str, str] | None = None
        """What handlers recorded with the current visit; None if they got its end, or no visit has begun."""
        self._answers: Final[list[tuple[str, Callable[[], BaseException | None]]]] = []
        """The steps that the flow called while it handled an exception. The exception isn't kept alive."""
        self.outside: frozenset[int] = frozenset()
        """The ids of exceptions that were being handled where the flow was called, so they aren't the flow's own."""
        self.driver: Driver = ALONE
        """The driver of the run and its children."""
        self.replay: Replay | None = None
        """Set if the run is only replayed to check today's code against its log. No step's function is called then."""
        self.is_child = False
        """True if a step of another run drives it here. That step notifies waits and suspends with it."""
        self.limits: frozenset[str] = frozenset()
        """The names of the limits in which a place is taken for the run."""
        self.children: Final[dict[str, Any]] = {}
        """The flows of the children that were called, by their run ids."""
        self.asked: Final[set[str]] = set()
        """The run ids of children that were started without waiting for them."""

    async def enter(self) -> None:
        """Take the lock, then read the log."""
        await self.lock.__aenter__()
        try:
            self.home = Home(asyncio.get_running_loop(), os.getpid())
            self.suspended = None
            await self.load(again=True)
        except BaseException:
            await to_the_end(self.lock.__aexit__(None, None, None))
            raise
        if self.log:
            _logger.info("resuming run %r, with %d recorded step(s)", self.id, len(self.log), extra={"run_id": self.id})

    async def leave(self, *, cancel: bool = False) -> None:
        """Prevent further steps, wait for the running ones, and release the lock.

        `cancel` them first if a cancellation or an interrupt ends the program; one that comes meanwhile does the same.
        """
        self.lock.close()
        self.news.wake()  # ends waits that nobody awaits any more, and notifies those who wait for the end of this run
        if cancel:
            self._cancel_steps()
        await to_the_end(self._leave(), on_cancel=self._cancel_steps)

    async def _leave(self) -> None:
        try:
            idle = False
            while not idle:
                try:
                    await self.idle()
                    idle = True
                except asyncio.CancelledError:  # by the loop, which shuts down and cancels its tasks once
                    self._cancel_steps()
            await self.log.settle_if_possible()
        finally:
            await self.lock.__aexit__(None, None, None)

    def _cancel_steps(self) -> None:
        """Cancel each running step once. A scope that cancels on every turn would prevent it from recording its outcome."""
        for task in self.running.values():
            if task is not None and not task.cancelling():
                task.cancel()

    def forget(self) -> None:
        """Forget the log, because the run is about to be cleared, and read it again later."""
        self.log.forget()
        self.loaded = False
        self._forget_calls()
        self.suspended = None

    def refuse_reset(self) -> None:
        """Raise `DurableError` while anything runs or waits. Its outcome would be lost, or be recorded in the cleared run."""
        if self.running or self.waiting:
            busy = ", ".join(map(repr, [*self.running, *(each.step_id for each in self.waiting)]))
            raise DurableError(f"run {self.id!r} can't be reset while these steps run: {busy}")

    async def load(self, *, again: bool = False) -> None:
        """Read the log, once."""
        async with self.loading:
            if again or not self.loaded:
                self.log.load(await self._ask(answered(self.store.list(self.id))))
                self.loaded = True

    async def ready(self) -> None:
        """Read the log, append outcomes that the store had not accepted, and raise if this runner can't continue."""
        if not self.loaded:
            await self.load()
        if self.log.kept:
            await self.log.settle()
        if self.suspended is None and self.driver.hands_back():
            self.suspended = RunSuspended(self.id, waiting_for=(), until=None)  # others continue it
        if self.suspended is not None:
            raise self.suspended

    def check(self, *, undoes: bool = False) -> None:
        """Raise if nothing new may begin, as far as is known: the lock is lost or the run is cancelled. Works from any thread.

        What `undoes` something begins in a cancelled run too.
        """
        self.lock.check()
        if self.log.cancelled is not None and not undoes:
            self.told = True
            raise RunCancelled(self.log.cancelled)

    async def begin(self, *, undoes: bool = False) -> None:
        """Raise if nothing new may begin, after a look for the run's cancellation if that is due."""
        await self.poll(undoes=undoes)
        self.check(undoes=undoes)

    async def poll(self, *, undoes: bool = False) -> None:
        """Look for the run's cancellation if that is due: every few seconds, and at once when somebody acted on the run.

        In a contender of a race, it first waits until that contender may begin something new.
        """
        await admitted()
        if self.clock.monotonic() >= self._next_poll or self.has_news or self.is_late:
            self.check(undoes=undoes)
            await self.look_for_cancellation()

    @property
    def has_news(self) -> bool:
        """True if somebody in this process acted on the run since the last look."""
        return self._seen != self.news.count

    @property
    def cancelled_by(self) -> str:
        """The step whose entry asks the run to stop: `$flow`, or `$cancel` if the run has no flow."""
        return CANCEL if self.flow is None else FLOW

    @property
    def is_late(self) -> bool:
        """True if the deadline of the whole run has passed, and nobody has cancelled it yet."""
        return self.deadline is not None and self.log.cancelled is None and self.clock.now() >= self.deadline

    async def look_for_cancellation(self) -> None:
        """Read from the store whether somebody cancelled the run, and cancel it if its deadline has passed.

        Raises `LockLost` if another runner now drives the run, because this one was frozen for longer than its lease.
        """
        newest = await self._ask(self.log.look(self.cancelled_by))
        if self.flow is None or newest is None:
            return
        if newest.revision > self.flow.revision and not decided(newest) and newest.id != self.flow.id:
            if self.log.cancelled is None:
                raise driven_elsewhere(self.id)
            self.flow = newest
        if self.is_late:
            assert self.deadline is not None
            passed = DeadlinePassed(f"its time was over at {self.deadline.isoformat(timespec='seconds')}")
            if (request := cancellation(self.flow, self.clock.now(), f"DeadlinePassed: {passed}", None)) is not None:
                self.flow = await self.log.claim(request)

    def drive(self, flow: StepRecord, deadline: datetime | None) -> None:
        """Begin to drive the run's flow, with this entry. Its function and its steps are called again."""
        self.flow, self.deadline = flow, deadline
        self.suspended, self.told = None, False
        self.told_at.clear()
        self._answers.clear()
        self._forget_calls()

    def _forget_calls(self) -> None:
        self.calls.clear()
        self.passed_over.clear()
        self.published.clear()

    @contextmanager
    def telling(self, step_id: str) -> Iterator[None]:
        """Note the steps at which the flow learns of its cancellation."""
        try:
            yield
        except RunCancelled:
            self.told_at[step_id] = None
            raise

    def tell_again(self, step_id: str) -> None:
        """Raise `RunCancelled` if an earlier run raised it here and undid something, though the step now has an outcome."""
        if step_id in self.log.told_at:
            self.check()

    def answer(self, step_id: str, error: BaseException) -> str | None:
        """Note that the flow called a step while it handled its own exception; return that exception for the step's entry."""
        if not isinstance(error, Exception) or id(error) in self.outside:
            return None
        # `except*` handles a new group, whose members are those of the group that leaves.
        self._answers.extend((step_id, _reference(each)) for each in leaves(error))
        return str(StepError.from_exception(error))

    @property
    def answers(self) -> list[Answer]:
        """The steps that the flow called while it handled an exception that still exists."""
        return [Answer(step_id, error) for step_id, found in self._answers if (error := found()) is not None]

    async def refuse_unanswered(self, step_id: str) -> None:
        """Raise `StepDrift` for a new step if an earlier run answered an exception that this flow no longer raises.

        Work that was undone can't be continued. The run was killed before that failure was recorded, and then repaired.
        """
        missing: list[str] = []
        for _ in range(3):  # a sibling of the same gather may be about to call it
            known = len(self.calls)
            missing = [answer for answer in self.log.answers if not self.asked_for(answer)]
            if not missing:
                return
            while True:
                await self.turn()
                if known == len(self.calls):
                    break
                known = len(self.calls)
        raise StepDrift(
            f"run {self.id!r} called the new step {step_id!r}, but not step {missing[0]!r}, with which it answered an exception"
            " before: what was undone can't be continued. To start again from before it: durable_core.control.fork("
            f"store, {self.id!r}, new_run_id, before={missing[0]!r})",
            step_id=missing[0],
        )

    async def _ask(self, ask: Awaitable[T]) -> T:
        """Read something from the store that also shows a cancellation, so that no other look is needed for a while."""
        self._next_poll = self.clock.monotonic() + self._poll_seconds
        seen = self.news.count
        answer = await ask
        self._seen = max(self._seen, seen)  # an earlier look may be answered later
        return answer

    def entry(self, step_id: str, latest: StepRecord | None, **fields: Any) -> StepRecord:
        """Return the entry after `latest`, or the step's first one, with these fields. It begins and ends now."""
        return new_entry(self.id, step_id, self.clock.now(), latest, **fields)

    def end_step(self, step_id: str) -> None:
        """Remove the step from the running ones, and wake what waits for a step to end."""
        del self.running[step_id]
        self.wake()

    def wake(self) -> None:
        """Wake what waits for a step to end. A wait that ended counts too."""
        end, self._end = self._end, None
        if end is not None and not end.done():
            end.set_result(None)

    @property
    def is_busy(self) -> bool:
        """True if a step's function is running."""
        return len(self.running) > len(self.delayed)

    @property
    def can_suspend(self) -> bool:
        """Whether all that goes on are waits, so that a suspension can name each."""
        return not self.is_busy and not self._arriving

    async def arriving(self, asking: Awaitable[T]) -> T:
        """Await what a wait asks before it is one of those that go on, or after that: no other may suspend the run meanwhile."""
        self._arriving += 1
        try:
            return await asking
        finally:
            self._arriving -= 1
            self.wake()

    @contextmanager
    def delaying(self, step_id: str) -> Iterator[None]:
        """Let a running step wait without preventing a suspension."""
        self.delayed.add(step_id)
        self.wake()
        try:
            yield
        finally:
            self.delayed.discard(step_id)

    def end_of_waiting(self) -> float | None:
        """Return the monotonic time at which a wait that begins now suspends the run; None for never."""
        return None if self.wait_limit is None else self.clock.monotonic() + self.wait_limit

    async def idle(self) -> None:
        """Wait until no step is running."""
        await asyncio.sleep(0)  # a sibling of the same gather may be about to begin
        while self.is_busy:
            await self.an_end()
            await asyncio.sleep(0)

    def an_end(self) -> Coroutine[Any, Any, object]:
        """Wait until one of the running steps ends, from this call on; the wait itself may begin a turn of the loop later."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return asyncio.wait((self._end,))

    @asynccontextmanager
    async def alone(self, step_id: str) -> AsyncIterator[None]:
        """Run a race or map that was called twice only once. The second call finds what the first recorded."""
        await self.ready()
        while (other := self.under_way.get(step_id)) is not None:
            await asyncio.wait((other,))
            await self.ready()
        mine = self.under_way[step_id] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self.under_way[step_id]
            mine.set_result(None)

    def asked_for(self, step_id: str) -> bool:
        """Return True if the flow called the step, now or in a race that another contender had won."""
        return step_id in self.calls or is_within(step_id, self.passed_over)

    def check_kind(self, record: StepRecord, kind: Kind) -> None:
        """Raise `StepDrift` if an earlier run recorded something of another kind under the id."""
        if record.kind != kind:
            drift = StepDrift(
                f"{record.step_id!r} of run {self.id!r} was recorded as {record.kind!r}, and is now called as {kind!r}; give it"
                " another id",
                step_id=record.step_id,
            )
            if self.replay is not None:
                self.replay.drifts("kind", drift)
            raise drift

    def unasked(self) -> list[str]:
        """Return the recorded steps that the flow has not called, because they were renamed or removed."""
        unasked = [step_id for step_id in self.log if not self.asked_for(step_id) and not step_id.startswith("$")]
        # An event may be sent even if nothing waits for it.
        return [each for each in unasked if (step := self.log.latest(each)) and (step.kind != "event" or step.revision)]

    def tell_drift(self, message: str, step_id: str | None = None, *, stacklevel: int = 4) -> None:
        """Report that the code doesn't match the log: as a warning or an error, according to `on_drift`."""
        drift = StepDrift(message, step_id=step_id)
        if self.replay is not None:
            self.replay.drifts("arguments", drift)
        elif self.on_drift == "raise":
            raise drift
        elif (place := asked_at.get()) is None:
            warnings.warn(drift, stacklevel=stacklevel)
        else:
            warnings.warn_explicit(drift, StepDrift, *place)

    async def emit(
        self, type_: EventType, step: Any, attempt: int = 0, error: BaseException | None = None, delay: float | None = None
    ) -> None:
        """Log what happened to a step, and send it to the handlers. The step is given as a call or as a record."""
        if self.on_event is not None or is_logged(type_):
            record = step if isinstance(step, StepRecord) else None
            attempt = attempt or step.attempt
            if type_ in _ENDS_ATTEMPT:
                self.trying.pop(step.step_id, None)
            ids = {"run_id": self.id, "step_id": step.step_id, "name": step.name}
            told: dict[str, Any] = {"record": record, "error": error, "delay": delay, "at": self.clock.now()}
            event = StepEvent(type=type_, attempt=attempt, **ids, **told)
            self._replaying += type_ == "step:replay"
            try:
                await tell(self.on_event, event)
                if type_ == "step:start":
                    self.trying[step.step_id] = attempt
            finally:
                self._replaying -= type_ == "step:replay"
                self._replayed.set()

    async def turn(self) -> None:
        """Let others run for a turn of the loop, or until handlers have returned if they are getting replay events."""
        await asyncio.sleep(0)
        while self._replaying:
            self._replayed.clear()
            await self._replayed.wait()

    async def emit_stop(self, step: Any, error: BaseException | None = None) -> None:
        """Emit the end of an attempt that has no outcome, if handlers got its start and no end."""
        if step.step_id in self.trying and not isinstance(error, GeneratorExit):  # a coroutine that is closed can't wait
            await self.emit("step:stop", step, self.trying[step.step_id], error=error)

    async def visit(self, name: str, latest: StepRecord | None) -> dict[str, Any]:
        """Emit, once for each visit, that it is about to begin; return what handlers want in the note of its entry."""
        if self.on_event is not None and self.carried is None:
            event = StepEvent(
                type="run:visit", run_id=self.id, step_id=FLOW, name=name, attempt=1, record=latest, at=self.clock.now()
            )
            self.carried = await ask_to_carry(self.on_event, event)
        return {"carried": self.carried} if self.carried else {}

    async def emit_visited(self, type_: EventType, flow: StepRecord, error: BaseException | None = None) -> None:
        """Emit the end of a visit."""
        self.carried = None
        await self.emit(type_, flow, error=error)

    async def emit_outcome(self, record: StepRecord, error: BaseException | None = None) -> None:
        """Emit an outcome that was just recorded."""
        await self.emit("step:success" if record.status == "success" else "step:failure", record, error=error)


def _reference(error: E) -> Callable[[], E | None]:
    """Return a weak reference to an exception, because its traceback would keep frames and all their objects alive."""
    try:
        return ref(error)
    except TypeError:  # builtin exceptions have no weak references
        return lambda: error
