"""Clearing runs that ended long ago, each with the children that its steps called for."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import Final

from durable_core.errors import RunBusy, StoreError
from durable_core.record import StepRecord
from durable_core.store import Store, lock_of

from .chain import FLOW, decided
from .family import children_of, parent_of
from .finding import Damage, find_flows
from .standing import FlowState

_ENDED: Final[frozenset[FlowState]] = frozenset({"succeeded", "failed", "cancelled"})


async def clear_before(store: Store, prefix: str, moment: datetime, damage: Damage) -> list[str]:
    """Clear the runs that ended before `moment`, children first; return their ids."""
    cleared: list[str] = []
    async for flow in find_flows(store, prefix, _ENDED, damage):
        if not decided(flow) or flow.ended_at >= moment:
            continue
        try:
            parent = parent_of(flow)
            if parent is None or await store.get(parent[0], FLOW) is None:  # a child goes with its parent
                cleared += await _clear_family(store, flow)
        except RunBusy:
            continue  # somebody is at work on it, or mends it
        except StoreError as error:
            damage.take(error)
    return cleared


async def _clear_family(store: Store, flow: StepRecord) -> list[str]:
    async with AsyncExitStack() as stack:
        family = await _hold_family(store, flow.run_id, None, stack)
        for run_id in family or ():
            await store.clear(run_id)
    return family or []


async def _hold_family(store: Store, run_id: str, parent: str | None, stack: AsyncExitStack) -> list[str] | None:
    """Hold a run and its children, and name them, children first; None where one of them has not ended."""
    flow = await store.get(run_id, FLOW)
    if parent is not None and (flow is None or (parent_of(flow) or ("",))[0] != parent):
        return []  # it was cleared, or is the child of the run that this one was forked from
    if locks := lock_of(store):
        await stack.enter_async_context(locks.lock(run_id))
        flow = await store.get(run_id, FLOW)
    if not decided(flow):
        return None
    names = [run_id]
    for child in children_of(await store.list(run_id)):
        if (family := await _hold_family(store, child, run_id, stack)) is None:
            return None
        names = [*family, *names]
    return names
