"""A run's lock: a lease of numbered objects, made with `If-None-Match` alone.

The object with the highest number is the lease. Taking it, renewing it and giving it back each create the next number, so that of
all who want a number one gets it. The highest is never removed: numbers never start again, and a PUT that was long on its way
lands below it. Ages come from the server's clock alone, a holder's own deadline from a clock that only runs forward.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from datetime import UTC, datetime
from typing import Final

import msgspec

from durable_core.errors import LockLost, RunBusy, StoreError
from durable_core.store import Lease, to_the_end

from ._bucket import Bucket, Page
from ._entry import UNREADABLE
from ._keys import Keys, number

LEASE_SECONDS: Final = 30.0
# `Date` and `Last-Modified` are whole seconds, each up to one second off.
_ROUNDING_SECONDS: Final = 2.0
_RELEASE_PATIENCE: Final = 5.0
_SHORTEST_PAUSE: Final = 0.05
_LEFT_BEHIND: Final = 100
"""So many objects a holder sees that others left, where a DELETE failed or a PUT came late, and removes with its own."""
_log: Final = logging.getLogger("durable_s3")


class Claim(msgspec.Struct):
    """What stands in a lease's object."""

    run_id: str
    holder: str
    token: str
    since: datetime
    seconds: float
    released: bool = False


