"""A run's lock: a key that expires, and is renewed for as long as it is held."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from durable_core.errors import LockLost, RunBusy, StoreError
from durable_core.store import Lease, to_the_end

from ._scripts import ACQUIRE, RELEASE, RENEW
from ._server import Call, Server

_log: Final = logging.getLogger("durable_redis")
_SHORTEST_PAUSE: Final = 0.02


def _clock() -> Callable[[], float]:
    """Choose the clock that also counts while the machine is suspended, as the server's does."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        clock = getattr(time, name, None)
        if clock is not None:
            return lambda: time.clock_gettime(clock)
    return time.monotonic


now: Final = _clock()


class RedisLease(Lease):
    """Holds until `seconds` after the last renewal was asked for; the server forgets the key no earlier than that.

    Renewals keep the log from expiring too, so they come often enough for its `ttl`.
    """

    def __init__(self, run_id: str, server: Server, *, lock: str, log: str, seconds: float, ttl: float | None) -> None:
        self._run_id: Final = run_id
        self._server: Final = server
        self._keys: Final = (lock, log)
        self._seconds: Final = seconds
        self._pause: Final = max(min(seconds, ttl or seconds) / 3, _SHORTEST_PAUSE)
        self._value: Final = json.dumps(
            {
                "holder": f"process {os.getpid()} on {socket.gethostname()}",
                "since": datetime.now(UTC).isoformat(),
                "token": os.urandom(12).hex(),
            }
        )
        self._deadline = 0.0
        self._gone = False

    def check(self) -> None:
        if self._gone:
            raise LockLost(
                f"the server no longer knows the lock of run {self._run_id!r}: it failed over, restarted or the"
                " lock was removed; another runner may be at work, so start the run again"
            )
        if now() >= self._deadline:
            raise LockLost(
                f"the lock of run {self._run_id!r} could not be renewed for {self._seconds:g} seconds;"
                " another runner may be at work, so start the run again"
            )

    async def reach(self) -> None:
        """Raise `StoreError` where the server can't be reached, and so can't have given the lock."""
        await self._server.reach()

    async def acquire(self) -> None:
        """Take the lock, or raise `RunBusy`."""
        asked = now()
        held = await self._server.call(Call(ACQUIRE, self._keys, self._value, self._ms))
        if held is not None:
            raise _busy(self._run_id, held)
        self._extend(asked)
        if self._server.copies:
            await self.renew()

    async def renew(self) -> None:
        asked = now()
        call = Call(RENEW, self._keys, self._value, self._ms)
        if await self._server.call(call, confirm=True):
            self._extend(asked)
        else:
            self._gone = True

    async def keep(self) -> None:
        """Renew until the lock is gone, or this is cancelled."""
        pause = self._pause
        while not self._gone:
            await asyncio.sleep(pause)
            try:
                await self.renew()
                pause = self._pause
            except StoreError as error:
                pause = max(self._pause / 5, _SHORTEST_PAUSE)
                _log.warning("the lock of run %r was not renewed: %s", self._run_id, error)

    async def release(self) -> None:
        """Give the lock back if it is still ours; what can't be given back expires by itself."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._server.call(Call(RELEASE, self._keys, self._value))
        except (StoreError, TimeoutError) as error:
            given = "" if self._deadline else ", if the server gave it,"
            _log.warning(
                "the lock of run %r%s expires by itself within %g seconds: %s", self._run_id, given, self._seconds, error
            )

    @property
    def _ms(self) -> int:
        return int(self._seconds * 1000)

    def _extend(self, asked: float) -> None:
        # The server counts from when it got the request, so later; 2 % are for clocks that run at different speeds.
        self._deadline = asked + self._seconds * 0.98


@asynccontextmanager
async def held(lease: RedisLease) -> AsyncIterator[Lease]:
    """Hold the lock while the context lasts."""
    await lease.reach()
    try:
        await lease.acquire()
    except RunBusy:
        raise
    except BaseException:  # The server may have given the lock although its answer never came.
        await to_the_end(lease.release())
        raise
    renewal = asyncio.create_task(lease.keep(), name="durable-redis-lease")
    try:
        yield lease
    finally:
        renewal.cancel()
        try:
            await asyncio.wait({renewal})
        finally:
            await to_the_end(lease.release())


def _busy(run_id: str, held: bytes) -> RunBusy:
    try:
        value = json.loads(held)
        return RunBusy(run_id, holder=value["holder"], since=datetime.fromisoformat(value["since"]))
    except (ValueError, KeyError, TypeError):
        return RunBusy(run_id, holder=f"something else that set its key ({held[:80]!r})", since=None)
