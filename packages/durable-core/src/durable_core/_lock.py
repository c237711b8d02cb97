"""Holding a run: the store's lock, waited for, and given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Self

from .clock import Clock
from .errors import DurableError, LockLost, RunBusy
from .retry import exponential
from .store import Lease, Store, supports_lock

_pause: Final = exponential(0.05, limit=1)


class RunLock(AbstractAsyncContextManager["RunLock"]):
    """The lock of one run, if its store has any; entering waits up to `wait` seconds and then raises `RunBusy`."""

    def __init__(self, store: Store, run_id: str, clock: Clock, wait: float) -> None:
        self._store: Final = store
        self._run_id: Final = run_id
        self._clock: Final = clock
        self._wait: Final = wait
        self._context: AbstractAsyncContextManager[Lease] | None = None
        self._lease: Lease | None = None
        self._entered = False
        self._closed = False

    def again(self) -> RunLock:
        """Return the same lock, not yet taken."""
        return RunLock(self._store, self._run_id, self._clock, self._wait)

    @property
    def held(self) -> bool:
        """Whether the lock was taken and not given back."""
        return self._context is not None

    def check(self) -> None:
        """Raise `LockLost` if a step must not be started any more."""
        if self._closed:
            raise LockLost(f"the runner of run {self._run_id!r} was left, and its lock given back: no further step is started")
        if self._lease is not None:
            self._lease.check()

    def close(self) -> None:
        """Let no further step start."""
        self._closed = True

    async def __aenter__(self) -> Self:
        if self._entered:
            raise DurableError(f"the runner of run {self._run_id!r} is in use already; make a second Runner for a second use")
        self._entered = True
        try:
            if supports_lock(self._store):
                await self._take(self._store.lock)
        except BaseException:
            self._entered = False
            raise
        self._closed = False
        return self

    async def __aexit__(self, *error: Any) -> None:
        context, self._context, self._lease = self._context, None, None
        self._entered, self._closed = False, True
        if context is not None:
            await context.__aexit__(None, None, None)

    async def _take(self, lock: Callable[[str], AbstractAsyncContextManager[Lease]]) -> None:
        deadline = self._clock.monotonic() + self._wait
        attempt = 1
        while True:
            context = lock(self._run_id)
            try:
                self._lease = await context.__aenter__()
                self._context = context
                return
            except RunBusy:
                pause = min(_pause(attempt), deadline - self._clock.monotonic())
                if pause <= 0:
                    raise
            attempt += 1
            await self._clock.sleep(pause)
