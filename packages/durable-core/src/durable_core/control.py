"""Acting on a run from outside. Each function appends an entry; none rewrites one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, overload

import msgspec

from ._log.cancelling import ask_to_cancel
from ._log.chain import CANCEL, FLOW, decided, newest, successor
from ._log.clearing import clear_before, clear_one
from ._log.copying import copy, fork
from ._log.finding import Damage, Wanted, find_logs, find_runs, statuses_of
from ._log.known import check, check_own, known_run, now_by, person, signed
from ._log.mending import Mending, mending_note, refuse_unless_stuck
from ._log.notes import failed_parts, lasting
from ._log.status import RUN_STATES, RunState, RunStatus, open_waits
from ._log.wakeups import waking
from ._running.outcome import value_of
from ._values.returns import codec_for, record_any
from ._waiting.approval import Decision
from ._waiting.deciding import cast, give
from ._waiting.watching import follow, looks, published, the_end
from .clock import Clock
from .errors import Refused, SentFailure
from .options import duration
from .record import StepError, StepRecord
from .store import Store, check_store
from .stores.flows import FlowState

__all__ = [
    "RUN_STATES",
    "RunState",
    "RunStatus",
    "approve",
    "cancel",
    "clear",
    "clear_ended",
    "copy",
    "follow",
    "fork",
    "looks",
    "pending",
    "published",
    "reject",
    "resolve",
    "result",
    "retry",
    "runs",
    "send",
    "send_failure",
    "status",
]

T = TypeVar("T")

_GOING_ON: Final[frozenset[FlowState]] = frozenset({"waiting", "started", "crashed", "parked"})
"""How the flow of a run stands that may wait for a person."""


async def approve(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, value: Any = None, clock: Clock | None = None
) -> StepRecord:
    """Approve, as `by`; return the entry with the vote, or with the decision if this was the last vote needed.

    The same person counts once. `value` is what the person changed; the flow finds it in the decision. Where several people have
    to approve, they have to approve the same value: without `value`, what the last one before made of it. Until they do, each of
    them may answer again. Raises `AlreadyDecided` after
    another decision, `DeadlinePassed` after the deadline, `NotFound` for a run or step that doesn't exist, `Refused` for a step
    that doesn't wait for an approval or that `by` may not decide, and `TypeError` for a value that can't be recorded.
    """
    return await cast(store, run_id, step_id, _vote(by, True, reason, value, clock), clock)


async def reject(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, value: Any = None, clock: Clock | None = None
) -> StepRecord:
    """Reject, as `by`. One rejection decides. Raises what `approve` raises."""
    return await cast(store, run_id, step_id, _vote(by, False, reason, value, clock), clock)


def _vote(by: str, approved: bool, reason: str | None, value: Any, clock: Clock | None) -> Decision:
    shown = None if value is None else msgspec.json.decode(record_any(value, "the value of a decision"))
    return Decision(approved, person(by), reason, now_by(clock), shown)


async def send(
    store: Store, run_id: str, step_id: str, value: Any = None, *, by: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Give an event its value, before a run waits for it or while it does; the run need not exist yet.

    `by` is recorded in the entry's note. The same value sent again changes nothing. Raises `AlreadyDecided` for another value,
    `DeadlinePassed` after the deadline, `Refused` for a step that isn't an event, `TypeError` for a value that can't be recorded.
    """
    check_own(store, run_id, step_id)
    result = record_any(value, f"the value of event {step_id!r}")
    return await give(store, run_id, step_id, clock, result=result, said=signed(None, by))


async def send_failure(
    store: Store,
    run_id: str,
    step_id: str,
    *,
    error: str | BaseException,
    by: str | None = None,
    clock: Clock | None = None,
) -> StepRecord:
    """Report that an event failed, before a run waits for it or while it does; or withdraw an approval that waits.

    The flow gets `StepFailed`, whose error is the given exception; a text becomes a `SentFailure`. The same failure again changes
    nothing. Raises `AlreadyDecided` if there is an outcome, `DeadlinePassed` after the deadline, and `Refused` for a step that is
    neither an event nor an approval.
    """
    check_own(store, run_id, step_id)
    if not isinstance(error, str | BaseException):
        raise TypeError(f"error must be a str or an exception, not {error!r}")
    failure = StepError.from_exception(SentFailure(error) if isinstance(error, str) else error)
    return await give(store, run_id, step_id, clock, error=failure, said=signed(None, by))


