"""A run's lock as a lease: taken for some seconds, renewed from a thread, and known to be lost.

A store gives the requests: how to take, renew and give back one lease. They are made on a thread of the store's own, so a busy
event loop loses no lease. Each lease is a claim in the store; the claim of a process that is known to be dead holds nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, Self, TypeVar

import msgspec

from durable_core.clock import Clock, SystemClock
from durable_core.errors import LockLost, RunBusy, StoreError
from durable_core.store import Holder, Lease, forks, to_the_end

T = TypeVar("T")

_SHORTEST_PAUSE: Final = 0.02
_TRIES: Final = 5
"""How often a renewal that failed is tried again before the lease has run out."""
_log: Final = logging.getLogger("durable_core")


def _boot_clock() -> Callable[[], float]:
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        clock = getattr(time, name, None)
        if clock is not None:
            return functools.partial(time.clock_gettime, clock)
    return time.monotonic


class BootClock(SystemClock):
    """The machine's clock, which also counts the time that the machine is suspended, as a server's does."""

    monotonic = staticmethod(_boot_clock())


class Process(msgspec.Struct, frozen=True):
    """A process of one machine since its last start: a number alone is given to others later."""

    boot: str
    namespaces: str
    pid: Annotated[int, msgspec.Meta(ge=1)]
    started: int


@functools.cache
def _process(pid: int) -> Process | None:
    """Identify this process, on Linux where its own `/proc` is mounted; None elsewhere."""
    try:
        if Path("/proc/self").readlink() != Path(str(pid)):
            return None  # this /proc counts processes in another namespace
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespaces = " ".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "time"))
    except OSError:
        return None
    started = _started(pid)
    return Process(boot, namespaces, pid, started) if boot and started is not None else None


def _started(pid: int) -> int | None:
    """Return when the process began, in ticks since the machine's start; None where that can't be read."""
    try:
        # The second field, the program's name, may hold spaces and parentheses.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _is_gone(process: Process) -> bool:
    """Tell whether it is known that the process has ended: one of this machine, its boot and its namespaces."""
    here = _process(os.getpid())
    if here is None or (process.boot, process.namespaces) != (here.boot, here.namespaces):
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # another user's
    started = _started(process.pid)
    return started is not None and started != process.started


class Claim(msgspec.Struct, kw_only=True):
    """Who holds a lease: what stands in the store, as JSON."""

    holder: str
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    token: str
    """Random, so that no two processes or leases are taken for one."""
    process: Process | None = None

    @classmethod
    def mine(cls, **more: Any) -> Self:
        """Make a claim of this process."""
        pid = os.getpid()
        name = f"process {pid} on {socket.gethostname()}"
        return cls(holder=name, since=datetime.now(UTC), token=os.urandom(12).hex(), process=_process(pid), **more)

    @property
    def is_dead(self) -> bool:
        """Whether the process that made it is known to have ended."""
        return self.process is not None and _is_gone(self.process)

    def told(self) -> Holder:
        """Return who and since when, fit to be shown."""
        name = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in self.holder[:200])
        return Holder(name, self.since)


class LeaseRequests(Protocol):
    """What a store does for one lease. Nothing is called twice at the same time."""

    @abstractmethod
    async def acquire(self) -> float:
        """Take the lease, or raise `RunBusy`; return the moment from which it counts, no later than the store's own."""
        raise NotImplementedError

    @abstractmethod
    async def renew(self, patience: float) -> float | None:
        """Renew the lease within `patience` seconds; return the moment from which it counts, or None where it is lost."""
        raise NotImplementedError

    @abstractmethod
    async def release(self) -> None:
        """Give back what is ours, also after an `acquire` or `renew` that failed half-way or was cancelled."""
        raise NotImplementedError


