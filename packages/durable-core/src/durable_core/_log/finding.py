"""Finding runs: with the store's index if it has one, and otherwise by reading every log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from datetime import datetime
from heapq import nlargest
from typing import Final

import msgspec

from durable_core.errors import CorruptLog, Refused, StoreError
from durable_core.record import StepRecord
from durable_core.store import Store, SupportsFlows, flows_of, holder_of, polling_of, runs_of
from durable_core.stores.flows import FLOW_STATES, FlowState, is_parked

from .chain import CANCEL, FLOW
from .notes import waits_of
from .status import RunState, RunStatus, status_of

_AT_ONCE: Final = 10  # logs, which may be long
_PAGE: Final = 50
_LOOKED_AT: Final = 250
_WHOLE_INDEX: Final = 1000

Log = tuple[str, Sequence[StepRecord]]

_STATES: Final[dict[RunState, set[FlowState]]] = {
    "open": set(),
    "waiting": {"waiting", "started"},
    "running": {"started"},
    "interrupted": {"started"},
    "crashed": {"crashed"},
    "parked": {"parked"},
    "cancelling": {"cancelling"},
    "succeeded": {"succeeded"},
    "failed": {"failed"},
    "cancelled": {"cancelled"},
}
"""For each status of a run: the states that the newest entry of its flow may have."""
_WITHOUT_FLOW: Final[frozenset[RunState]] = frozenset({"open", "failed", "cancelled"})
"""The statuses of a run without a flow."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The runs to find."""

    prefix: str = ""
    states: frozenset[RunState] | None = None
    flow: str | None = None
    since: datetime | None = None
    before: tuple[datetime, str] | None = None
    only_flows: bool = False

    def takes(self, run: RunStatus) -> bool:
        """Return True if the run is one of them."""
        return (
            (self.states is None or run.status in self.states)
            and (self.flow is None or run.flow == self.flow)
            and (run.flow is not None or not self.only_flows)
            and (self.since is None or run.started_at >= self.since)
            and (self.before is None or _place(run) < self.before)
        )

    @property
    def flow_states(self) -> Collection[FlowState]:
        return FLOW_STATES if self.states is None else frozenset().union(*(_STATES[state] for state in self.states))

    @property
    def may_have_no_flow(self) -> bool:
        return self.flow is None and not self.only_flows and (self.states is None or bool(self.states & _WITHOUT_FLOW))


class Damage:
    """The errors of damaged logs, which are raised after the other logs were read."""

    def __init__(self) -> None:
        self._found: Final[list[StoreError]] = []
        self._away = False

    def take(self, log: Sequence[StepRecord] | BaseException) -> Sequence[StepRecord]:
        """Return the entries that were read; none if the log is damaged. Raises errors of the store itself."""
        if not isinstance(log, BaseException):
            self._away = False
            return log
        if not isinstance(log, StoreError):
            raise log
        # Once, this log alone may be unreadable. Twice in a row, the store itself is unreachable.
        if self._away and not isinstance(log, CorruptLog):
            raise log
        self._away = not isinstance(log, CorruptLog)
        self._found.append(log)
        return ()

    def tell(self) -> None:
        """Raise the first error that was found."""
        if self._found:
            first, *others = self._found
            for other in others[:9]:
                first.add_note(f"and: {other}")
            raise first


async def read_logs(store: Store, run_ids: Sequence[str], damage: Damage) -> AsyncIterator[Log]:
    """Yield the entries of each run that has any."""
    for some in _some(run_ids, _AT_ONCE):
        logs = await asyncio.gather(*map(store.list, some), return_exceptions=True)
        for run_id, log in zip(some, logs, strict=True):
            if entries := damage.take(log):
                yield run_id, entries


async def statuses(store: Store, run_ids: Sequence[str], damage: Damage) -> AsyncIterator[RunStatus]:
    """Yield the status of each run."""
    for some in _some(run_ids, _PAGE):
        for status in await statuses_of(store, [log async for log in read_logs(store, some, damage)], damage):
            yield status


