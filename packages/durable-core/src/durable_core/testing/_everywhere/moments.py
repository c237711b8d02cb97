"""The moments at which a process may die: around what it asks of its store, and as the function of a step begins."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from durable_core._log.chain import decided
from durable_core.clock import SystemClock
from durable_core.context import StepContext
from durable_core.engine import Driver
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.passing import PassingStore

CALLS: Final = {
    "set_wakeup": "a wake-up is set",
    "clear_wakeups": "a wake-up is cleared",
    "transact": "a transaction",
}
CONTEXTS: Final = {
    "lock": ("the lock is taken", "the lock is given back"),
    "transaction": ("a transaction begins", "a transaction is committed"),
}
Tell = Callable[[str, Any], None]
Act = Callable[[Sequence[tuple[str, str]]], Awaitable[bool]]


class Step(NamedTuple):
    """A step of a run or of one of its children."""

    child: str
    """The end of the child's run id, after that of the run; empty for the run itself."""
    id: str

    @classmethod
    def of(cls, run_id: str, record: StepRecord | StepContext) -> Step:
        return cls(record.run_id.removeprefix(run_id), record.step_id.replace(run_id, "RUN"))

    def __str__(self) -> str:
        return f"{self.id!r} of child {self.child[1:]!r}" if self.child else repr(self.id)


class Moments:
    """Tells of each moment that this process comes to, and kills the process at the moment `deadly`."""

    def __init__(self, run_id: str, tell: Tell, deadly: str | None) -> None:
        self.run_id: Final = run_id
        self.tell: Final = tell
        self._deadly: Final = deadly
        self._times: Final[Counter[str]] = Counter()

    def come(self, moment: str, in_hand: StepRecord | None = None) -> None:
        """Come to a moment; `in_hand` is what is about to be appended."""
        self._times[moment] += 1
        if (times := self._times[moment]) > 1:
            moment += f", time {times}"
        self.tell("moment", moment)
        if moment == self._deadly:
            self.tell("killed", in_hand)
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedStore(PassingStore):
    """Comes to a moment around each write and lock of a store."""

    def __init__(self, store: Store, moments: Moments) -> None:
        super().__init__(store)
        self._moments: Final = moments

    async def append(self, record: StepRecord) -> StepRecord:
        step = Step.of(self._moments.run_id, record)
        what = f"append of {step} ({record.status})"
        self._moments.come(f"before {what}", record)
        held = await self._store.append(record)
        if decided(held):
            self._moments.tell("ended", step)
        self._moments.come(f"after {what}")
        return held

    def __getattr__(self, name: str) -> Any:
        ability = super().__getattr__(name)
        if name in CALLS:
            return self._call(CALLS[name], ability)
        return self._context(*CONTEXTS[name], ability) if name in CONTEXTS else ability

    def _call(self, what: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(*arguments: Any, **options: Any) -> Any:
            self._moments.come(f"before {what}")
            answer = await call(*arguments, **options)
            self._moments.come(f"after {what}")
            return answer

        return watched

    def _context(
        self, begins: str, ends: str, enter: Callable[..., AbstractAsyncContextManager[Any]]
    ) -> Callable[..., AbstractAsyncContextManager[Any]]:
        @asynccontextmanager
        async def watched(*arguments: Any) -> AsyncIterator[Any]:
            self._moments.come(f"before {begins}")
            async with enter(*arguments) as entered:
                self._moments.come(f"after {begins}")
                yield entered
                self._moments.come(f"before {ends}")
            self._moments.come(f"after {ends}")

        return watched


class WatchingDriver(Driver):
    """Tells of each step whose function begins. With `act`, the run stays in its process when it waits, and the clock jumps."""

    def __init__(self, moments: Moments, clock: JumpingClock, act: Act | None) -> None:
        self._moments: Final = moments
        self._clock: Final = clock
        self._act: Final = act

    def begins(self, step: StepContext) -> None:
        begun = Step.of(self._moments.run_id, step)
        self._moments.tell("began", begun)
        self._moments.come(f"as {begun} begins")

    async def stays(self, store: Store, pairs: Sequence[tuple[str, str]], until: datetime | None) -> bool:
        if self._act is None:
            return False
        if await self._act(pairs):
            return True
        if until is not None:
            self._clock.jump_to(until)
        return until is not None


class JumpingClock(SystemClock):
    """The machine's clock, set forward by the seconds that runs would have waited."""

    def __init__(self, ahead: timedelta) -> None:
        self.ahead = ahead

    def now(self) -> datetime:
        return super().now() + self.ahead

    def jump_to(self, moment: datetime) -> None:
        """Set the clock to `moment`, unless it is later already."""
        self.ahead += max(moment - self.now(), timedelta())