class RenewedLease(Lease):
    """A lease that is lost for good once it has run out or was found to be another's; `check` asks nobody."""

    def __init__(self, run_id: str, requests: LeaseRequests, *, seconds: float, every: float, clock: Clock) -> None:
        self._run_id: Final = run_id
        self._requests: Final = requests
        self._seconds: Final = seconds
        self._every: Final = every
        self._clock: Final = clock
        self._forks: Final = forks()
        self._turn: Final = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        self._counts_from = 0.0
        self._deadline = 0.0
        self._lost = "it is not held"
        self._taken = False

    def check(self) -> None:
        if reason := self._reason():
            raise LockLost(
                f"the lock of run {self._run_id!r} is lost: {reason}; another runner may be at work, so start the run again"
            )

    def _reason(self) -> str:
        if not self._lost:
            if self._forks != forks():
                self._lost = "the process was forked, and the lease stays with the parent"
            elif self._clock.monotonic() >= self._deadline:
                self._lost = f"it was not renewed within {self._seconds:g} s"
        return self._lost

    async def take(self) -> None:
        """Take the lease and begin to renew it, or raise `RunBusy`; where it fails, what may have been taken is given back."""
        async with self._turn:
            try:
                self._extend(await self._requests.acquire())
                self._taken, self._lost = True, ""
                if self._reason():
                    raise StoreError(
                        f"taking the lock of run {self._run_id!r} took longer than its lease of {self._seconds:g} s;"
                        " try again, or give a longer lease"
                    )
            except RunBusy:
                raise
            except BaseException:
                self._taken, self._lost = False, "it was given back"
                await to_the_end(self._release())
                raise
        self._renewing = asyncio.create_task(self._renew_for_ever(), name="durable-lease")

    async def give_back(self) -> None:
        """Give back what is left of the lease, unless it is a parent process's; where that fails it runs out by itself."""
        if self._renewing is not None:
            self._renewing.cancel()
        async with self._turn:  # a renewal that is under way has ended by then
            taken, self._taken = self._taken and self._forks == forks(), False
            self._lost = self._reason() or "it was given back"
            if taken:
                await self._release()

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._requests.release()
        except (StoreError, TimeoutError) as error:
            _log.warning(
                "the lock of run %r was not given back; if it was taken, it runs out within %g s: %s",
                *(self._run_id, self._seconds, error),
            )

    async def _renew_for_ever(self) -> None:
        due = self._every
        while not self._reason():
            await self._clock.sleep(max(_SHORTEST_PAUSE, self._counts_from + due - self._clock.monotonic()))
            try:
                async with self._turn:
                    await self._renew()
                due = self._every
            except Exception as error:  # whatever it is, the next try may succeed
                _log.warning("the lock of run %r was not renewed: %s", self._run_id, error)
                pause = min(self._every, (self._seconds - self._every) / _TRIES)
                due = self._clock.monotonic() + pause - self._counts_from

    async def _renew(self) -> None:
        if self._reason():
            return
        counts_from = await self._requests.renew(self._deadline - self._clock.monotonic())
        if counts_from is None:
            self._lost = self._lost or "another holder took it over, or the store forgot it"
        elif not self._reason():  # else another may have come and gone before the store had our request
            self._extend(counts_from)

    def _extend(self, counts_from: float) -> None:
        # The store counts from when it got the request; 2 % are for clocks that run at different speeds.
        self._counts_from, self._deadline = counts_from, counts_from + self._seconds * 0.98


class Leases:
    """The leases of one store, and the thread that they are renewed on: it is started by the first and ends with `close`."""

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        self._name: Final = name
        self.clock = clock or BootClock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._forks = 0

    @asynccontextmanager
    async def hold(self, run_id: str, requests: LeaseRequests, *, seconds: float, every: float) -> AsyncIterator[Lease]:
        """Hold a lease of `seconds` while the context lasts, renewed `every` so many seconds."""
        lease = RenewedLease(run_id, requests, seconds=seconds, every=every, clock=self.clock)
        try:
            await self._call(lease.take())
            yield lease
        finally:
            await to_the_end(self._call(lease.give_back()))

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` on the thread; a cancellation is passed on to it."""
        if self._loop is None or self._forks != forks():
            self._forks, self._loop = forks(), asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def close(self, finish: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """End all renewals, `finish` on the thread, and end that."""
        loop, self._loop = self._loop, None
        thread, self._thread = self._thread, None
        if loop is not None and thread is not None and self._forks == forks():
            await to_the_end(_end(loop, thread, finish))


async def _end(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, finish: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_cancel_all(), loop))
    if finish is not None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(finish(), loop))
    loop.call_soon_threadsafe(loop.stop)
    await asyncio.to_thread(thread.join)
    loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
