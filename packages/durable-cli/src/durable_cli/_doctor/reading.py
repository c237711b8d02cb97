"""Checks that reads show all earlier writes, and that the index agrees with the logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from durable_core import StepRecord, Store
from durable_core.engine import FLOW, state_of
from durable_core.record import Status
from durable_core.store import SupportsFlows, flows_of, runs_of
from durable_core.stores.flows import FlowState

from .finding import Note, Safe, Unsafe, check, rounds
from .scratch import ids

if TYPE_CHECKING:
    from .processes import OtherProcess
    from .scratch import Scratch

_READERS: Final = 2
_PAGE: Final = 5
_LIVES: Final[Sequence[Sequence[Status]]] = (
    ("started",),
    ("started", "waiting"),
    ("started", "waiting", "started"),
    ("started", "failure"),
    ("started", "success"),
)
"""The statuses of the entries of each flow, in order."""
_STATES: Final[Sequence[FlowState]] = ("started", "waiting", "failed", "succeeded")


@check(
    "fresh",
    "Reads",
    promise="everybody sees immediately what was written",
    danger="a run could continue without seeing a decision, or run a step again",
)
async def fresh(scratch: Scratch) -> Safe:
    run_id = scratch.run_id("fresh")
    processes = await scratch.processes(_READERS)
    readers: Sequence[tuple[str, Store | OtherProcess]] = [
        ("another connection", scratch.store),
        ("the same connection", scratch.another),
        *(("another process", process) for process in processes),
    ]
    entries: list[str] = []
    for revision in rounds(30, seconds=2):
        record = StepRecord(run_id=run_id, step_id="step", revision=revision)
        if revision % 2:
            await scratch.another.append(record)
        else:
            await processes[revision % _READERS].append(record)
        entries.append(record.id)
        for who, reader in readers:
            if ids([await reader.get(run_id, "step")]) != [record.id]:
                raise Unsafe(f"a write was missing when {who} read its step right after it")
            if ids(await reader.list(run_id)) != entries:
                raise Unsafe(f"a write was missing or out of place when {who} read the log right after it")
    return Safe(f"each of {len(entries)} writes was seen immediately, by other connections and other processes")


@check("runs", "List of runs", danger="a run could be overlooked when you search, clean up or move runs")
async def runs(scratch: Scratch) -> Safe:
    listing = runs_of(scratch.another)
    if listing is None:
        raise Note("this store can't list its runs, so a run whose id is forgotten can't be found")
    made = [scratch.run_id(f"listed-{number}") for number in range(6)]
    for run_id in made:
        await scratch.store.append(StepRecord(run_id=run_id, step_id="step"))
    await scratch.store.clear(made[0])
    found = [run_id async for run_id in listing.runs(f"{scratch.flow}-listed-")]
    missing = {*made[1:]} - {*found}
    if missing or len(found) > len(made) - 1:
        raise Unsafe(f"{len(missing)} of {len(made) - 1} runs are not in the list, which has {len(found)} lines")
    return Safe("each run once, and no run that was cleared")


@check("index", "Index of flows", danger="a run could be shown in a wrong state, or be missed by a worker's sweep")
async def index(scratch: Scratch) -> Safe:
    flows = flows_of(scratch.another)
    if flows is None:
        raise Note("this store has no index of its runs: lists and sweeps read every log")
    newest = await _flows_in_logs(scratch)
    held = getattr(flows, "flow_states", None)
    shown = {run_id: each for run_id, each in newest.items() if held is None or state_of(each) in held}
    for state in _STATES:
        found = await flows.flows(names=[scratch.flow], states=[state])
        logs = [record for record in shown.values() if state_of(record) == state]
        if [record.run_id for record in found] != [record.run_id for record in logs]:
            raise Unsafe(f"{len(logs)} runs are {state} in their logs, but {len(found)} in the index, or in another order")
        if ids(found) != ids(logs):
            raise Unsafe(f"for runs that are {state}, the index shows older entries than the logs")
    paged = await _by_page(flows, scratch.flow)
    if ids(paged) != ids(shown.values()):
        raise Unsafe(f"page by page, the index shows {len(paged)} runs of {len(shown)}, or in another order")
    return Safe(f"{len(newest)} runs are found by state and page by page, as in their logs")


async def _flows_in_logs(scratch: Scratch) -> Mapping[str, StepRecord]:
    """Write the logs of some flows. Return their newest entries, the latest start first."""
    began = datetime.now(UTC)
    newest: dict[str, StepRecord] = {}
    for number in reversed(range(12)):
        run_id, at = scratch.run_id(f"flow-{number}"), began + timedelta(milliseconds=number)
        for revision, status in enumerate(_LIVES[number % len(_LIVES)]):
            flow = StepRecord(
                run_id=run_id, step_id=FLOW, revision=revision, kind="flow", name=scratch.flow, status=status, started_at=at
            )
            newest[run_id] = await scratch.store.append(flow)
    return newest


async def _by_page(flows: SupportsFlows, name: str) -> Sequence[StepRecord]:
    found: list[StepRecord] = []
    while page := await flows.flows(
        names=[name], before=(found[-1].started_at, found[-1].run_id) if found else None, limit=_PAGE
    ):
        found += page
        if len(found) > 100:  # the index gives the same pages again and again
            break
    return found
