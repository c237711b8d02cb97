"""For authors of workers and other tools: looking at runs, and driving them as they were recorded.

A worker takes a wake-up, asks `could_go_on`, holds the run, and drives it. `Standing` is the state of the run then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

import msgspec

from . import control
from ._log.chain import CANCEL, FLOW, decided
from ._log.known import known_step as known_step
from ._log.lock import holding
from ._log.news import tell
from ._log.notes import child_of, children_of, ids_in, parent_of, root_of, waits_of
from ._log.wakeups import wake
from ._running.driver import Driver, Limit
from ._running.driving import Standing, claim
from ._running.pausing import can_go_on
from ._system.faces import Blocking as Blocking
from ._system.faces import asynchronous as asynchronous
from ._system.ids import check_name as check_name
from ._system.waits import cancellations, first_of
from ._waiting.approval import Request as Request
from .errors import CorruptLog, StepDrift
from .events import Handler
from .flow import Flow
from .options import RunnerOptions, runner_options
from .record import StepRecord
from .runner import Runner
from .store import Store, flows_of, polling_of
from .stores.flows import cancelled, is_crash, is_parked, state_of
from .stores.lines import heads_of

P = ParamSpec("P")
T = TypeVar("T")

_PAGE = 1_000  # runs that are counted at a time

__all__ = [
    "FLOW",
    "AnyFlow",
    "Blocking",
    "Counts",
    "Driver",
    "HeldRun",
    "Limit",
    "Request",
    "Standing",
    "asynchronous",
    "cancellations",
    "cancelled",
    "check_input",
    "check_name",
    "child_of",
    "children_of",
    "could_go_on",
    "count",
    "decided",
    "entries_of",
    "first_of",
    "heads_of",
    "hold",
    "holding",
    "ids_in",
    "is_crash",
    "is_parked",
    "known_step",
    "newest",
    "parent_of",
    "root_of",
    "state_of",
    "tell",
    "waits_of",
    "wake",
    "with_handler",
]

AnyFlow = Flow[Any, Any] | Blocking[Flow[Any, Any]]
"""A flow of `durable_core`, or one of `durable_core.sync`, which `asynchronous` converts."""


async def could_go_on(store: Store, flows: Collection[StepRecord], now: datetime) -> Mapping[str, bool]:
    """Say for each run, given as the newest entry of its flow, whether it could continue now. Nothing is locked or run.

    A run could continue if it waits for its turn or crashed, and its time has come; if what it waits for has come, or its
    child was cancelled or repaired; if it was reopened by hand or cancelled; or if it was started and its process may have
    died, which its lock shows. A run that has ended, or is parked and was not repaired, could not.

    What all of them wait for is read in one request, if the store can do that.
    """
    pairs = {flow.run_id: _looked_at(flow) for flow in flows if flow.status == "waiting"}
    found = await newest(store, {pair for several in pairs.values() for pair in several})
    return {flow.run_id: _could_go_on(flow, [found.get(pair) for pair in pairs.get(flow.run_id, ())], now) for flow in flows}


def check_input(flow: Flow[Any, Any], input: Mapping[str, Any]) -> None:
    """Raise `TypeError` for input that a flow doesn't accept, or that can't be recorded."""
    flow._take(input)


def with_handler(flow: Flow[P, T], handler: Handler) -> Flow[P, T]:
    """Return the same flow with another handler of events, besides those that it has."""
    there = flow._options.get("on_event")
    return flow.options(on_event=[*([] if there is None else [there] if callable(there) else there), handler])


def _looked_at(flow: StepRecord) -> list[tuple[str, str]]:
    """Return the pairs to read for a run: what it waits for, the flows of its waiting children, and its cancellation."""
    pairs = waits_of(flow)
    children = [(run_id, FLOW) for run_id, _ in pairs if run_id != flow.run_id]
    # A process that cancels a run just before it is asked for may die before `$flow` says so.
    asked = [] if cancelled(flow) else [(flow.run_id, CANCEL)]
    return [*dict.fromkeys((*pairs, *children, *asked))]


def _could_go_on(flow: StepRecord, newest: Sequence[StepRecord | None], now: datetime) -> bool:
    if decided(flow):
        return False
    if flow.status != "waiting":
        return flow.until is None or flow.until <= now
    if flow.until is not None and flow.until <= now:
        return True
    if flow.until is None and not is_parked(flow) and not waits_of(flow):  # it waits for its turn
        return True
    return any(record is not None and _has_come(flow, record, now) for record in newest)


def _has_come(flow: StepRecord, record: StepRecord, now: datetime) -> bool:
    """Return True if something that a run waits for has come, given as its newest entry."""
    if decided(record):
        return True
    if record.step_id == FLOW:  # a child that is driven by itself is waited for until it has ended
        is_mended = record.status == "reopened" and (record.until is None or record.until <= now)
        return is_mended and root_of(record) is not None
    return record.status == "reopened" or (not is_parked(flow) and can_go_on(record, now))


async def newest(store: Store, pairs: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], StepRecord]:
    """Return the newest entry of each run and step that has any, in one request if the store can do that."""
    polling = polling_of(store)
    if polling is None or len(pairs) == 1:  # stores combine what many get at once
        found = [await store.get(*pair) for pair in pairs]
    else:
        found = [*await polling.newer([(*pair, -1) for pair in pairs])] if pairs else []
    return {(record.run_id, record.step_id): record for record in found if record is not None}


def entries_of(entries: Sequence[StepRecord], step_id: str) -> list[StepRecord]:
    """Return one step's entries, without decoding the others."""
    return [entries[index] for index, head in enumerate(heads_of(entries)) if head.step_id == step_id]