async def statuses_of(store: Store, logs: Sequence[Log], damage: Damage | None = None) -> list[RunStatus]:
    """Return the statuses of runs whose logs were read. Their holders are read in one request."""
    reader = holder_of(store)
    found: dict[str, RunStatus] = {}
    for run_id, entries in logs:
        try:
            found[run_id] = status_of(run_id, entries, tells_holder=reader is not None)
        except CorruptLog as error:
            if damage is None:
                raise
            damage.take(error)
    if reader is None:
        return [*found.values()]
    alive = [run_id for run_id, status in found.items() if status.status not in ("succeeded", "failed", "cancelled")]
    holders = await reader.holders(alive) if alive else {}
    for run_id, entries in logs:
        if run_id not in found:
            continue
        if holder := holders.get(run_id):
            found[run_id] = status_of(run_id, entries, holder)
        elif found[run_id].status == "interrupted" and await _has_moved(store, run_id, entries):
            found[run_id] = status_of(run_id, await store.list(run_id) or entries)  # it may have ended between the two reads
    return [*found.values()]


async def _has_moved(store: Store, run_id: str, entries: Sequence[StepRecord]) -> bool:
    """Return True if the newest entry of the run's flow is no longer the one that was read."""
    flow = await store.get(run_id, FLOW)
    return flow is not None and not any(entry.id == flow.id for entry in reversed(entries) if entry.step_id == FLOW)


async def find_runs(store: Store, wanted: Wanted, damage: Damage, limit: int | None = None) -> AsyncGenerator[RunStatus, None]:
    """Yield the wanted runs; the run that began last comes first. The caller takes at most `limit`."""
    index = _index_for(store, wanted.flow_states)
    others: list[RunStatus] = []
    if index is None or wanted.may_have_no_flow:
        async for run in statuses(store, await _unindexed(store, index, wanted.prefix, damage), damage):
            if wanted.takes(run) and (index is None or run.flow is None):
                others.append(run)
                if limit is not None and len(others) >= 2 * limit:
                    others = nlargest(limit, others, key=_place)
        others.sort(key=_place)
    told = {run.run_id for run in others}
    async for run in _in_index(store, index, wanted, damage, _PAGE if limit is None else min(limit, _PAGE)):
        while others and _place(others[-1]) > _place(run):
            yield others.pop()
        if run.run_id not in told:
            yield run
    for run in reversed(others):
        yield run


async def find_logs(
    store: Store, prefix: str, states: Collection[FlowState], damage: Damage, *, only_flows: bool = False
) -> AsyncGenerator[Log, None]:
    """Yield the logs of runs that may wait for a person: those in these states and those without a flow; without an index, all.

    For suspended runs, these may be only the newest entries of the flow and of what it waits for.
    """
    index = _index_for(store, states)
    if index is not None:
        async for page in _pages(index, prefix, states, _LOOKED_AT, damage):
            told = await _suspended(store, page)
            for some in _some([flow.run_id for flow in page], _AT_ONCE):
                unread = [run_id for run_id in some if run_id not in told]
                logs = told | dict([log async for log in read_logs(store, unread, damage)])
                for run_id in some:
                    if entries := logs.get(run_id):
                        yield run_id, entries
    if index is not None and only_flows:
        return
    async for log in read_logs(store, await _unindexed(store, index, prefix, damage), damage):
        yield log


async def _suspended(store: Store, page: Sequence[StepRecord]) -> dict[str, list[StepRecord]]:
    """Return the newest entries of the suspended runs of a page: of the flow, and of what its entry says it waits for.

    Thousands may wait, so all waits are read in one request, and the logs are not read.
    """
    suspended: dict[str, tuple[StepRecord, list[str]]] = {}
    for flow in page:
        if flow.status == "waiting" and (waits := waits_of(flow)) and not is_parked(flow):
            suspended[flow.run_id] = flow, [step_id for run_id, step_id in waits if run_id == flow.run_id]
    polling = polling_of(store)
    if polling is None or not suspended:
        return {}
    asked = [(run_id, step_id, -1) for run_id, (_, own) in suspended.items() for step_id in (FLOW, CANCEL, *own)]
    try:
        found = {(entry.run_id, entry.step_id): entry for entry in await polling.newer(asked)}
    except StoreError:  # reading each log tells which run it is
        return {}
    told: dict[str, list[StepRecord]] = {}
    for run_id, (flow, own) in suspended.items():
        entries = [found[run_id, step_id] for step_id in (FLOW, *own) if (run_id, step_id) in found]
        is_known = len(entries) == 1 + len(own) and entries[0].id == flow.id  # and the index agrees with the log
        if is_known and (run_id, CANCEL) not in found:
            told[run_id] = entries
    return told


