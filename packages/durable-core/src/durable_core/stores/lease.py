"""A run's lock as a lease: taken for some seconds, renewed by a thread, and checked without asking the store.

A store supplies the requests that take, renew and give back one lease. They run on a thread of the store, so a busy event loop
loses no lease. Each lease is a claim in the store. If the process that made a claim is known to be dead, the claim is void.
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
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, Self

import msgspec

from durable_core.clock import Clock, SystemClock
from durable_core.errors import LockLost, RunBusy, StoreError
from durable_core.store import Holder, Lease, to_the_end

_SHORTEST_PAUSE: Final = 0.02
_TRIES: Final = 5
"""How often a failed renewal is tried again before the lease runs out."""
_log: Final = logging.getLogger("durable_core")


_BOOT_TIME: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class BootClock(SystemClock):
    """The machine's clock. Also counts the time that the machine is suspended, as the clock of a server does."""

    monotonic: Callable[[], float] = staticmethod(
        time.monotonic if _BOOT_TIME is None else functools.partial(time.clock_gettime, _BOOT_TIME)
    )


class Process(msgspec.Struct, frozen=True):
    """Identifies a process. Its number alone would not: the machine gives it to other processes later."""

    boot: str
    namespaces: str
    pid: Annotated[int, msgspec.Meta(ge=1)]
    started: int


@functools.cache
def _process(pid: int) -> Process | None:
    """Identify this process on Linux with its own `/proc` mounted. None elsewhere."""
    try:
        if Path("/proc/self").readlink() != Path(str(pid)):
            return None  # this /proc counts processes in another namespace
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespaces = " ".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "time"))
        return Process(boot, namespaces, pid, _started(pid)) if boot else None
    except (OSError, IndexError, ValueError):
        return None


def _started(pid: int) -> int:
    """Return when the process began, in ticks since the machine's start."""
    # The second field, the program's name, may hold spaces and parentheses.
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


class Claim(msgspec.Struct, kw_only=True):
    """Says who holds a lease. The store has it as JSON."""

    holder: str
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    token: str
    """Random, so that no two leases look the same."""
    process: Process | None = None

    @classmethod
    def mine(cls, **more: Any) -> Self:
        """Make a claim of this process."""
        pid = os.getpid()
        name = f"process {pid} on {socket.gethostname()}"
        return cls(holder=name, since=datetime.now(UTC), token=os.urandom(12).hex(), process=_process(pid), **more)

    @property
    def is_dead(self) -> bool:
        """True if its process is known to have ended. Only knows processes of this machine, boot and namespaces."""
        there, here = self.process, _process(os.getpid())
        if there is None or here is None or (there.boot, there.namespaces) != (here.boot, here.namespaces):
            return False
        try:
            os.kill(there.pid, 0)
            return _started(there.pid) != there.started
        except ProcessLookupError:
            return True
        except (OSError, OverflowError, IndexError, ValueError):  # another user's process, or it ended just now
            return False

    def told(self) -> Holder:
        """Return the holder, safe to print."""
        name = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in self.holder[:200])
        return Holder(name, self.since)


class LeaseRequests(Protocol):
    """The requests of a store for one lease. They are never called at the same time."""

    @abstractmethod
    async def acquire(self) -> float:
        """Take the lease, or raise `RunBusy`. Return when it began, no later than when the store took it."""

    @abstractmethod
    async def renew(self, patience: float) -> float | None:
        """Renew the lease within `patience` seconds. Return when it began again, or None if it is lost."""

    @abstractmethod
    async def release(self) -> None:
        """Give the lease back if it is ours, even after an `acquire` or `renew` that failed half-way or was cancelled."""


