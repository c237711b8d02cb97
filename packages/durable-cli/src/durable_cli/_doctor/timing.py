"""Measures how long each call takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from math import ceil
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Final

from durable_cli._text import span
from durable_core import StepRecord
from durable_core.store import lock_of, wakeups_of

from .finding import Check, Note, Safe, check, rounds

if TYPE_CHECKING:
    from .scratch import Scratch

_CALLS: Final = 100
_SECONDS: Final = 1.0
_LONG_LOG: Final = 50
Call = Callable[[int], Awaitable[object]]


def _timed(key: str, title: str, prepare: Callable[[Scratch], Awaitable[Call]]) -> Check:
    """Make a check that measures a call. The call gets its number."""

    @check(f"time-{key}", title, danger="this call does not work")
    async def look(scratch: Scratch) -> Safe:
        call, took = await prepare(scratch), []
        for number in rounds(_CALLS, seconds=_SECONDS):
            begun = perf_counter()
            await call(number)
            took.append(perf_counter() - begun)
        took.sort()
        p99 = took[ceil(len(took) * 0.99) - 1]
        says = f"median {span(median(took))}, p99 {span(p99)}, of {len(took)} calls"
        return Safe(says, {"median": median(took), "p99": p99, "calls": len(took)})

    return look


async def _append(scratch: Scratch) -> Call:
    run_id = scratch.run_id("time-append")
    return lambda number: scratch.store.append(StepRecord(run_id=run_id, step_id=f"step {number}", result=b'"0123456789"'))


async def _get(scratch: Scratch) -> Call:
    run_id = scratch.run_id("time-get")
    await scratch.store.append(StepRecord(run_id=run_id, step_id="step"))
    return lambda number: scratch.store.get(run_id, "step")


async def _list(scratch: Scratch) -> Call:
    run_id = scratch.run_id("time-list")
    records = [StepRecord(run_id=run_id, step_id=f"step {number}") for number in range(_LONG_LOG)]
    await asyncio.gather(*map(scratch.store.append, records))
    return lambda number: scratch.store.list(run_id)


async def _lock(scratch: Scratch) -> Call:
    locks, run_id = lock_of(scratch.store), scratch.run_id("time-lock")
    if locks is None:
        raise Note("this store has no lock")

    async def call(number: int) -> None:
        async with locks.lock(run_id):
            pass

    return call


async def _wakeup(scratch: Scratch) -> Call:
    wakeups, run_id = wakeups_of(scratch.store), scratch.run_id("time-wakeup")
    if wakeups is None:
        raise Note("this store has no wake-ups")

    async def call(number: int) -> None:
        mine = await scratch.set_wakeup(run_id, f"{scratch.flow}-time", datetime.now(UTC) - timedelta(days=1))
        await wakeups.take_wakeups([mine.flow], limit=1, visibility_timeout=timedelta(seconds=60))
        await wakeups.clear_wakeups([mine])

    return call


TIMES: Final = (
    _timed("append", "Time of append", _append),
    _timed("get", "Time of get", _get),
    _timed("list", f"Time of list ({_LONG_LOG})", _list),
    _timed("lock", "Time of lock", _lock),
    _timed("wakeup", "Time of a wake-up", _wakeup),
)
