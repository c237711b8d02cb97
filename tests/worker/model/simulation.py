"""A simulated world: processes with clocks of their own on one store, in virtual time, killed and frozen at its calls.

Each call of the store is a point before and a point after it, at which a seeded generator of random numbers decides how long
it takes, and whether the process dies, freezes, or gets an error. Nothing runs in a thread, and a loop jumps to its next timer,
so an hour takes no time and the same seed gives the same history.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, TypeVar

from durable_core import StepRecord
from durable_core._log import news
from durable_core._system import waits
from durable_core.clock import Clock
from durable_core.context import current_step
from durable_core.errors import LockLost, RunBusy, StoreError
from durable_core.store import Holder, Lease, Store, WakeUp
from durable_core.stores.memory import MemoryStore

T = TypeVar("T")

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
LEASE: Final = 5.0
_TURNS: Final = 20_000  # of the loop at one moment, after which nobody sleeps any more


class Killed(BaseException):
    """The process is gone: whatever it still does reaches nobody."""


class Hot(BaseException):
    """Somebody works without end and lets no time pass."""


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine of a `MemoryStore` returns, which waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


class _Jump(selectors.SelectSelector):
    """Waits for nothing: time jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Hot("everything waits for ever")
        self._turns = 0 if timeout > 0 else self._turns + 1
        if self._turns > _TURNS:
            raise Hot(f"{_TURNS} turns of the loop without any time at {self.now:g} s")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self.set_exception_handler(lambda *_: None)  # tasks of killed processes end with `Killed`, which nobody awaits

    def time(self) -> float:
        return self._jump.now

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)


