"""A run's lock in S3: a lease of numbered objects, which only needs `If-None-Match`.

The object with the highest number is the lease. Taking, renewing and giving back each create the next number, so only one process
gets each number. The highest is never removed: numbers never start again, and a late PUT ends up below it. Ages come only from
the server's clock; a holder's own deadline comes from a monotonic clock.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from durable_core.clock import Clock
from durable_core.errors import RunBusy, StoreError
from durable_core.store import Holder
from durable_core.stores.lease import Claim, LeaseRequests

from ._bucket import Bucket, Page
from ._entry import UNREADABLE
from ._keys import Keys, number

LEASE_SECONDS: Final = 120.0
# `Date` and `Last-Modified` are whole seconds. Each may be off by a second.
_ROUNDING_SECONDS: Final = 2.0
_PATIENCE: Final = 30.0
_RELEASE_PATIENCE: Final = 5.0
_TRIES: Final = 5
_LEFT_BEHIND: Final = 100
"""A new holder lists up to so many old objects and removes them. A failed DELETE, a late PUT or a dead holder left them."""
_log: Final = logging.getLogger("durable_s3")


class RunClaim(Claim, kw_only=True):
    """The content of a lease's object."""

    run_id: str
    seconds: float
    released: bool = False


class RunLease(LeaseRequests):
    """One lease of one run. One request removes `batch` old objects."""

    def __init__(self, bucket: Bucket, keys: Keys, run_id: str, seconds: float, clock: Clock, *, batch: int = 20) -> None:
        self._bucket: Final = bucket
        self._keys: Final = keys
        self._claim: Final = RunClaim.mine(run_id=run_id, seconds=seconds)
        self._clock: Final = clock
        self._batch: Final = batch
        self._number = 0
        """The number of the object that is ours; 0 if none is."""
        self._next = 0
        """The number that was asked for last; 0 if it is another's."""
        self._next_tried = 0.0
        self._old: Final[set[int]] = set()

    async def acquire(self) -> float:
        """Take the lease. Sends three requests, or five if the run was locked before."""
        run_id = self._claim.run_id
        for _ in range(_TRIES):
            highest, holder = await highest_of(self._bucket, self._keys, run_id)
            if holder is not None:
                raise RunBusy(run_id, holder=holder.name, since=holder.since)
            if await self._take(highest + 1):
                return self._next_tried
        raise RunBusy(run_id, holder="other processes that took it at the same time", since=None)

    async def _take(self, number_: int) -> bool:
        if not await self._create(number_, _PATIENCE):
            return False
        # Another process may have taken, given back and removed this number while our PUT was on its way.
        page = await self._bucket.first(self._keys.leases(self._claim.run_id), _LEFT_BEHIND)
        highest, *older = [number(at.key) for at in page.objects] or [0]
        if highest != number_:
            self._next = 0
            await self._tidy(number_)
            return False
        self._number = number_
        await self._tidy(*older)
        return True

    async def renew(self, patience: float) -> float | None:
        number_ = self._number + 1
        if not await self._create(number_, patience):
            return None
        self._old.add(self._number)
        self._number = number_
        if len(self._old) >= self._batch:
            await self._tidy()
        return self._next_tried

    async def release(self) -> None:
        # A cancelled request continues in its thread. Ask again: whichever comes first, we learn whether the number is ours.
        if self._next > self._number and await self._create(self._next, _RELEASE_PATIENCE):
            self._old.add(self._number)
            self._number = self._next
        if self._number and self._next == self._number:
            self._claim.released = True
            if await self._bucket.create(self._key(self._number + 1), self._body(), patience=_RELEASE_PATIENCE):
                await self._tidy(self._number)

    async def _create(self, number_: int, patience: float) -> bool:
        """Create the object of this number, or find that an earlier attempt of ours did."""
        if self._next != number_:
            # Count the lease from the first attempt, because the object may be that old.
            self._next, self._next_tried = number_, self._clock.monotonic()
        if await self._bucket.create(self._key(number_), self._body(), patience=patience):
            return True
        holder = await read(self._bucket, self._key(number_))
        if holder is not None and holder.token == self._claim.token:
            return True
        self._next = 0
        return False

    async def _tidy(self, *numbers: int) -> None:
        """Remove old objects, including those that could not be removed before."""
        self._old.update(numbers)
        self._old.discard(0)
        if not self._old:
            return
        try:
            await self._bucket.delete([self._key(number_) for number_ in sorted(self._old)], patience=0)
            self._old.clear()
        except StoreError as error:
            _log.info("old lock objects were left, which the next holder removes: %s", error)

    def _key(self, number_: int) -> str:
        return self._keys.lease(self._claim.run_id, number_)

    def _body(self) -> bytes:
        return msgspec.json.encode(self._claim)


async def highest_of(bucket: Bucket, keys: Keys, run_id: str) -> tuple[int, Holder | None]:
    """Return the highest number, 0 if there is none, and the holder of the run, None if it is free."""
    for _ in range(_TRIES):
        page = await bucket.first(keys.leases(run_id))
        if not page.objects:
            return 0, None
        key = page.objects[0].key
        claim = await read(bucket, key)
        if claim is not None:  # else it has been renewed or given back: look again
            free = claim.released or claim.is_dead or _age(page) >= claim.seconds + _ROUNDING_SECONDS
            return number(key), None if free else claim.told()
    raise StoreError(f"{keys.leases(run_id)!r} lists lock objects that no longer exist when they are read; try again")


async def read(bucket: Bucket, key: str) -> RunClaim | None:
    content = await bucket.read(key)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content.body, type=RunClaim)
    except UNREADABLE as error:
        raise StoreError(
            f"the lock object {key!r} can't be read ({error}); if no process is running the run, delete it"
        ) from error


def _age(page: Page) -> float:
    if page.date is None:
        raise StoreError("the endpoint's answers have no Date header, so the age of a lock is unknown; use another endpoint")
    return (page.date - page.objects[0].modified).total_seconds()