class Counts(msgspec.Struct, frozen=True):
    """How many runs and approvals a store holds."""

    runs: Mapping[tuple[str, str], int]
    """The number of runs by flow and state. `started` includes runs that run, wait in a process, or were interrupted."""
    approvals: int
    """The number of approvals that wait for people."""
    oldest: datetime | None
    """When the approval that has waited longest was asked for; None if none waits."""


async def count(store: Store) -> Counts:
    """Count the runs of a store and the approvals that wait: 100,000 runs take a second or two. Damaged logs are left out."""
    asked: list[datetime] = []
    try:
        async for record in control.pending(store):
            asked.append(record.started_at)  # noqa: PERF401  # a comprehension would lose them all to what is raised last
    except CorruptLog:  # the pages and the command tell of it
        pass
    runs: Counter[tuple[str, str]] = Counter()
    index, before = flows_of(store), None
    if index is None:
        await _count_logs(store, runs)
    with suppress(CorruptLog):  # raised where there is nothing else that can be read
        while index is not None and (page := await index.flows(before=before, limit=_PAGE)):
            runs.update((flow.name, state_of(flow)) for flow in page if not flow.run_id.startswith("$"))
            before = (page[-1].started_at, page[-1].run_id)
    return Counts(runs, len(asked), min(asked, default=None))


async def _count_logs(store: Store, runs: Counter[tuple[str, str]]) -> None:
    try:
        async for run in control.runs(store):
            runs[run.flow or "", run.status] += 1
    except CorruptLog:
        pass


class HeldRun:
    """A run whose lock is held, with its log as it was read then."""

    def __init__(self, runner: Runner, flow: Flow[Any, Any]) -> None:
        self._runner = runner
        self._flow = flow
        self.entries: Sequence[StepRecord] = runner._run.log.entries

    @property
    def record(self) -> StepRecord | None:
        """The newest entry of the run's flow; None if nobody has asked for the run."""
        return self._runner._run.log.latest(FLOW)

    async def drive(self) -> Standing:
        """Call the flow's function with the recorded input, and return the state of the run then.

        Raises only errors that say nothing about the run: a lost lock, an unreachable store, the caller's own cancellation.
        """
        return await self._flow._stand(self._runner, None, {})

    def misfit(self) -> str | None:
        """Return why the flow's function no longer accepts the recorded input; None if it does."""
        try:
            self._flow.take_recorded(self.record)
        except (StepDrift, TypeError, ValueError) as error:  # an `UnrecordableValue` is a `TypeError`
            return str(error)
        return None

    async def park(self, by: str, why: str, mend: str) -> StepRecord:
        """Park the run: record that it continues only after somebody acts. Return that entry, or the rival's that came first.

        `by` is the cause: "drift" or "crashes".
        """
        run, latest = self._runner._run, self.record
        assert latest is not None, "only a run that was asked for is parked"
        parked = {"parked": {"step": None, "why": why, "mend": mend, "by": by}, "waiting_for": []}
        record = await claim(run, latest, status="waiting", note=parked)
        await run.emit("run:suspend", record)
        return record


@asynccontextmanager
async def hold(
    flow: Flow[Any, Any],
    store: Store,
    run_id: str,
    *,
    name: str | None = None,
    driver: Driver | None = None,
    limits: Collection[str] = (),
    **options: Any,
) -> AsyncIterator[HeldRun]:
    """Hold a run's lock and read its log, so that its flow can be driven. Raises `RunBusy` if another runner holds it.

    `name` is the flow's name in the log, if it differs from the flow's. `limits` are the names of the limits in which a place
    is held for the run. `options` are a runner's, and apply if the flow doesn't set its own.
    """
    flow = flow if name is None else flow.named(name)
    merged: RunnerOptions = {**options, **runner_options(flow._options)}  # type: ignore[typeddict-item]  # a runner checks them
    async with Runner(store, run_id, **merged) as runner:
        run = runner._run
        run.driver, run.limits = driver or run.driver, frozenset(limits)
        yield HeldRun(runner, flow)
        run.suspended = None  # its record says so