async def resolve(
    store: Store,
    run_id: str,
    step_id: str,
    value: Any = None,
    *,
    reason: str,
    by: str | None = None,
    clock: Clock | None = None,
) -> StepRecord:
    """Set the outcome of a step that failed or was interrupted; the run's next replay returns `value`.

    A flow that failed because of the step, or is parked by it, continues when it is run again. For an interrupted step this takes
    the run's lock, because the step might be running now, and raises `RunBusy` if the lock is held. Raises `NotFound` for a run
    or step that doesn't exist, `Refused` for a step in any other state and for a run that can't continue, `AlreadyDecided` if the
    step got an outcome meanwhile, and `TypeError` for a value that can't be recorded.
    """
    check(store, run_id=run_id, step_id=step_id)
    result = record_any(value, f"the value of step {step_id!r}")
    said = signed(reason, by)

    def mended(latest: StepRecord) -> StepRecord | None:
        if (latest.status, latest.result, latest.notes.get("reason")) == ("success", result, reason):
            return None
        refuse_unless_stuck(latest)
        if parts := failed_parts(latest):
            raise Refused(
                f"{step_id!r} of run {run_id!r} is a {'race' if latest.kind == 'first' else 'map'}, whose value is that of its"
                f" parts: resolve {', '.join(map(repr, parts[:3]))}"
            )
        if latest.kind == "approval" and not isinstance(value, Decision):
            raise TypeError(f"{step_id!r} of run {run_id!r} is an approval: resolve it with a Decision, not {value!r}")
        note = {**lasting(latest), **said} if step_id == FLOW else mending_note(latest, said)
        return successor(latest, now_by(clock), status="success", result=result, until=None, note=note)

    async with waking(store, run_id, clock) as append:
        return await Mending(store, append, said, now_by(clock)).step(run_id, step_id, mended)


async def retry(
    store: Store,
    run_id: str,
    step_id: str | None = None,
    *,
    reason: str | None = None,
    by: str | None = None,
    clock: Clock | None = None,
) -> StepRecord:
    """Reopen a step that failed or was interrupted, so that the next run starts it again. Return the entry.

    Without `step_id`, continue the run: the steps whose failures ended it are reopened; failures that its flow caught stay. A run
    that crashed, was interrupted or is parked is tried again, with the step that parked it. A flow that failed because of a step
    continues when it is run again, and so do the flows that called it. If the step called a flow, that flow's run is retried; if
    it is a map, its failed items. A step that waits for its next attempt is due now.

    For an interrupted step or run this takes the run's lock, because it might be running now, and raises `RunBusy` if the lock is
    held. Raises `NotFound` for a run or step that doesn't exist, and `Refused` for one in any other state. It is also `Refused`
    if the run succeeded or ended cancelled, or if its flow had answered the failure with steps, which may have undone earlier
    work.
    """
    check(store, run_id=run_id, step_id=step_id)
    said = signed(reason, by)
    async with waking(store, run_id, clock) as append:
        mending = Mending(store, append, said, now_by(clock))
        return await (mending.run(run_id) if step_id is None else mending.reopen(run_id, step_id))


