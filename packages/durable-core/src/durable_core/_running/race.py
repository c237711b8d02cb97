"""A race of contenders, as seen by the steps and waits inside it: which contender has lost, and whether all of them wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_core._system.ids import check_own_id
from durable_core._system.waits import to_the_end
from durable_core.errors import RunCancelled, SomeFailed, StepFailed
from durable_core.record import Kind

if TYPE_CHECKING:
    from .looking import Listener
    from .run import Run

_TURNS: Final = 20  # of the loop, in which what is recorded has long replayed
_STILL: Final = 5  # turns without anything new: a contender may have steps side by side, one of them at its gate
_LOOK_SECONDS: Final = 0.02  # between two checks for contenders that are in a thread
_THREAD_TURN: Final = 0.001  # seconds by which each turn is longer than the one before, if a thread replays it

LOSING: Final = (StepFailed, SomeFailed)
"""The exceptions by which a contender loses."""

_here: Final[ContextVar[Contender | None]] = ContextVar("durable_contender", default=None)


class Wait(msgspec.Struct, frozen=True):
    """A wait of a run, as it is first recorded."""

    step_id: str
    name: str
    kind: Kind
    until: datetime | None = None
    note: Any = None
    fingerprint: str | None = None
    end: Callable[[], Awaitable[None]] | None = None
    """For a child: cancels it and drives it to its end if another contender wins."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "step_id", check_own_id("step_id", self.step_id))
        if not isinstance(self.name, str):
            raise TypeError(f"name of {self.kind} {self.step_id!r} must be a str, not {self.name!r}")


class Contender:
    """One of the racing functions, and the steps and waits that it asked for."""

    def __init__(self, race: Race, name: str, fn: Callable[[], Awaitable[Any]]) -> None:
        self.race: Final = race
        self.name: Final = name
        self.is_out = False
        """True if it may begin nothing more, because another has won or the race was given up."""
        self.gate: Final = asyncio.Event()
        """Set once it may begin something new."""
        self.is_at_gate = False
        self.step_ids: Final[dict[str, None]] = {}
        """The steps and waits that it asked for."""
        self.waits: Final[dict[str, Wait]] = {}
        """The waits that it asked for while they had no outcome."""
        self.waiting = 0
        """The number of its waits that are in progress."""
        self.in_threads = 0
        """The number of its steps in threads, which can't be cancelled."""
        self._fn: Final = fn
        self.task: asyncio.Task[Any]

    def start(self) -> None:
        """Start it in a task of its own."""

        async def contend() -> Any:
            _here.set(self)
            return await called(self.race.step_id, self.name, self._fn)

        self.task = asyncio.create_task(contend())
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.race.ended.append(self)
        self.race.settle()
        if self.has_won:
            self.gate.set()  # for tasks that it has made, and that go on
        if not task.cancelled():
            task.exception()  # which may never be awaited

    @property
    def has_won(self) -> bool:
        """True if it has returned."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    @property
    def has_lost(self) -> bool:
        """True if it ended with an exception by which a contender loses."""
        return self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), LOSING)

    @property
    def was_told(self) -> bool:
        """True if it ended because the run must stop."""
        return self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), RunCancelled)

    def outward(self, run: Run | None = None) -> Iterator[Contender]:
        """Yield this contender, and those of outer races around it; only those of one run, if that is not None.

        A flow that a contender calls is another run, whose steps run inside that contender.
        """
        each: Contender | None = self
        while each is not None:
            if run is None or each.race.run is run:
                yield each
            each = each.race.outer

    def count_wait(self, more: int) -> None:
        """Note that a wait of this contender began or ended."""
        self.waiting += more
        self.race.settle()

    async def admitted(self) -> None:
        """Wait until the race has really begun. Raises `CancelledError` in a contender that has lost."""
        for each in self.outward():
            each.is_at_gate = True
            if not each.gate.is_set() and not each.is_out:
                await each.gate.wait()
            if each.is_out:
                raise asyncio.CancelledError(f"contender {each.name!r} of {each.race.step_id!r} is out of the race")


class Race:
    """Contenders of which the first that succeeds wins."""

    def __init__(self, run: Run, step_id: str, fns: Mapping[str, Callable[[], Awaitable[Any]]]) -> None:
        self.step_id: Final = step_id
        self.outer: Final = _here.get()
        """The contender of another race inside which this race runs."""
        self.run: Final = run
        self._task: Final = asyncio.current_task()
        self._stands = False
        self._is_over = True
        self.contenders: Final = [Contender(self, name, fn) for name, fn in fns.items()]
        self.ended: Final[list[Contender]] = []
        """The contenders that returned or raised, in that order."""

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Count as a running step of the run, so that no wait suspends the run, except while all contenders wait."""
        self._is_over = self._stands = False
        self.run.running[self.step_id] = self._task
        try:
            yield
        finally:
            self._is_over = True
            self.settle()
            self.run.end_step(self.step_id)

    def settle(self) -> None:
        """Pause if all remaining contenders wait, so that the run may be suspended; resume if one doesn't."""
        left = [] if self._is_over else [each for each in self.contenders if not (each.has_lost or each.was_told)]
        stands = bool(left) and all(each.waiting for each in left)
        if stands == self._stands:
            return
        self._stands = stands
        if stands:
            self.run.end_step(self.step_id)
        else:
            self.run.running[self.step_id] = self._task
        if self.outer is not None and self.outer.race.run is self.run:
            self.outer.count_wait(1 if stands else -1)

    async def start(self) -> None:
        """Start the contenders. None begins anything new while one may still win by its recorded outcomes.

        After that, each gets its own turn of the loop, so that if several end immediately, only the first has had an effect.
        """
        for contender in self.contenders:
            contender.start()
        asked, still = -1, 0
        for turn in range(_TURNS):
            await self._turn(turn)
            still = still + 1 if asked == len(self.run.calls) else 0
            asked = len(self.run.calls)
            if still >= _STILL and all(each.is_at_gate or each.waiting or each.task.done() for each in self.contenders):
                break
        for contender in self.contenders:
            if any(each.task.done() and not each.has_lost for each in self.contenders):  # the race is over
                return
            contender.gate.set()
            await asyncio.sleep(0)

    async def look_for_children(self) -> None:
        """Let losers replay their recorded outcomes, and nothing else, so that their children are known."""
        for contender in self.contenders:
            contender.is_out = True
            contender.start()
        for turn in range(_TURNS):
            await self._turn(turn)
        for contender in self.contenders:
            contender.task.cancel()
        await self.end()

    async def _turn(self, turn: int) -> None:
        """Let others run for a turn of the loop, or longer each time if a contender is in a thread."""
        await self.run.turn()
        if any(each.in_threads for each in self.contenders):
            await asyncio.sleep(_THREAD_TURN * turn)

    def call_off(self, contenders: Sequence[Contender]) -> None:
        """Cancel contenders, each once, and prevent them from beginning anything more."""
        for contender in contenders:
            if not contender.is_out and not contender.task.done():
                contender.task.cancel()
            contender.is_out = True
            contender.gate.set()  # for tasks that it has made, and that are not cancelled with it

    async def end(self, *, wait_for_threads: bool = False) -> None:
        """Wait until the contenders have ended, except those in a thread."""
        if self._going_on(wait_for_threads):
            await to_the_end(self._end(wait_for_threads))

    async def _end(self, wait_for_threads: bool) -> None:
        while tasks := self._going_on(wait_for_threads):
            await asyncio.wait(tasks, timeout=_LOOK_SECONDS)  # meanwhile one may be in a thread again, and can't be stopped

    def _going_on(self, wait_for_threads: bool) -> list[asyncio.Task[Any]]:
        left = [each for each in self.contenders if wait_for_threads or not each.in_threads]
        return [each.task for each in left if not each.task.done()]


