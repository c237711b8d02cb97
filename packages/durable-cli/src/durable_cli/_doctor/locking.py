"""Checks that one process at a time can hold a run's lock."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from durable_core import RunBusy
from durable_core.store import SupportsLock, holder_of, lock_of

from .finding import Note, Safe, Unsafe, check, rounds

if TYPE_CHECKING:
    from .scratch import Scratch

_PATIENCE: Final = 5.0  # seconds
_AGAIN: Final = 0.05  # seconds


@check(
    "lock",
    "Lock",
    promise="one process at a time drives a run",
    danger="two processes could drive one run, and run its steps twice",
)
async def lock(scratch: Scratch) -> Safe:
    run_id = scratch.run_id("lock")
    locks, holders = _locks(scratch), holder_of(scratch.another)
    times = 0
    for _ in rounds(8, seconds=2):
        times += 1
        held = sum(await scratch.all_ask("hold", run_id=run_id))
        if held != 1:
            raise Unsafe(f"{held or 'none'} of {scratch.rivals} processes got the lock of one run at the same moment")
        if await _takes(locks, run_id):
            raise Unsafe("this process was given a lock that another one held")
        if holders is not None and await holders.holder(run_id) is None:
            raise Unsafe("a lock that is held is reported as free, so a run in progress would look interrupted")
        await asyncio.gather(*(process.ask("release") for process in await scratch.processes(scratch.rivals)))
        if holders is not None and await holders.holder(run_id) is not None:
            raise Unsafe("a lock that was released is reported as held")
        if not await _takes(locks, run_id):
            raise Unsafe("a lock that was released is not free")
    other = lock_of(scratch.another)
    assert other is not None
    async with locks.lock(run_id) as lease:
        if await _takes(other, run_id):
            raise Unsafe("two connections of this process held one lock")
        lease.check()
    told = ", and its holder is reported" if holders else ""
    return Safe(f"of {scratch.rivals} processes that asked at the same time, one got it, {times} times{told}")


@check(
    "dead-lock",
    "Lock of the dead",
    promise="a run whose process died is free again",
    danger="a run whose process died would never continue",
)
async def dead_lock(scratch: Scratch) -> Safe:
    run_id = scratch.run_id("dead")
    locks = _locks(scratch)
    (process,) = await scratch.processes(1)
    if not await process.ask("hold", run_id=run_id):
        raise Unsafe("a lock that nobody holds was refused")
    await process.kill()
    lease, killed = getattr(locks, "lease_seconds", None), monotonic()
    while not await _takes(locks, run_id):
        if monotonic() - killed > _PATIENCE:
            if lease is not None and lease > _PATIENCE - 1:
                raise Note(
                    f"the lock of a process that died stays taken for its lease of {lease:g} s, longer than this check waits"
                )
            raise Unsafe(f"the lock of a process that was killed is still taken {_PATIENCE:g} s later")
        await asyncio.sleep(_AGAIN)
    return Safe(f"the lock of a process that was killed was free {_soon(monotonic() - killed)}")


def _locks(scratch: Scratch) -> SupportsLock:
    locks = lock_of(scratch.store)
    if locks is None:
        raise Note("this store has no lock: two runners of one run may both run a step's function")
    return locks


async def _takes(locks: SupportsLock, run_id: str) -> bool:
    """Return True if the lock is free. Gives it back at once."""
    with suppress(RunBusy):
        async with locks.lock(run_id):
            return True
    return False


def _soon(seconds: float) -> str:
    return "at once" if seconds < 1 else f"after {seconds:.0f} s"