class RunLease(Lease):
    """One attempt to hold one run, and the lease once it is held."""

    def __init__(self, bucket: Bucket, keys: Keys, run_id: str, seconds: float) -> None:
        self._bucket: Final = bucket
        self._keys: Final = keys
        self._claim: Final = Claim(
            run_id=run_id,
            holder=f"process {os.getpid()} on {socket.gethostname()}",
            token=os.urandom(12).hex(),
            since=datetime.now(UTC),
            seconds=seconds,
        )
        self._pid: Final = os.getpid()
        self._number = 0
        self._next = 0
        self._next_tried = 0.0
        self._deadline = 0.0
        self._left: Final[set[int]] = set()
        self._lost = ""

    def check(self) -> None:
        if not self._lost and self._pid != os.getpid():
            self._lost = "the process was forked, and the lease stays with the parent"
        if not self._lost and _now() >= self._deadline:
            self._lost = f"it was not renewed within {self._claim.seconds:g} s"
        if self._lost:
            raise LockLost(f"the lock of run {self._claim.run_id!r} is lost: {self._lost}; resume the run to go on")

    async def acquire(self) -> None:
        """Take the lease, or raise `RunBusy`: three requests, five where it was held before.

        Where it is cancelled or fails, what it may have taken by then is given back.
        """
        try:
            await self._acquire()
        except BaseException:
            if self._next:
                await to_the_end(self._give_up())
            raise

    async def _acquire(self) -> None:
        run_id = self._claim.run_id
        holder = None
        for _ in range(5):
            page = await self._bucket.first(self._keys.leases(run_id))
            latest = 0
            if page.objects:
                latest = number(page.objects[0].key)
                holder = await self._read(latest)
                if holder is None:
                    continue  # given back or renewed since
                if not holder.released and _age(page) < holder.seconds + _ROUNDING_SECONDS:
                    raise RunBusy(run_id, holder=holder.holder, since=holder.since)
            if await self._take(latest + 1):
                return
        who = holder.holder if holder else "another process that took it at the same time"
        raise RunBusy(run_id, holder=who, since=holder.since if holder else None)

    async def _take(self, number_: int) -> bool:
        if not await self._create(number_):
            return False
        # Another may have taken, given back and tidied up this number while our PUT was on its way.
        page = await self._bucket.first(self._keys.leases(self._claim.run_id), _LEFT_BEHIND)
        highest, *older = [number(at.key) for at in page.objects] or [0]
        if highest != number_:
            self._next = 0
            await self._tidy(number_)
            return False
        deadline = self._next_tried + self._claim.seconds
        if _now() >= deadline:
            raise StoreError(
                f"taking the lock of run {self._claim.run_id!r} took longer than its lease of {self._claim.seconds:g} s;"
                " try again, or give a longer one"
            )
        self._number, self._deadline = number_, deadline
        await self._tidy(*older)
        return True

    async def _give_up(self) -> None:
        """Give back the number that was asked for last, whatever became of the request."""
        try:
            # A cancelled request goes on in its thread: whichever of the two comes first, the number is ours or another's.
            if await self._create(self._next, patience=_RELEASE_PATIENCE):
                self._number = self._next
                await self._release()
        except StoreError as error:
            _log.warning("the lock of run %r was not given back: %s", self._claim.run_id, error)

    async def keep(self) -> None:
        """Renew the lease every third of its time until it is lost."""
        third, least = self._claim.seconds / 3, _SHORTEST_PAUSE
        while not self._lost:
            renewed = self._deadline - self._claim.seconds
            await asyncio.sleep(min(third, max(least, renewed + third - _now())))
            try:
                await self._renew()
                least = _SHORTEST_PAUSE
            except StoreError as error:
                _log.warning("the lock of run %r was not renewed: %s", self._claim.run_id, error)
                least = max(2 * least, third / 10)

    async def _renew(self) -> None:
        left = self._deadline - _now()
        if left <= 0:
            self._lost = f"it was not renewed within {self._claim.seconds:g} s"
            return
        number_ = self._number + 1
        if not await self._create(number_, patience=left):
            self._lost = "another process took it over"
        elif _now() >= self._deadline:
            # Whoever took over may have been and gone, number and all, before our PUT arrived.
            self._lost = f"its renewal took longer than {self._claim.seconds:g} s"
        else:
            self._number, self._deadline = number_, self._next_tried + self._claim.seconds
            await self._tidy(number_ - 1)

    async def release(self) -> None:
        """Give the lease back, unless it is lost; where that fails it runs out by itself.

        Done to its end though the caller be cancelled.
        """
        await to_the_end(self._release())

    async def _release(self) -> None:
        lost, self._lost = self._lost, self._lost or "it was given back"
        if lost or self._pid != os.getpid():  # a forked child must not give back what its parent holds
            return
        self._claim.released = True
        try:
            for _ in range(2):
                number_ = self._number + 1
                if await self._bucket.create(self._key(number_), self._body(), patience=_RELEASE_PATIENCE):
                    await self._tidy(number_ - 1)
                    return
                holder = await self._read(number_)
                if holder is None or holder.token != self._claim.token or holder.released:
                    return
                self._number = number_  # a renewal whose answer was lost
        except StoreError as error:
            _log.warning("the lock of run %r was not given back: %s", self._claim.run_id, error)

    async def _create(self, number_: int, *, patience: float = LEASE_SECONDS) -> bool:
        """Create the object of this number, or find that an earlier attempt of ours did."""
        if self._next != number_:
            # The age of the object counts from the first attempt at the earliest, so the deadline does, too.
            self._next, self._next_tried = number_, _now()
        if await self._bucket.create(self._key(number_), self._body(), patience=patience):
            return True
        holder = await self._read(number_)
        if holder is not None and holder.token == self._claim.token:
            return True
        self._next = 0
        return False

    async def _read(self, number_: int) -> Claim | None:
        content = await self._bucket.read(self._key(number_))
        if content is None:
            return None
        try:
            return msgspec.json.decode(content.body, type=Claim)
        except UNREADABLE as error:
            raise StoreError(
                f"the lock object {self._key(number_)!r} can't be read ({error}); if nothing runs the run, delete it"
            ) from error

    async def _tidy(self, *numbers: int) -> None:
        """Remove objects below the highest, also those that could not be removed before."""
        self._left.update(numbers)
        if not self._left:
            return
        try:
            await self._bucket.delete([self._key(number_) for number_ in sorted(self._left)], patience=0)
            self._left.clear()
        except StoreError as error:
            _log.info("old lock objects were left, which the next holder removes: %s", error)

    def _key(self, number_: int) -> str:
        return self._keys.lease(self._claim.run_id, number_)

    def _body(self) -> bytes:
        return msgspec.json.encode(self._claim)


def _age(page: Page) -> float:
    if page.date is None:
        raise StoreError("the endpoint's answers carry no Date header, so the age of a lock is unknown; use another endpoint")
    return (page.date - page.objects[0].modified).total_seconds()


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# Counts the time in which the machine sleeps, where there is such a clock.
_now: Final = _boottime if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
