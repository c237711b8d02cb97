"""Holding a run: the store's lock, waited for, and given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Self

from durable_core.clock import Clock
from durable_core.errors import DurableError, LockLost, RunBusy
from durable_core.options import exponential
from durable_core.store import Lease, Store, lock_of

_pause: Final = exponential(0.05, limit=1)


class RunLock(AbstractAsyncContextManager["RunLock"]):
    """The lock of one run, if its store has any; entering waits up to `wait` seconds and then raises `RunBusy`."""

    def __init__(self, store: Store, run_id: str, clock: Clock, wait: float) -> None:
        self._store: Final = store
        self._run_id: Final = run_id
        self._clock: Final = clock
        self._wait: Final = wait
        self._context: AbstractAsyncContextManager[Lease] | None = None
        self._entered = False
        self.lease: Lease = _no_lock
        """Whose `check` raises `LockLost` if a step must not be started any more."""

    def again(self) -> RunLock:
        """Return the same lock, not yet taken."""
        return RunLock(self._store, self._run_id, self._clock, self._wait)

    @property
    def held(self) -> bool:
        """Whether the lock was taken and not given back."""
        return self._context is not None

    def close(self) -> None:
        """Let no further step start."""
        self.lease = _Left(self._run_id)

    async def __aenter__(self) -> Self:
        if self._entered:
            raise DurableError(f"the runner of run {self._run_id!r} is in use already; make a second Runner for a second use")
        self._entered = True
        try:
            store = lock_of(self._store)
            self.lease = await self._take(store.lock) if store else _no_lock
        except BaseException:
            self._entered = False
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.close()
        context, self._context, self._entered = self._context, None, False
        if context is not None:
            await context.__aexit__(None, None, None)

    async def _take(self, lock: Callable[[str], AbstractAsyncContextManager[Lease]]) -> Lease:
        deadline = self._clock.monotonic() + self._wait
        attempt = 1
        while True:
            context = lock(self._run_id)
            try:
                lease = await context.__aenter__()
                self._context = context
                return lease
            except RunBusy:
                pause = min(_pause(attempt), deadline - self._clock.monotonic())
                if pause <= 0:
                    raise
            attempt += 1
            await self._clock.sleep(pause)


class _NoLock(Lease):
    """Of a runner that was not entered, or whose store has no locks."""

    def check(self) -> None:
        return None


_no_lock: Final = _NoLock()


class _Left(Lease):
    """Of a runner that was left."""

    def __init__(self, run_id: str) -> None:
        self._run_id: Final = run_id

    def check(self) -> None:
        raise LockLost(f"the runner of run {self._run_id!r} was left, and its lock given back: no further step is started")
