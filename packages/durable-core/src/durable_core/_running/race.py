"""A race of contenders, as the steps and waits inside it know it: whether it is lost, and whether all contenders wait."""

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
_STILL: Final = 5  # turns in which nothing more is asked for: a contender may have steps side by side, one of them at its gate
_LOOK_SECONDS: Final = 0.02  # between two looks at which contenders are in a thread
_THREAD_TURN: Final = 0.001  # seconds that each turn is longer than the one before, where a thread replays it

LOSING: Final = (StepFailed, SomeFailed)
"""What a contender loses by."""

_here: Final[ContextVar[Contender | None]] = ContextVar("durable_contender", default=None)


class Wait(msgspec.Struct, frozen=True):
    """What a run waits for, as it is recorded first."""

    step_id: str
    name: str
    kind: Kind
    until: datetime | None = None
    note: Any = None
    fingerprint: str | None = None
    end: Callable[[], Awaitable[None]] | None = None
    """Of a child what cancels it and drives it to its end, where another contender of a race wins."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "step_id", check_own_id("step_id", self.step_id))
        if not isinstance(self.name, str):
            raise TypeError(f"name of {self.kind} {self.step_id!r} must be a str, not {self.name!r}")


class Contender:
    """One of the functions that race, and what it has asked for."""

    def __init__(self, race: Race, name: str, fn: Callable[[], Awaitable[Any]]) -> None:
        self.race: Final = race
        self.name: Final = name
        self.is_out = False
        """Whether it may begin nothing more: another has won, or the race was given up."""
        self.gate: Final = asyncio.Event()
        """Set once it may begin something new."""
        self.is_at_gate = False
        self.step_ids: Final[dict[str, None]] = {}
        """The steps and waits that it asked for."""
        self.waits: Final[dict[str, Wait]] = {}
        """The waits that it asked for while they had no outcome."""
        self.waiting = 0
        """How many of its waits go on now."""
        self.in_threads = 0
        """How many of its steps are in threads now, which can't be cancelled."""
        self._fn: Final = fn
        self.task: asyncio.Task[Any]

    def start(self) -> None:
        """Begin to run it, in a task of its own."""

        async def contend() -> Any:
            _here.set(self)
            return await called(self.race.step_id, self.name, self._fn)

        self.task = asyncio.create_task(contend())
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.race.ended.append(self)
        self.race.settle()
        if not task.cancelled():
            task.exception()  # which nobody may ask for any more

    @property
    def has_won(self) -> bool:
        """Whether it has returned."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    @property
    def has_lost(self) -> bool:
        """Whether it ended by what a contender loses by."""
        return self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), LOSING)

    @property
    def was_told(self) -> bool:
        """Whether it ended because the run is to stop."""
        return self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), RunCancelled)

    def outward(self, run: Run | None = None) -> Iterator[Contender]:
        """Yield this one, and those of outer races that it is part of; of one run alone, if that is not None.

        A flow that a contender calls is another run, whose steps run inside that contender.
        """
        each: Contender | None = self
        while each is not None:
            if run is None or each.race.run is run:
                yield each
            each = each.race.outer

    def count_wait(self, more: int) -> None:
        """Note that a wait of this contender began, or ended."""
        self.waiting += more
        self.race.settle()

    async def admitted(self) -> None:
        """Wait until the race has begun in earnest. Raises `CancelledError` in a contender that is out."""
        for each in self.outward():
            each.is_at_gate = True
            if not each.gate.is_set() and not each.is_out:
                await each.gate.wait()
            if each.is_out:
                raise asyncio.CancelledError(f"contender {each.name!r} of {each.race.step_id!r} is out of the race")


class Race:
    """Some contenders, of which the first that succeeds wins."""

    def __init__(self, run: Run, step_id: str, fns: Mapping[str, Callable[[], Awaitable[Any]]]) -> None:
        self.step_id: Final = step_id
        self.outer: Final = _here.get()
        """The contender of another race in which this one takes place."""
        self.run: Final = run
        self._task: Final = asyncio.current_task()
        self._stands = False
        self._is_over = True
        self.contenders: Final = [Contender(self, name, fn) for name, fn in fns.items()]
        self.ended: Final[list[Contender]] = []
        """Those that returned or raised, in the order of time."""

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Be one of the run's running steps, so that no wait suspends the run, but for times in which all contenders wait."""
        self._is_over = self._stands = False
        self.run.running[self.step_id] = self._task
        try:
            yield
        finally:
            self._is_over = True
            self.settle()
            self.run.end_step(self.step_id)

    def settle(self) -> None:
        """Stand still if all contenders that are left wait, so that the run may be suspended; go on if one doesn't."""
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
        """Begin to run the contenders. None begins anything new while one may still win by what is recorded of it.

        Then each has a turn of the loop to itself, so that of several that are done at once only the first has happened.
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
        """Let contenders that lost replay what is recorded of them, and nothing else, so that their children are known."""
        for contender in self.contenders:
            contender.is_out = True
            contender.start()
        for turn in range(_TURNS):
            await self._turn(turn)
        for contender in self.contenders:
            contender.task.cancel()
        await self.end()

    async def _turn(self, turn: int) -> None:
        """Let others go on for a turn of the loop, or for longer each time where a contender is in a thread."""
        await self.run.turn()
        if any(each.in_threads for each in self.contenders):
            await asyncio.sleep(_THREAD_TURN * turn)

    def call_off(self, contenders: Sequence[Contender]) -> None:
        """Cancel contenders, each once, and let them begin nothing more."""
        for contender in contenders:
            if not contender.is_out and not contender.task.done():
                contender.task.cancel()
            contender.is_out = True

    async def end(self, *, wait_for_threads: bool = False) -> None:
        """Wait until the contenders have ended, but for those that are in a thread."""
        if self._going_on(wait_for_threads):
            await to_the_end(self._end(wait_for_threads))

    async def _end(self, wait_for_threads: bool) -> None:
        while tasks := self._going_on(wait_for_threads):
            await asyncio.wait(tasks, timeout=_LOOK_SECONDS)  # meanwhile one may be in a thread again, which nothing stops

    def _going_on(self, wait_for_threads: bool) -> list[asyncio.Task[Any]]:
        left = [each for each in self.contenders if wait_for_threads or not each.in_threads]
        return [each.task for each in left if not each.task.done()]


def called(step_id: str, name: str, fn: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
    """Call a contender. Raises `TypeError` for one that returns nothing to await."""
    awaitable = fn()
    if not isawaitable(awaitable):
        raise TypeError(
            f"contender {name!r} of {step_id!r} returned {awaitable!r}, which can't be awaited; write"
            f" {name}=lambda: runner.step(…), or give an async function without arguments"
        )
    return awaitable


def is_within(step_id: str, ids: Container[str]) -> bool:
    """Tell whether an id is one of `ids`, or begins with one of them and a slash."""
    while step_id:
        if step_id in ids:
            return True
        step_id = step_id.rpartition("/")[0]
    return False


def note_step(run: Run, step_id: str) -> None:
    """Note that the contender of the run which runs here, if one does, asks for a step or a wait."""
    if (here := _here.get()) is not None:
        for contender in here.outward(run):
            contender.step_ids[step_id] = None


def note_wait(run: Run, wait: Wait) -> None:
    """Note that the contender of the run which runs here, if one does, is about to wait: it is withdrawn if that one loses."""
    if (here := _here.get()) is not None:
        for contender in here.outward(run):
            contender.waits[wait.step_id] = wait


async def admitted() -> None:
    """Wait until the contender which runs here, if one does, may begin something new. Raises `CancelledError` if it lost."""
    if (here := _here.get()) is not None:
        await here.admitted()


@contextmanager
def waiting(run: Run, wait: Listener) -> Iterator[None]:
    """Be one of the waits of the run."""
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
    """Note that what the contender does here can't be cancelled.

    What is given notes with -1 that it can for a while, as when the thread waits for the loop, and with 1 that it can't again.
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