class RenewedLease(Lease):
    """A lease that is lost for good once it runs out or turns out to be another's. `check` does no I/O."""

    def __init__(self, run_id: str, requests: LeaseRequests, *, seconds: float, every: float, clock: Clock) -> None:
        self._run_id: Final = run_id
        self._requests: Final = requests
        self._seconds: Final = seconds
        self._every: Final = every
        self._clock: Final = clock
        self._pid: Final = os.getpid()
        self._task: asyncio.Task[Any] | None = None
        self._deadline = 0.0
        self._due = 0.0
        """When to renew it next."""
        self._lost = ""

    def check(self) -> None:
        if reason := self._reason():
            raise LockLost(
                f"the lock of run {self._run_id!r} is lost: {reason}; another runner may be working on the run, so start it again"
            )

    def _reason(self) -> str:
        if not self._lost:
            if self._pid != os.getpid():
                self._lost = "the process was forked, and the lease stays with the parent"
            elif self._clock.monotonic() >= self._deadline:
                self._lost = f"it was not renewed within {self._seconds:g} s"
        return self._lost

    async def live(self, taken: Future[None]) -> None:
        """Take the lease and set `taken`. Renew the lease until it is lost or `end` is called. Then give it back."""
        self._task = asyncio.current_task()
        if not taken.set_running_or_notify_cancel():
            return
        try:
            self._extend(await self._requests.acquire())
            if self._reason():
                raise StoreError(
                    f"taking the lock of run {self._run_id!r} took longer than its lease of {self._seconds:g} s;"
                    " try again, or give a longer lease"
                )
            taken.set_result(None)
            await self._renew_until_lost()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                error = StoreError(f"the store was closed while it took the lock of run {self._run_id!r}")
            if not taken.done():
                taken.set_exception(error)
            if isinstance(error, RunBusy):
                return  # nothing was taken
        self._task, self._lost = None, self._reason() or "it was given back"
        try:
            async with asyncio.timeout(self._seconds):
                await self._requests.release()
        except (StoreError, TimeoutError) as error:
            _log.warning(
                "the lock of run %r was not given back; if it was taken, it runs out within %g s: %s",
                *(self._run_id, self._seconds, error),
            )

    def end(self) -> None:
        """Have `live` give the lease back."""
        task, self._task = self._task, None  # a second cancellation would interrupt the giving back
        if task is not None:
            task.cancel()

    async def _renew_until_lost(self) -> None:
        while not self._reason():
            await self._clock.sleep(max(_SHORTEST_PAUSE, self._due - self._clock.monotonic()))
            try:
                if not self._reason():
                    await self._renew()
            except Exception as error:  # the next try may succeed, whatever the error
                _log.warning("the lock of run %r was not renewed: %s", self._run_id, error)
                self._due = self._clock.monotonic() + min(self._every, (self._seconds - self._every) / _TRIES)

    async def _renew(self) -> None:
        counts_from = await self._requests.renew(self._deadline - self._clock.monotonic())
        if counts_from is None:
            self._lost = self._lost or "another holder took it over, or the store forgot it"
        elif not self._reason():  # else another process may have held the lease before the store got our request
            self._extend(counts_from)

    def _extend(self, counts_from: float) -> None:
        # The store counts from when it got the request. We give up 2 % for clocks that run at different speeds.
        self._due, self._deadline = counts_from + self._every, counts_from + self._seconds * 0.98


class Leases:
    """The leases of one store. The first lease starts the thread that renews them; `close` ends it."""

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        self._name: Final = name
        self.clock: Clock = clock or BootClock()
        self._thread: _Thread | None = None

    @asynccontextmanager
    async def hold(self, run_id: str, requests: LeaseRequests, *, seconds: float, every: float) -> AsyncIterator[Lease]:
        """Hold a lease of `seconds` while the context lasts. Renew it every `every` seconds."""
        thread, taken = self._thread, Future[None]()
        if thread is None or thread.pid != os.getpid():
            thread = self._thread = _Thread(self._name)
        lease = RenewedLease(run_id, requests, seconds=seconds, every=every, clock=self.clock)
        thread.lives[lease] = life = asyncio.run_coroutine_threadsafe(lease.live(taken), thread.loop)
        life.add_done_callback(lambda _: thread.lives.pop(lease))
        try:
            await asyncio.wrap_future(taken)
            yield lease
        finally:
            if thread.pid == os.getpid():
                await to_the_end(thread.end([(lease, life)]))

    async def close(self, finish: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Give back all leases, run `finish` on the thread, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.pid == os.getpid():
            await to_the_end(thread.close(finish))


class _Thread:
    """A thread with an event loop that takes, renews and gives back leases."""

    def __init__(self, name: str) -> None:
        self.pid: Final = os.getpid()
        self.loop: Final = asyncio.new_event_loop()
        self.lives: Final[dict[RenewedLease, Future[None]]] = {}
        """The leases that have not ended, each with the future that is done when it ends."""
        self._thread: Final = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    async def end(self, lives: Collection[tuple[RenewedLease, Future[None]]]) -> None:
        """End leases, and wait until they have been given back."""
        for lease, life in lives:
            if not life.done():
                self.loop.call_soon_threadsafe(self.loop.call_soon, lease.end)  # call_soon again: `live` begins first
        await asyncio.gather(*(asyncio.wrap_future(life) for _, life in lives))

    async def close(self, finish: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
        await self.end([*self.lives.items()])
        if finish is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(finish(), self.loop))
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join)
        self.loop.close()