async def cancel(
    store: Store, run_id: str, *, reason: str | None = None, by: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Ask a run to stop: steps and waits without an outcome raise `RunCancelled`, now and when it is run again.

    `status` shows how the run ended. A runner in this process notices before its next step; one in another process notices within
    two seconds, on S3 within twenty. It then starts only steps with `when_cancelled=True`. A function that is running is not
    interrupted. A run that has not begun ends at once. Cancelling again changes nothing. Returns the entry with the request.
    Raises `NotFound` for a run that doesn't exist, and `Refused` for one that has ended.
    """
    check(store, run_id=run_id)
    signed(reason, by)
    if not await store.get(run_id, FLOW):
        await known_run(store, run_id)
    async with waking(store, run_id, clock) as append:
        return await ask_to_cancel(store, append, run_id, reason, by, now_by(clock))


async def clear(store: Store, run_id: str) -> Sequence[str]:
    """Clear a run whose flow has ended, with the children that its steps called, children first; return their ids.

    Raises `NotFound` for a run that doesn't exist, `RunBusy` if another runner holds its lock, and `Refused` for a run that has
    not ended, that has no flow and so doesn't record its end, or that is a child of an existing run.
    """
    check(store, run_id=run_id)
    if (flow := await store.get(run_id, FLOW)) is None:
        await known_run(store, run_id)
        raise Refused(f"run {run_id!r} has no flow, so its end is not recorded; clear it with Runner.reset")
    return await clear_one(store, flow)


async def clear_ended(
    store: Store,
    prefix: str = "",
    *,
    older_than: timedelta = timedelta(days=30),
    dry_run: bool = False,
    clock: Clock | None = None,
) -> Sequence[str]:
    """Clear the runs whose flows ended more than `older_than` ago and whose ids start with `prefix`; return their ids.

    A run is cleared together with the children that its steps called, children first, once the topmost run ended that long ago. A
    run whose lock is held is skipped, and so is a run without a flow, which doesn't record its end. With `dry_run` nothing is
    cleared, and the ids of the runs that would be cleared are returned. Safe to repeat after a crash. A damaged log doesn't hide
    others: `CorruptLog` is raised after the rest.
    """
    check_store(store)
    moment = now_by(clock) - timedelta(seconds=duration("older_than", older_than))
    damage = Damage()
    cleared = await clear_before(store, prefix, moment, damage, dry_run=dry_run)
    damage.tell()
    return cleared


async def pending(
    store: Store, prefix: str = "", *, only_flows: bool = False, clock: Clock | None = None
) -> AsyncIterator[StepRecord]:
    """Yield the newest entry of each approval that waits for a person, over all runs whose id starts with `prefix`.

    Skips runs that have ended or are being cancelled; those that began last come first. Looks up many suspended runs at once, and
    reads the logs of the others; on a store without `flows`, all logs. Runs without a flow are in no index, so all ids are listed
    to find them, unless `only_flows` is set. A damaged log doesn't hide others: `CorruptLog` is raised after the rest. Raises
    `Refused` on a store that can't list its runs.
    """
    check_store(store)
    damage = Damage()
    async with aclosing(find_logs(store, prefix, _GOING_ON, damage, only_flows=only_flows)) as logs:
        async for _, entries in logs:
            steps = newest(entries)
            flow = steps.get(FLOW)
            if flow is None and only_flows:
                continue
            if CANCEL in steps or decided(flow) or (flow is not None and "cancelled" in flow.notes):
                continue
            for record in open_waits(steps):
                if record.kind == "approval" and (record.until is None or now_by(clock) < record.until):
                    yield record
    damage.tell()


async def status(store: Store, run_id: str, *, entries: Sequence[StepRecord] | None = None) -> RunStatus:
    """Return the state of a run. Raises `NotFound` for a run that doesn't exist.

    If you have just read the run's log, pass its `entries`, so that it is not read again.
    """
    check(store, run_id=run_id)
    entries = entries or await known_run(store, run_id)
    (run,) = await statuses_of(store, [(run_id, entries)])
    return run


async def runs(
    store: Store,
    prefix: str = "",
    *,
    status: RunState | Collection[RunState] | None = None,
    flow: str | None = None,
    since: datetime | None = None,
    before: tuple[datetime, str] | None = None,
    limit: int | None = None,
    only_flows: bool = False,
) -> AsyncIterator[RunStatus]:
    """Yield the state of each run whose id starts with `prefix`, newest first.

    `status` is one or more of the statuses of `RunStatus`, `flow` the name of a flow, and `since` leaves out runs that began
    earlier. A page has `limit` runs. For the next page, pass `before=(run.started_at, run.run_id)` of its last run.

    A store with `flows` finds runs with a flow by its index and reads only their logs. Runs without a flow are in no index: to
    find them, all ids are listed, unless `flow`, `status` or `only_flows` rules them out. A store without `flows` reads the log
    of every run. A damaged log doesn't hide others: `CorruptLog` is raised after the rest.
    """
    check_store(store)
    states = None if status is None else frozenset([status] if isinstance(status, str) else status)
    for state in states or ():
        if state not in RUN_STATES:
            raise ValueError(f"status {state!r} is not one of {', '.join(RUN_STATES)}")
    for what, moment in (("since", since), ("before", before[0] if before else None)):
        if moment is not None and moment.tzinfo is None:
            raise ValueError(f"{what} {moment!r} has no time zone; give an aware datetime, such as datetime.now(UTC)")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a number of runs, at least 1, not {limit!r}")
    wanted = Wanted(prefix=prefix, states=states, flow=flow, since=since, before=before, only_flows=only_flows)
    damage = Damage()
    count = 0
    async with aclosing(find_runs(store, wanted, damage, limit)) as found:
        async for run in found:
            yield run
            count += 1
            if count == limit:
                break
    damage.tell()


@overload
async def result(
    store: Store, run_id: str, *, returns: type[T], timeout: float | timedelta | None = None, clock: Clock | None = None
) -> T: ...
@overload
async def result(
    store: Store, run_id: str, *, returns: Any = Any, timeout: float | timedelta | None = None, clock: Clock | None = None
) -> Any: ...
async def result(
    store: Store, run_id: str, *, returns: Any = Any, timeout: float | timedelta | None = None, clock: Clock | None = None
) -> Any:
    """Wait until a run's flow has ended, and return its value as `returns`, or as plain JSON.

    It runs nothing itself. Raises `StepFailed` if the run failed or was cancelled, as `run` does; `TimeoutError` if it
    has not ended within `timeout` seconds; `NotFound` for a run that doesn't exist, `Refused` for one without a flow, and
    `StepDrift` if the value can't be decoded as `returns`. It notices the end at once in the process that runs the flow, and
    within two seconds in another process, on S3 within twenty.
    """
    check(store, run_id=run_id)
    codec = codec_for(Any if returns is None else returns)
    limit = None if timeout is None else duration("timeout", timeout)
    flow = await the_end(store, run_id, limit, clock)
    return None if returns is None else value_of(flow, codec)