class OwnClock(Clock):
    """A process's clock, so many seconds before or behind the store's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ahead: float = 0) -> None:
        self._loop: Final = loop
        self._ahead: Final = timedelta(seconds=ahead)

    def now(self) -> datetime:
        return START + self._ahead + timedelta(seconds=self._loop.time())

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Fate:
    """What happens to a process: at its k-th point, or at random."""

    def __init__(self, *, kill_at: int = 0, freeze_at: int = 0, freeze: float = 0, kill_rate: float = 0) -> None:
        self.kill_at, self.freeze_at, self.freeze, self.kill_rate = kill_at, freeze_at, freeze, kill_rate

    def __repr__(self) -> str:
        return f"Fate({', '.join(f'{name}={value:g}' for name, value in vars(self).items() if value)})"


class Process:
    """One process: dies or freezes as a whole."""

    def __init__(self, world: World, name: str, fate: Fate, ahead: float) -> None:
        self.world, self.name, self.fate, self.ahead = world, name, fate, ahead
        self.clock: Final = OwnClock(world.loop, ahead)
        self.points = 0
        self.died_at: float | None = None
        self.frozen_at: float | None = None
        self.freezes = 0
        self.ended: Final = asyncio.Event()
        """Set when it dies."""
        self._thaws: Final = asyncio.Event()
        self.store = View(world, self)
        self.leases: Final[list[SimulatedLease]] = []
        self.news: Final[dict[str, Any]] = {}

    def __repr__(self) -> str:
        return f"<{self.name} {self.fate}>"

    def kill(self) -> None:
        if self.died_at is None:
            self.died_at = self.world.loop.time()
            self.ended.set()
            self._thaws.set()
            self.world.tell(f"{self.name} dies")

    def freeze(self, seconds: float) -> None:
        if self.frozen_at is None and self.died_at is None:
            self.frozen_at, self.freezes = self.world.loop.time(), self.freezes + 1
            self._thaws.clear()
            self.world.loop.call_later(seconds, self.thaw)
            self.world.tell(f"{self.name} freezes for {seconds:g} s")

    def thaw(self) -> None:
        if self.frozen_at is not None:
            if not self.world.os_locks and self.world.loop.time() - self.frozen_at >= LEASE:
                for lease in self.leases:
                    lease.lost = True
            self.frozen_at = None
            self._thaws.set()
            self.world.tell(f"{self.name} thaws")

    async def point(self) -> None:
        """Let others go on; die or freeze here, if that is this process's fate."""
        world, fate = self.world, self.fate
        if self.died_at is not None:
            raise Killed
        self.points += 1
        if world.chaos:
            if self.points == fate.kill_at or (fate.kill_rate and world.random.random() < fate.kill_rate):
                self.kill()
                raise Killed
            if self.points == fate.freeze_at:
                self.freeze(fate.freeze)
        await asyncio.sleep(world.latency())
        while self.frozen_at is not None:
            await self._thaws.wait()
        if self.died_at is not None:
            raise Killed

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do something in this process."""

        async def within() -> Any:
            PROCESS.set(self)
            try:
                return await work
            except Killed:
                return None

        return self.world.start(within())


PROCESS: Final[ContextVar[Process]] = ContextVar("process")


class _News:
    """The news of each process: one does not hear what another does, as if they were real ones."""

    def get(self, run_id: str) -> Any:
        return PROCESS.get().news.get(run_id)

    def setdefault(self, run_id: str, made: Any) -> Any:
        return PROCESS.get().news.setdefault(run_id, made)


class SimulatedLease(Lease):
    """A lock that is held."""

    def __init__(self, process: Process) -> None:
        self.process, self.lost = process, False
        process.leases.append(self)

    def check(self) -> None:
        if self.lost:
            raise LockLost("the lease has run out")

    def holds(self) -> bool:
        process, world = self.process, self.process.world
        if world.os_locks:
            return process.died_at is None
        silent = process.died_at if process.died_at is not None else process.frozen_at
        return not self.lost and (silent is None or world.loop.time() < silent + LEASE)


@dataclass
class Shown:
    """A wake-up in the store."""

    wakeup: WakeUp
    shows_at: datetime


class World:
    """The store's insides, and what happens to those who use it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        random: Random,
        *,
        latency: float = 0.02,
        slow: float = 0.02,
        errors: float = 0.0,
        os_locks: bool = True,
        hides: bool = True,
        offers_wakeups: bool = True,
    ) -> None:
        self.loop, self.random = loop, random
        self.os_locks, self.hides, self.offers_wakeups = os_locks, hides, offers_wakeups
        self.chaos = True
        self.clock: Final = OwnClock(loop)
        self.memory: Final = MemoryStore(clock=self.clock)
        self.locks: Final[dict[str, SimulatedLease]] = {}
        self.wakeups: Final[dict[str, Shown]] = {}
        self.calls: Final[Counter[str]] = Counter()
        """How often each method was called."""
        self.story: Final[list[str]] = []
        self.effects: Final[dict[str, list[tuple[Process, int]]]] = {}
        self.wrong: Final[list[str]] = []
        """What must not happen, and did."""
        self.processes: Final[list[Process]] = []
        self._tasks: Final[set[asyncio.Task[Any]]] = set()
        self._latency, self._slow, self._errors = latency, slow, errors
        self._tokens = 0

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def process(self, name: str, fate: Fate | None = None, ahead: float = 0) -> Process:
        process = Process(self, name, fate or Fate(), ahead)
        self.processes.append(process)
        return process

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.time():9.3f} {what}")

    def latency(self) -> float:
        draw = self.random.random()
        if draw < 0.6:
            return 0
        if draw > 1 - self._slow:
            return self.random.random() * 2
        return self.random.random() * self._latency

    def fails(self) -> bool:
        return self.chaos and self._errors > 0 and self.random.random() < self._errors

    def newest(self, run_id: str, step_id: str = "$flow") -> StepRecord | None:
        """Look without anybody's noticing."""
        return at_once(self.memory.get(run_id, step_id))

    def flows(self) -> list[StepRecord]:
        """Return the newest entries of all flows."""
        return [*at_once(self.memory.flows(limit=10_000))]

    def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        self._tokens += 1
        wakeup = WakeUp(run_id=run_id, flow=flow, at=at, token=f"w{self._tokens}", now=self.clock.now())
        self.wakeups[wakeup.token] = Shown(wakeup, at)
        return wakeup

    def take_wakeups(self, flows: Collection[str], limit: int, hidden: timedelta, taken: dict[str, datetime]) -> list[WakeUp]:
        """Take wake-ups; where the store hides none, only the process remembers what it has `taken`."""
        now = self.clock.now()
        due = [
            each
            for token, each in self.wakeups.items()
            if each.shows_at <= now and taken.get(token, now) <= now and each.wakeup.flow in flows
        ]
        due = sorted(due, key=lambda each: each.wakeup.at)[:limit]
        for each in due:
            if self.hides:
                each.shows_at = now + hidden
            else:
                taken[each.wakeup.token] = now + hidden
        return [WakeUp(each.wakeup.run_id, each.wakeup.flow, each.wakeup.at, each.wakeup.token, now) for each in due]

    async def effect(self, seconds: float = 0) -> None:
        """What a step does in the world outside: once, unless the process that did it was lost while it was in flight."""
        step, process = current_step(), PROCESS.get()
        # A process that is frozen runs on here to its next point.
        mine = process, process.freezes - (process.frozen_at is not None)
        await process.point()
        if seconds:
            await asyncio.sleep(seconds)
            await process.point()
        newest = self.newest(step.run_id, step.step_id)
        is_decided = newest is not None and newest.status in ("success", "failure")
        done = self.effects.setdefault(step.idempotency_key, [])
        for other in done:
            may_be = self._was_lost(*other) or self._was_lost(*mine)
            if not may_be or (is_decided and not process.freezes and not other[0].freezes):
                self.wrong.append(f"twice: {step.step_id} of {step.run_id}, by {other[0]} and {process}, {is_decided=}")
        done.append(mine)
        self.tell(f"{process.name} does {step.step_id} of {step.run_id}")
        await process.point()

    def _was_lost(self, process: Process, freezes: int) -> bool:
        """Tell whether others may think that the process died since it began what was frozen so many times before."""
        return process.died_at is not None or (not self.os_locks and process.freezes > freezes)

    async def end(self) -> None:
        """Let everybody end."""
        for process in self.processes:
            process.kill()
        tasks = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for _ in range(20):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0)
            tasks = {task for task in tasks if not task.done()}


