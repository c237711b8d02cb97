"""A run's lock in Redis: a key that expires, and is renewed for as long as it is held."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any, Final

import msgspec
from redis.asyncio import Redis, RedisCluster

from durable_core.clock import Clock
from durable_core.errors import RunBusy, StoreError
from durable_core.store import Holder, forks
from durable_core.stores.batcher import Batcher
from durable_core.stores.lease import Claim, LeaseRequests

from ._copies import Copies
from ._errors import store_error
from ._scripts import ACQUIRE, RELEASE, RENEW, Item, Script, call_for, split
from ._server import Server

_TRIES: Final = 5
_CALL_LEASES: Final = 50


class Locks:
    """The server as the thread knows it that renews leases: by a client of its own, with one call for many leases."""

    def __init__(self, client: Redis | RedisCluster, *, copies: Copies) -> None:
        self._client: Final = client
        self._server: Final = Server(client, copies=copies, limit=None)
        self._batchers: Final[dict[tuple[Script, str], Batcher[Item, Any]]] = {}
        self.copies: Final = copies
        self.forks: Final = forks()

    async def call(self, script: Script, item: Item) -> Any:
        """Run a script for one lease, together with others that are asked for at the same time."""
        kind = script, "" if self._server.spans_runs else await self._server.node(item[0])
        if kind not in self._batchers:
            self._batchers[kind] = Batcher(partial(self._flush, script), size=_nothing)
        answer = await self._batchers[kind].submit(item)
        if isinstance(answer, Exception):
            raise store_error(answer, item[0])
        return answer

    async def _flush(self, script: Script, items: Sequence[Item]) -> Sequence[Any]:
        chunks = split(items, together=self._server.spans_runs, most=_CALL_LEASES)
        calls = [call_for(script, chunk, keys=2) for chunk in chunks]
        replies = await self._server.call_all(calls, confirm=script is RENEW)
        return [
            answer
            for chunk, reply in zip(chunks, replies, strict=True)
            for answer in (repeat(reply, len(chunk)) if isinstance(reply, StoreError) else reply)
        ]

    async def close(self) -> None:
        await self._client.aclose()


class RunLease(LeaseRequests):
    """One lease of one run. The key holds the claim; renewals keep the run's log from expiring too."""

    def __init__(self, locks: Locks, run_id: str, *, lock: str, log: str, seconds: float, clock: Clock) -> None:
        self._locks: Final = locks
        self._run_id: Final = run_id
        self._clock: Final = clock
        self._item: Final = (lock, log, msgspec.json.encode(Claim.mine()), int(seconds * 1000))

    async def acquire(self) -> float:
        dead = b""
        for _ in range(_TRIES):
            asked = self._clock.monotonic()
            held = await self._locks.call(ACQUIRE, (*self._item, dead))
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
        return asked if await self._locks.call(RENEW, (*self._item, b"")) else None

    async def release(self) -> None:
        await self._locks.call(RELEASE, (*self._item, b""))


def holder_in(value: bytes) -> Holder | None:
    """Return who holds the lock whose key has this value, or None if that process is known to be dead."""
    try:
        claim = msgspec.json.decode(value, type=Claim)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return Holder(f"something else that set its key ({value[:80]!r})", None)
    return None if claim.is_dead else claim.told()


def _nothing(item: Item) -> int:
    return 0
