"""Holding a run: taking the store's lock, waiting for it, and releasing it."""

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
    """Hold a run's lock if the store has locks; yield None if it has none. Entering raises `RunBusy` at once if it is held."""
    locks = lock_of(store)
    return nullcontext() if locks is None else locks.lock(run_id)


def driven_elsewhere(run_id: str) -> LockLost:
    """Return the error for a run whose next `$flow` entry belongs to another runner."""
    return LockLost(f"another runner now works on run {run_id!r}; run it again, or leave it to that runner")


class RunLock(AbstractAsyncContextManager["RunLock"]):
    """The lock of one run, if the store has locks. Entering waits up to `wait` seconds and then raises `RunBusy`."""

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
        """True from when the lock was taken until it is released."""
        return self._context is not None

    def check(self) -> None:
        """Raise `LockLost` if no further step may start. Does nothing if no lock was taken. Works from any thread."""
        if self._left:
            raise LockLost(f"the runner of run {self._run_id!r} was closed and its lock released, so it can't start another step")
        if self._lease is not None:
            self._lease.check()

    def close(self) -> None:
        """Prevent further steps from starting."""
        self._left = True

    async def __aenter__(self) -> Self:
        if self._entered:
            raise DurableError(
                f"the runner of run {self._run_id!r} is already in use; make another Runner to use it a second time"
            )
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