class View(Store):
    """The store as one process has it."""

    poll_seconds: float = 2.0

    def __init__(self, world: World, process: Process, *, offers_wakeups: bool = True) -> None:
        self._world, self._process = world, process
        self._taken: Final[dict[str, datetime]] = {}
        self.hides_wakeups = world.hides
        if not (offers_wakeups and world.offers_wakeups):
            self.set_wakeup = self.take_wakeups = self.clear_wakeups = None  # type: ignore[assignment,method-assign]

    async def _call(self, name: str, work: Callable[[], T], told: str = "") -> T:
        world, process = self._world, self._process
        world.calls[name] += 1
        await process.point()
        if world.fails():
            raise StoreError(f"{name} failed, as the simulation asked")
        answer = work()
        if told:
            world.tell(f"{process.name} {told}")
        await process.point()
        if world.fails():
            raise StoreError(f"{name} was done, and its answer lost")
        return answer

    def _append(self, record: StepRecord) -> StepRecord:
        holder = at_once(self._world.memory.append(record))
        if holder is record:
            self._world.tell(f"{self._process.name} {record.run_id} {record.step_id} {record.revision} {record.status}")
        return holder

    async def append(self, record: StepRecord) -> StepRecord:
        return await self._call("append", lambda: self._append(record))

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._call("get", lambda: self._world.newest(run_id, step_id))

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._call("list", lambda: at_once(self._world.memory.list(run_id)))

    async def clear(self, run_id: str) -> None:
        raise NotImplementedError

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        await self._process.point()
        async for run_id in self._world.memory.runs(prefix):
            yield run_id

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        return await self._call("newer", lambda: at_once(self._world.memory.newer(known)))

    async def flows(self, prefix: str = "", **wanted: Any) -> Sequence[StepRecord]:
        return await self._call("flows", lambda: at_once(self._world.memory.flows(prefix, **wanted)))

    async def holder(self, run_id: str) -> Holder | None:
        return (await self.holders([run_id])).get(run_id)

    async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
        locks = self._world.locks
        return await self._call(
            "holders",
            lambda: {each: Holder(locks[each].process.name, START) for each in run_ids if each in locks and locks[each].holds()},
        )

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        locks = self._world.locks

        def take() -> SimulatedLease:
            if (held := locks.get(run_id)) is not None:
                if held.holds():
                    raise RunBusy(run_id, holder=held.process.name, since=None)
                held.lost = True
            lease = locks[run_id] = SimulatedLease(self._process)
            return lease

        self._world.calls["lock"] += 1
        await self._process.point()
        try:
            lease = take()
        except RunBusy:
            await self._process.point()
            raise
        try:
            await self._process.point()
            yield lease
        finally:
            await self._process.point()
            if locks.get(run_id) is lease:
                del locks[run_id]
            self._process.leases.remove(lease)
            await self._process.point()

    async def set_wakeup(self, run_id: str, flow: str, at: datetime) -> WakeUp:
        return await self._call("set", lambda: self._world.set_wakeup(run_id, flow, at), f"sets {run_id} for {at:%M:%S}")

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        def take() -> list[WakeUp]:
            taken = self._world.take_wakeups(flows, limit, visibility_timeout, self._taken)
            if taken:
                self._world.tell(f"{self._process.name} takes {', '.join(f'{each.token} {each.run_id}' for each in taken)}")
            return taken

        return await self._call("take", take)

    async def clear_wakeups(self, wakeups: Sequence[WakeUp]) -> None:
        def clear() -> None:
            for wakeup in wakeups:
                self._world.wakeups.pop(wakeup.token, None)

        tokens = " ".join(each.token for each in wakeups)
        await self._call("clear", clear, f"clears {tokens} of {wakeups[0].run_id if wakeups else ''}")


def simulate(work: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run one simulation in a loop of its own, each of whose processes hears its own news."""
    loop = VirtualLoop()
    before, news._news = news._news, _News()  # type: ignore[assignment]
    real, waits.monotonic = waits.monotonic, loop.time  # type: ignore[attr-defined]
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()
        news._news = before
        waits.monotonic = real  # type: ignore[attr-defined]
