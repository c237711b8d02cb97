"""Holding a run: the store's lock, waited for, and given back."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Final, Self

from durable_core._system.waits import answered
from durable_core.clock import Clock
from durable_core.errors import DurableError, LockLost, RunBusy
from durable_core.options import exponential
from durable_core.store import Lease, Store, SupportsLock, lock_of

_lock_delay: Final = exponential(0.05, limit=1)


def holding(store: Store, run_id: str) -> AbstractAsyncContextManager[Lease | None]:
    """Hold a run's lock if its store has any, else give None; entering raises `RunBusy` at once where another holds it."""
    locks = lock_of(store)
    return nullcontext() if locks is None else locks.lock(run_id)


def driven_elsewhere(run_id: str) -> LockLost:
    """Return the error for a run whose flow's next entry is another runner's."""
    return LockLost(f"another runner drives run {run_id!r} by now; run it again, or leave it to that one")


class RunLock(AbstractAsyncContextManager["RunLock"]):
    """The lock of one run, if its store has any; entering waits up to `wait` seconds and then raises `RunBusy`."""

    def __init__(self, store: Store, run_id: str, clock: Clock, wait: float) -> None:
        self._store: Final = store
        self._run_id: Final = run_id
        self._clock: Final = clock
        self._wait: Final = wait
        self._context: AbstractAsyncContextManager[Lease] | None = None
        self._lease: Lease | None = None
        self._entered = self._left = False

    def again(self) -> RunLock:
        """Return the same lock, not yet taken."""
        return RunLock(self._store, self._run_id, self._clock, self._wait)

    @property
    def is_held(self) -> bool:
        """Whether the lock was taken and not given back."""
        return self._context is not None

    def check(self) -> None:
        """Raise `LockLost` if a step must not be started any more; nothing where no lock was taken. For any thread."""
        if self._left:
            raise LockLost(f"the runner of run {self._run_id!r} was left, and its lock given back: no further step is started")
        if self._lease is not None:
            self._lease.check()

    def close(self) -> None:
        """Let no further step start."""
        self._left = True

    async def __aenter__(self) -> Self:
        if self._entered:
            raise DurableError(f"the runner of run {self._run_id!r} is in use already; make a second Runner for a second use")
        self._entered = True
        try:
            if locks := lock_of(self._store):
                await self._take(locks)
        except BaseException:
            self._entered = False
            raise
        self._left = False
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.close()
        context, self._context, self._entered = self._context, None, False
        if context is not None:
            await answered(context.__aexit__(None, None, None))

    async def _take(self, locks: SupportsLock) -> None:
        deadline, tries = self._clock.monotonic() + self._wait, 0
        while self._context is None:
            context = locks.lock(self._run_id)
            try:
                self._lease = await answered(context.__aenter__())
                self._context = context
            except RunBusy:
                tries += 1
                pause = min(_lock_delay(tries), deadline - self._clock.monotonic())
                if pause <= 0:
                    raise
                await self._clock.sleep(pause)
