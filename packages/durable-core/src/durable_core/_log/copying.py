"""Copying a run to another store, and forking it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import AsyncExitStack
from datetime import datetime
from itertools import takewhile
from typing import Any

import msgspec

from durable_core._system.ids import check_id, check_own_id
from durable_core.clock import Clock
from durable_core.errors import CopyConflict, NotFound, Refused
from durable_core.record import StepRecord
from durable_core.store import Store, check_store, wakeups_of

from .chain import FLOW, decided, new_entry, newest
from .clearing import hold_children
from .known import no_run, now_by, signed
from .lock import holding
from .notes import child_of, ids_in
from .wakeups import asking


async def copy(store: Store, run_id: str, to_store: Store, *, dry_run: bool = False) -> int:
    """Copy a run and its children to another store, entry for entry and in order; return how many entries they have.

    Their locks in `store` are held meanwhile, so that a live run can be moved. The originals stay as they are. Safe to repeat
    after a crash. Raises `RunBusy` if another runner holds one of the locks, `CopyConflict` if `to_store` has other entries under
    one of the run ids, and `NotFound` for a run that doesn't exist. With `dry_run`, nothing is appended, and the same errors are
    raised.
    """
    check_store(store)
    check_store(to_store)
    check_id("run_id", run_id)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(holding(store, run_id))
        if not (entries := await store.list(run_id)):
            raise await no_run(store, run_id)
        children = await hold_children(store, run_id, stack, ended=False) or []
        family = {child: await store.list(child) for child in children}
        family[run_id] = entries  # last, so that nobody takes it up before its children are there
        counts = [await _append_all(entries, each, to_store, dry_run=True) for each, entries in family.items()]
        for each, entries in family.items() if not dry_run else ():
            await _append_all(entries, each, to_store)
        return sum(counts)


async def fork(
    store: Store, run_id: str, new_run_id: str, *, before: str, by: str | None = None, clock: Clock | None = None
) -> int:
    """Begin a new run with the outcomes of the steps that began before the step `before`. That step and all later ones run again.

    The new run gets all entries of these steps. Steps without an outcome are left out, and so are steps whose child has not
    ended, and waits and children that were given up because another contender won, or because the run was cancelled. A map
    begins with its first item. If the run has a flow, the new run waits for its turn with the same input, and its `$flow`
    records its origin, and `by` if that is given. Returns the number of step entries that were copied. The original stays as it
    is. Safe to repeat after a crash, until the new run has continued. Raises `CopyConflict` if the new run has other entries,
    `NotFound` for a run or step that doesn't exist, and `Refused` for a race, whose entry doesn't say with which step it began.
    """
    check_store(store)
    check_id("run_id", run_id)
    check_own_id("new_run_id", new_run_id)
    check_id("before", before)
    said = signed(None, by)
    if not (entries := await store.list(run_id)):
        raise await no_run(store, run_id)
    begun: dict[str, list[StepRecord]] = {}
    for record in entries:
        if not record.step_id.startswith("$"):
            begun.setdefault(record.step_id, []).append(record)
    if before not in begun:
        raise NotFound(f"run {run_id!r} has no step {before!r} to fork before; its steps: {', '.join(map(repr, begun))}")
    latest = newest(entries)
    earlier = _earlier(begun, latest[before])
    lost = {step for record in latest.values() if record.kind == "first" for step in ids_in(record, "lost")}
    kept = {step for step in earlier if _is_outcome(latest[step], lost) and await _has_ended(store, latest[step])}
    taken = [msgspec.structs.replace(record, run_id=new_run_id) for record in entries if record.step_id in kept]
    origin = {"run": run_id, "before": before}
    count = await _append_all(taken, new_run_id, store, origin=origin)
    if FLOW in latest:
        # Last, so that nobody takes the run up before its steps are there.
        now, flow = now_by(clock), latest[FLOW]
        async with asking(wakeups_of(store), new_run_id, flow.name, now, now):
            forked = await store.get(new_run_id, FLOW)
            if forked is None:
                forked = await store.append(_forked(flow, new_run_id, {"origin": origin, **said}, now))
                if forked.notes.get("origin") != origin:
                    raise _conflict(forked)
    return count


def _earlier(begun: Iterable[str], before: StepRecord) -> list[str]:
    """Return the steps that began before this one. A map is recorded after its items, with the first of which it began."""
    if before.kind == "first":
        raise Refused(
            f"{before.step_id!r} of run {before.run_id!r} is a race, and was recorded after its contenders' steps; fork before"
            " the first of these steps"
        )
    items = f"{before.step_id}/"
    return [*takewhile(lambda step: step != before.step_id and not (before.kind == "map" and step.startswith(items)), begun)]


def _is_outcome(step: StepRecord, lost: Container[str]) -> bool:
    """Tell whether a step has an outcome, and was not given up because it lost a race or its run was cancelled."""
    is_given_up = step.status == "failure" and (step.step_id in lost or bool(step.notes.get("told")))
    return decided(step) and not is_given_up


async def _has_ended(store: Store, step: StepRecord) -> bool:
    """Tell whether the child that the step called for has ended, or was cleared since; true of any other step."""
    child = child_of(step)
    flow = None if child is None else await store.get(child, FLOW)
    return flow is None or decided(flow)


def _forked(flow: StepRecord, run_id: str, said: dict[str, Any], now: datetime) -> StepRecord:
    """Return the first entry of a flow that begins with what another run decided."""
    note = {name: flow.notes[name] for name in ("input", "defaults") if name in flow.notes}
    note |= {"asked": {"at": now.isoformat()}, **said}
    return new_entry(run_id, FLOW, now, status="waiting", kind="flow", name=flow.name, note=note, fingerprint=flow.fingerprint)


async def _append_all(
    entries: Iterable[StepRecord],
    run_id: str,
    store: Store,
    *,
    origin: dict[str, str] | None = None,
    dry_run: bool = False,
) -> int:
    taken = {(record.step_id, record.revision): record for record in entries}
    there = {(record.step_id, record.revision): record for record in await store.list(run_id)}
    for slot, record in there.items():
        if slot == (FLOW, 0) and origin is not None and record.notes.get("origin") == origin:
            continue  # of the same fork
        if slot not in taken or taken[slot].id != record.id:
            raise _conflict(record)
    if dry_run:
        return len(taken)
    for slot, record in taken.items():
        holder = there.get(slot) or await store.append(record)
        if holder.id != record.id:
            raise _conflict(holder)
    return len(taken)


def _conflict(record: StepRecord) -> CopyConflict:
    return CopyConflict(
        f"the target already has a different entry for step {record.step_id!r}, revision {record.revision}, of run"
        f" {record.run_id!r}; choose another run id, or clear that run"
    )
