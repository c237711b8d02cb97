"""Clearing runs that have ended, with their children."""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import datetime
from typing import Final

from durable_core.errors import Refused, RunBusy, StoreError
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.stores.flows import FlowState

from .chain import FLOW, decided
from .finding import Damage, find_flows
from .lock import holding
from .notes import children_of, parent_of

_ENDED: Final[frozenset[FlowState]] = frozenset({"succeeded", "failed", "cancelled"})


async def clear_before(store: Store, prefix: str, moment: datetime, damage: Damage, *, dry_run: bool) -> list[str]:
    """Clear the runs that ended before `moment`, children first; return their ids. With `dry_run`, nothing is cleared."""
    cleared: list[str] = []
    async for flow in find_flows(store, prefix, _ENDED, damage):
        if not decided(flow) or flow.ended_at >= moment:
            continue
        try:
            parent = parent_of(flow)
            if parent is None or await store.get(parent[0], FLOW) is None:  # a child goes with its parent
                cleared += await _clear_family(store, flow, dry_run=dry_run)
        except RunBusy:
            continue  # somebody is working on it, or repairing it
        except StoreError as error:
            damage.take(error)
    return cleared


async def clear_one(store: Store, flow: StepRecord) -> list[str]:
    """Clear one run that has ended, children first; return their ids. Raises `Refused` for a run that must stay."""
    if (parent := parent_of(flow)) is not None and await store.get(parent[0], FLOW) is not None:
        raise Refused(f"run {flow.run_id!r} is a child of run {parent[0]!r}; clear that run, and its children are cleared too")
    if not (family := await _clear_family(store, flow, dry_run=False)):
        raise Refused(f"run {flow.run_id!r} or one of its children has not ended; wait for its end, or cancel it first")
    return family


async def _clear_family(store: Store, flow: StepRecord, *, dry_run: bool) -> list[str]:
    """Clear a run that has ended, children first; return their ids. If a child has not ended, nothing is cleared."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(holding(store, flow.run_id))
        if not decided(await store.get(flow.run_id, FLOW)):
            return []
        children = await hold_children(store, flow.run_id, stack, ended=True)
        family = [] if children is None else [*children, flow.run_id]
        for run_id in [] if dry_run else family:
            await store.clear(run_id)
        return family


async def hold_children(store: Store, run_id: str, stack: AsyncExitStack, *, ended: bool) -> list[str] | None:
    """Lock the children of a run, and their children; return their ids, children first.

    Returns None if they must have `ended` and one of them has not.
    """
    names: list[str] = []
    for child in children_of(await store.list(run_id)):
        parent = parent_of(await store.get(child, FLOW))
        if parent is None or parent[0] != run_id:
            continue  # it was cleared, or is a child of the run from which this one was forked
        await stack.enter_async_context(holding(store, child))
        if ended and not decided(await store.get(child, FLOW)):
            return None
        below = await hold_children(store, child, stack, ended=ended)
        if below is None:
            return None
        names += [*below, child]
    return names
