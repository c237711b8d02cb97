"""Pausing a run until somebody acts or a time comes: first in the process, and then suspended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from copy import copy
from datetime import datetime
from typing import Any

from durable_core._log.chain import FLOW, decided
from durable_core._system.waits import first_of
from durable_core.errors import RunSuspended
from durable_core.record import StepRecord

from .looking import Listener
from .race import waiting
from .run import Run


def can_go_on(record: StepRecord | None, now: datetime) -> bool:
    """Return True if what a run waits for has come: an outcome, a reopening, or its deadline."""
    if record is None or record.step_id == FLOW:  # a child is waited for until it has ended
        return decided(record)
    return decided(record) or record.status == "reopened" or (record.until is not None and record.until <= now)


async def pause(run: Run, listener: Listener, until: datetime | None, limit: float | None, *, undoes: bool = False) -> None:
    """Return when something that this waits for can continue, or at `until`.

    Raises `RunSuspended` when the clock's monotonic time is `limit` and nothing else of this runner is running. Also raises what
    ends the wait, such as the run's cancellation. If `undoes`, it waits in a cancelled run too.
    """
    clock, listener.until = run.clock, until
    with waiting(run, listener):
        if run.has_news:  # of before this listened
            await listener.look()
            run.check(undoes=undoes)
        while not any(can_go_on(listener.newest(pair), clock.now()) for pair in listener.pairs):
            if until is not None and until <= clock.now():
                return
            if (limit is None or clock.monotonic() < limit) and not run.driver.hands_back():
                await wait_for_first(run, until, listener, None if limit is None else clock.sleep(limit - clock.monotonic()))
            else:
                await asyncio.sleep(0)  # a sibling of the same gather may be about to begin
                if not run.can_suspend or listener.heard.is_set():
                    await wait_for_first(run, until, listener, None if run.can_suspend else run.an_end())
                elif not await _stays(run):
                    raise _suspension(run, listener)
            run.check(undoes=undoes)
            listener.heard.clear()
            if listener.must_look or run.is_late:
                await listener.look()
            run.check(undoes=undoes)


async def wait_for_first(run: Run, until: datetime | None, listener: Listener, other: Coroutine[Any, Any, object] | None) -> None:
    """Wait until somebody acts, the time comes, or `other` is over."""
    listener.watch()
    waits: list[Coroutine[Any, Any, object]] = [listener.heard.wait()]
    deadline = run.deadline if run.log.cancelled is None else None
    if times := [each for each in (until, deadline) if each is not None]:
        waits.append(run.clock.sleep_until(min(times)))
    if other is not None:
        waits.append(other)
    await first_of(*waits)


async def _stays(run: Run) -> bool:
    """Ask the driver whether a run in which everything waits stays in this process."""
    pairs = dict.fromkeys(pair for each in run.waiting for pair in each.pairs)
    return await run.driver.stays(run.store, [*pairs], min(_times(run), default=None))


def _suspension(run: Run, mine: Listener) -> RunSuspended:
    """Return everything for which the run waits. A sibling may have been suspended a moment before."""
    earlier = run.suspended
    if earlier is not None and mine in run.named:
        return copy(earlier)  # naming all of them again for each of them would take forever
    run.named.update(run.waiting)
    names = dict.fromkeys((*(earlier.waiting_for if earlier else ()), *(each.step_id for each in run.waiting)))
    pairs = dict.fromkeys((*(earlier.pairs if earlier else ()), *(pair for each in run.waiting for pair in each.pairs)))
    times = _times(run)
    if earlier is not None and earlier.until is not None:
        times.append(earlier.until)
    run.suspended = RunSuspended(run.id, waiting_for=tuple(names), until=min(times, default=None), pairs=tuple(pairs))
    return run.suspended


def _times(run: Run) -> list[datetime]:
    """Return the earliest time at which something in the run can continue by itself."""
    times = [each.until for each in run.waiting if each.until is not None]
    if run.deadline is not None and run.log.cancelled is None:
        times.append(run.deadline)
    return times
