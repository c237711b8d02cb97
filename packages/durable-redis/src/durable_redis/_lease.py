"""A run's lock in Redis: a key that expires unless its holder renews it."""

from __future__ import annotations

from typing import Final

import msgspec

from durable_core.clock import Clock
from durable_core.errors import RunBusy
from durable_core.store import Holder
from durable_core.stores.lease import Claim, LeaseRequests

from ._scripts import ACQUIRE, RELEASE, RENEW
from ._server import Server

_TRIES: Final = 5


class RunLease(LeaseRequests):
    """One lease of one run. The key holds the claim; renewals keep the run's log from expiring too.

    `server` belongs to the thread that renews leases, and renews many with one call.
    """

    def __init__(self, server: Server, run_id: str, *, lock: str, log: str, seconds: float, clock: Clock) -> None:
        self._server: Final = server
        self._run_id: Final = run_id
        self._clock: Final = clock
        self._item: Final = (lock, log, msgspec.json.encode(Claim.mine()), int(seconds * 1000))

    async def acquire(self) -> float:
        dead = b""
        for _ in range(_TRIES):
            asked = self._clock.monotonic()
            held = await self._server.submit(ACQUIRE, (*self._item, dead))
            if held is None:
                return asked
            if holder := holder_in(held):
                raise RunBusy(self._run_id, holder=holder.name, since=holder.since)
            dead = held
        raise RunBusy(self._run_id, holder="other processes that took it at the same time", since=None)

    async def renew(self, patience: float) -> float | None:
        asked = self._clock.monotonic()
        return asked if await self._server.submit(RENEW, (*self._item, b"")) else None

    async def release(self) -> None:
        await self._server.submit(RELEASE, (*self._item, b""))


def holder_in(value: bytes) -> Holder | None:
    """Return the holder of a lock from the value of its key. None if that process is known to be dead."""
    try:
        claim = msgspec.json.decode(value, type=Claim)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return Holder(f"something else that set its key ({value[:80]!r})", None)
    return None if claim.is_dead else claim.told()