async def find_flows(store: Store, prefix: str, states: Collection[FlowState], damage: Damage) -> AsyncIterator[StepRecord]:
    """Yield the newest `$flow` entries of runs in these states, from their logs; without an index, those of other runs too."""
    index = _index_for(store, states)
    if index is not None:
        async for page in _pages(index, prefix, states, _PAGE, damage):
            for flow in page:
                yield flow
        return
    for run_id in await _names(store, prefix, damage):
        try:
            entry = await store.get(run_id, FLOW)
        except StoreError as error:
            damage.take(error)
        else:
            for flow in damage.take([] if entry is None else [entry]):
                yield flow


def _index_for(store: Store, states: Collection[FlowState]) -> SupportsFlows | None:
    """Return the store's index if it contains runs in all of these states."""
    index = flows_of(store)
    held = getattr(index, "flow_states", None)
    return index if held is None or all(state in held for state in states) else None


async def _in_index(
    store: Store, index: SupportsFlows | None, wanted: Wanted, damage: Damage, page_size: int
) -> AsyncIterator[RunStatus]:
    states = None if wanted.states is None else wanted.flow_states
    if index is None or not wanted.flow_states:
        return
    names = None if wanted.flow is None else [wanted.flow]
    since, before = wanted.since, wanted.before
    async for page in _pages(index, wanted.prefix, states, page_size, damage, names=names, since=since, before=before):
        async for run in statuses(store, [flow.run_id for flow in page], damage):
            if wanted.takes(run):
                yield run


async def _pages(
    index: SupportsFlows,
    prefix: str,
    states: Collection[FlowState] | None,
    limit: int,
    damage: Damage,
    *,
    names: Collection[str] | None = None,
    since: datetime | None = None,
    before: tuple[datetime, str] | None = None,
) -> AsyncIterator[Sequence[StepRecord]]:
    """Read the index page by page, without the library's own runs."""
    while True:
        try:
            page = await index.flows(prefix, names=names, states=states, since=since, before=before, limit=limit)
        except CorruptLog as error:  # nothing else can be read
            damage.take(error)
            return
        if not page:
            return
        last = (page[-1].started_at, page[-1].run_id)
        if before is not None and last >= before:  # or this would never end
            raise CorruptLog(f"the index of flows is damaged: it gives run {page[-1].run_id!r} another start time than its log")
        yield [flow for flow in page if not flow.run_id.startswith("$")]
        before = last


async def _unindexed(store: Store, index: SupportsFlows | None, prefix: str, damage: Damage) -> list[str]:
    """Yield the ids of runs that are not in the index, if the store can list its runs; without an index, all ids."""
    if index is None:
        return await _names(store, prefix, damage)
    if runs_of(store) is None:
        return []
    known = {flow.run_id async for page in _pages(index, prefix, None, _WHOLE_INDEX, damage) for flow in page}
    return [name for name in await _names(store, prefix, damage) if name not in known]


async def _names(store: Store, prefix: str, damage: Damage) -> list[str]:
    listing = runs_of(store)
    if listing is None:
        raise Refused(f"{store!r} can't list its runs: it has no method runs(prefix)")
    names: list[str] = []
    try:
        async for run_id in listing.runs(prefix):
            names.append(run_id)  # noqa: PERF401  # what came before an error stays
    except StoreError as error:
        damage.take(error)
    return [run_id for run_id in names if not run_id.startswith("$")]


def _some(run_ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (run_ids[start : start + size] for start in range(0, len(run_ids), size))


def _place(run: RunStatus) -> tuple[datetime, str]:
    return run.started_at, run.run_id
