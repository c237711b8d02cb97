"""A run's lock in Redis: a key that expires, and is renewed for as long as it is held."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec
from redis.asyncio import Redis, RedisCluster

from durable_core.clock import Clock
from durable_core.errors import RunBusy, StoreError
from durable_core.store import Holder, forks
from durable_core.stores.batcher import Batcher
from durable_core.stores.lease import Claim, LeaseRequests
from durable_core.stores.lines import UNREADABLE

from ._copies import Copies
from ._scripts import ACQUIRE, RELEASE, RENEW, Call
from ._server import Server

_TRIES: Final = 5


class Locks:
    """The server as the thread knows it that renews leases: by a client of its own, with one pipeline for many leases."""

    def __init__(self, client: Redis | RedisCluster, *, copies: Copies) -> None:
        self._client: Final = client
        self._server: Final = Server(client, copies=copies, limit=None)
        self._batchers: Final[dict[tuple[str, bool], Batcher[Call, Any]]] = {}
        self.copies: Final = copies
        self.forks: Final = forks()

    async def call(self, call: Call, *, confirm: bool = False) -> Any:
        """Run one script, together with others that are asked for at the same time."""
        node = "" if self._server.spans_runs else await self._server.node(call.keys[0])
        kind = node, confirm
        if kind not in self._batchers:
            self._batchers[kind] = Batcher(partial(self._flush, confirm=confirm), size=_nothing)
        reply = await self._batchers[kind].submit(call)
        if isinstance(reply, StoreError):
            raise reply
        return reply

    async def _flush(self, calls: Sequence[Call], *, confirm: bool) -> Sequence[Any]:
        if len(calls) == 1:
            return [await self._server.call(calls[0], confirm=confirm)]
        return await self._server.call_all(calls, confirm=confirm)

    async def close(self) -> None:
        await self._client.aclose()


class RunLease(LeaseRequests):
    """One lease of one run. The key holds the claim; renewals keep the run's log from expiring too."""

    def __init__(self, locks: Locks, run_id: str, *, lock: str, log: str, seconds: float, clock: Clock) -> None:
        self._locks: Final = locks
        self._run_id: Final = run_id
        self._keys: Final = (lock, log)
        self._ms: Final = int(seconds * 1000)
        self._clock: Final = clock
        self._value: Final = msgspec.json.encode(Claim.mine())

    async def acquire(self) -> float:
        dead = b""
        for _ in range(_TRIES):
            asked = self._clock.monotonic()
            held = await self._locks.call(Call(ACQUIRE, self._keys, self._value, self._ms, dead))
            if held is None:
                return await self._confirmed() if self._locks.copies else asked
            if holder := holder_in(held):
                raise RunBusy(self._run_id, holder=holder.name, since=holder.since)
            dead = held
        raise RunBusy(self._run_id, holder="other processes that took it at the same time", since=None)

    async def _confirmed(self) -> float:
        counts_from = await self.renew(0)
        if counts_from is None:
            raise StoreError(f"the lock of run {self._run_id!r} was taken, and gone before its copies were there; try again")
        return counts_from

    async def renew(self, patience: float) -> float | None:
        asked = self._clock.monotonic()
        renewed = await self._locks.call(Call(RENEW, self._keys, self._value, self._ms), confirm=True)
        return asked if renewed else None

    async def release(self) -> None:
        await self._locks.call(Call(RELEASE, self._keys, self._value))


def holder_in(value: bytes) -> Holder | None:
    """Return who holds the lock whose key has this value, or None if that process is known to be dead."""
    try:
        claim = msgspec.json.decode(value, type=Claim)
    except UNREADABLE:
        return Holder(f"something else that set its key ({value[:80]!r})", None)
    return None if claim.is_dead else claim.told()


def _nothing(call: Call) -> int:
    return 0
