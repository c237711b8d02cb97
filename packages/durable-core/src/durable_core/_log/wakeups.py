"""Wake-ups around acts that let a run continue: a worker looks at the run soon, even if the actor dies in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

from durable_core.clock import Clock
from durable_core.errors import Refused
from durable_core.record import StepRecord
from durable_core.store import Store, SupportsWakeups, WakeUp, wakeups_of

from .chain import FLOW, Append, decided
from .known import now_by
from .news import telling
from .notes import parent_of, root_of

NET: Final = timedelta(minutes=1)
"""How far ahead the first wake-up is. It remains if the actor dies before it sets one for now."""


@asynccontextmanager
async def waking(store: Store, run_id: str, clock: Clock | None) -> AsyncIterator[Append]:
    """Yield an `append` for acts from outside, which may let runs continue: workers look at each run that it appended to.

    A wake-up for a minute ahead is set before the first append to each run, and remains if the act is interrupted. After the
    act, even if it was refused, this looks for the flows, which may have begun meanwhile, sets wake-ups for now, and clears
    the first ones.
    """
    append = telling(store)
    wakeups = wakeups_of(store)
    if wakeups is None:
        yield append
        return
    acted_on: dict[str, None] = {}
    nets: list[WakeUp] = []

    async def acts_on(run_id: str) -> None:
        if run_id not in acted_on:
            acted_on[run_id] = None
            if (flow := await store.get(run_id, FLOW)) is not None:
                nets.append(await wakeups.set_wakeup(*await _driver_of(store, flow), now_by(clock) + NET))

    async def noting(record: StepRecord) -> StepRecord:
        await acts_on(record.run_id)
        return await append(record)

    await acts_on(run_id)
    refusal: Refused | None = None
    try:
        yield noting
    except Refused as error:
        refusal = error
    now = nets[0].now if nets else now_by(clock)  # the store's clock, if it is known
    targets = [await whom_to_wake(store, await store.get(each, FLOW)) for each in acted_on]
    for target in dict.fromkeys(targets):
        if target is not None:
            await wakeups.set_wakeup(*target, now)
    if nets:
        await wakeups.clear_wakeups(nets)
    if refusal is not None:
        raise refusal


@asynccontextmanager
async def asking(wakeups: SupportsWakeups | None, run_id: str, flow: str, now: datetime, at: datetime) -> AsyncIterator[None]:
    """Set the wake-ups of a run that is asked for in this context, to run no earlier than `at`."""
    if wakeups is None:
        yield
        return
    net = await wakeups.set_wakeup(run_id, flow, now + NET)
    yield
    await wakeups.set_wakeup(run_id, flow, net.now if at <= now else at)
    await wakeups.clear_wakeups([net])


async def whom_to_wake(store: Store, flow: StepRecord | None) -> tuple[str, str] | None:
    """Return the run to look at after something happened to this one, and its flow's name; None if nothing waits for it.

    That is the topmost run that drives it; if this run has ended, the run that waits for it.
    """
    if flow is None:
        return None
    driver = await _driver_of(store, flow)
    if not decided(flow) or driver[0] != flow.run_id:
        return driver
    parent = parent_of(flow)
    above = None if parent is None else await store.get(parent[0], FLOW)
    return None if above is None or decided(above) else await _driver_of(store, above)


async def _driver_of(store: Store, flow: StepRecord) -> tuple[str, str]:
    """Return the topmost run that drives this one, and its flow's name; if that run has ended, this one."""
    root = root_of(flow)
    if root is not None:
        top = await store.get(root[0], FLOW)
        if top is not None and not decided(top):
            return root
    return flow.run_id, flow.name


async def wake(store: Store, flow: StepRecord, at: datetime) -> None:
    """Make a worker look at a run, or at the run that drives it or waits for it, at a given time."""
    if (wakeups := wakeups_of(store)) is not None and (target := await whom_to_wake(store, flow)) is not None:
        await wakeups.set_wakeup(*target, at)