def called(step_id: str, name: str, fn: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    """Call a contender. Raises `TypeError` if it doesn't return an awaitable."""
    awaitable = fn()
    if not isawaitable(awaitable):
        raise TypeError(
            f"contender {name!r} of {step_id!r} returned {awaitable!r}, which can't be awaited; write"
            f" {name}=lambda: runner.step(…), or give an async function without arguments"
        )
    return awaitable


def is_within(step_id: str, ids: Container[str]) -> bool:
    """Return True if an id is one of `ids`, or begins with one of them and a slash."""
    while step_id:
        if step_id in ids:
            return True
        step_id = step_id.rpartition("/")[0]
    return False


def note_step(run: Run, step_id: str) -> None:
    """Note that the contender that runs here, if any, asks for a step or a wait."""
    if (here := _here.get()) is not None:
        for contender in here.outward(run):
            contender.step_ids[step_id] = None


def note_wait(run: Run, wait: Wait) -> None:
    """Note that the contender that runs here, if any, is about to wait. The wait is withdrawn if that contender loses."""
    if (here := _here.get()) is not None:
        for contender in here.outward(run):
            contender.waits[wait.step_id] = wait


async def admitted() -> None:
    """Wait until the contender that runs here, if any, may begin something new. Raises `CancelledError` if it lost."""
    if (here := _here.get()) is not None:
        await here.admitted()


@contextmanager
def waiting(run: Run, wait: Listener) -> Iterator[None]:
    """Count as one of the waits of the run."""
    here = _here.get()
    contender = None if here is None else next(here.outward(run), None)
    run.waiting[wait] = None
    if contender is not None:
        contender.count_wait(1)
    try:
        yield
    finally:
        del run.waiting[wait]
        run.named.discard(wait)
        run.wake()
        if contender is not None:
            contender.count_wait(-1)


@contextmanager
def in_thread() -> Iterator[Callable[[int], None]]:
    """Note that the contender is in a thread, where it can't be cancelled.

    Yields a function to note changes: -1 if it can be cancelled for a while, as when the thread waits for the loop, and then 1.
    """
    contenders = [] if (here := _here.get()) is None else [*here.outward()]

    def count(more: int) -> None:
        for contender in contenders:
            contender.in_threads += more

    count(1)
    try:
        yield count
    finally:
        count(-1)
