"""Acting on a run from outside: each of these appends an entry, none rewrites one."""

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
from ._log.notes import lasting
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
    """Say yes to an approval, as `by`; return the entry that holds the vote, or the decision if that was the last one needed.

    The same person counts once. `value` is what the person changed: the flow finds it in the decision, the last one that was
    given if several people gave one. Raises `AlreadyDecided` after another decision, `DeadlinePassed` after the deadline,
    `NotFound` for a run or step that isn't there, `Refused` for one that doesn't wait for an approval, or that `by` may not
    decide, and `TypeError` for a value that can't be recorded.
    """
    return await cast(store, run_id, step_id, _vote(by, True, reason, value, clock), clock)


async def reject(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, value: Any = None, clock: Clock | None = None
) -> StepRecord:
    """Say no to an approval, as `by`: one rejection decides. Raises what `approve` raises."""
    return await cast(store, run_id, step_id, _vote(by, False, reason, value, clock), clock)


def _vote(by: str, approved: bool, reason: str | None, value: Any, clock: Clock | None) -> Decision:
    shown = None if value is None else msgspec.json.decode(record_any(value, "the value of a decision"))
    return Decision(approved, person(by), reason, now_by(clock), shown)


async def send(
    store: Store, run_id: str, step_id: str, value: Any = None, *, by: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Give an event its value, before a run waits for it or while it does; the run need not exist yet.

    `by` is recorded in the entry's note. The same value sent again changes nothing. Raises `AlreadyDecided` for another one,
    `DeadlinePassed` after the deadline, `Refused` for a step that is no event, `TypeError` for a value that can't be recorded.
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
    """Say that an event went wrong, before a run waits for it or while it does, or take an approval back that waits.

    The flow gets `StepFailed`, whose error is the exception that is given; a text is one of the type `SentFailure`. The same
    failure again changes nothing. Raises `AlreadyDecided` where there is an outcome, `DeadlinePassed` after the deadline, and
    `Refused` for a step that is neither.
    """
    check_own(store, run_id, step_id)
    if not isinstance(error, str | BaseException):
        raise TypeError(f"error must be a text or an exception, not {error!r}")
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
    """Set the outcome of a step that failed or was interrupted by hand; the run's next replay returns `value`.

    A flow that failed because of it, or is parked by it, goes on when it is run again. An interrupted step is resolved only
    under the run's lock, lest it be running now: `RunBusy` is raised if it is held. Raises `NotFound` for a run or step that
    isn't there, `Refused` for a step in any other state and for a run that can't go on, `AlreadyDecided` if it got an outcome
    meanwhile, and `TypeError` for a value that can't be recorded.
    """
    check(store, run_id=run_id, step_id=step_id)
    result = record_any(value, f"the value of step {step_id!r}")
    said = signed(reason, by)

    def mended(latest: StepRecord) -> StepRecord | None:
        if (latest.status, latest.result, latest.notes.get("reason")) == ("success", result, reason):
            return None
        refuse_unless_stuck(latest)
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
    """Reopen a step that failed or was interrupted: the run's next run starts it again. Return the entry.

    Without `step_id` the run goes on: the steps whose failures ended it are reopened, those that its flow caught stay; a run
    that crashed, was interrupted or is parked is tried again, with the step that it is parked by. A flow that failed because
    of a step goes on when it is run again, and so do those that called for it. Of a step that called for a flow, that flow's
    run is retried; of a map, the items that failed. A step that waits for its next attempt is due now.

    An interrupted step or run is reopened only under the run's lock, lest it be running now: `RunBusy` is raised if it is held.
    Raises `NotFound` for a run or step that isn't there, and `Refused` for one in any other state: where the run ended cancelled
    too, and where its flow had answered the failure with steps of its own, which may have undone what came before.
    """
    check(store, run_id=run_id, step_id=step_id)
    said = signed(reason, by)
    async with waking(store, run_id, clock) as append:
        mending = Mending(store, append, said, now_by(clock))
        return await (mending.run(run_id) if step_id is None else mending.reopen(run_id, step_id))


async def cancel(
    store: Store, run_id: str, *, reason: str | None = None, by: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Ask a run to stop: steps and waits that have no outcome yet raise `RunCancelled`, now and when it is run again.

    `status` tells what came of it. A runner in this process notices before its next step; one in another notices within two
    seconds, on S3 within twenty. It starts nothing more, but for steps with `when_cancelled=True`; a function that is running is
    not interrupted. A run that was only asked for is ended at once. Cancelling again changes nothing. Returns the entry that
    asks for it. Raises `NotFound` for a run that isn't there, and `Refused` for one that has ended.
    """
    check(store, run_id=run_id)
    signed(reason, by)
    if not await store.get(run_id, FLOW):
        await known_run(store, run_id)
    async with waking(store, run_id, clock) as append:
        return await ask_to_cancel(store, append, run_id, reason, by, now_by(clock))


async def clear(store: Store, run_id: str) -> Sequence[str]:
    """Clear a run whose flow has ended, with the children that its steps called for, children first; return their ids.

    Raises `NotFound` for a run that isn't there, `RunBusy` where another holds its lock, and `Refused` for a run that has not
    ended, that has no flow, so that nothing tells whether it has, or that is a child of a run which is there.
    """
    check(store, run_id=run_id)
    if (flow := await store.get(run_id, FLOW)) is None:
        await known_run(store, run_id)
        raise Refused(f"run {run_id!r} has no flow, so nothing tells that it has ended; Runner.reset clears it all the same")
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

    A run and the children that its steps called for are one: children are cleared first, and all of them with the topmost run,
    once that ended so long ago. A run whose lock is held is left alone, and so is one without a flow, since nothing tells that it
    has ended. With `dry_run` nothing is cleared, and the ids are those of what would be. Safe to repeat after a crash. A log that
    is damaged hides no other: `CorruptLog` is raised after the rest.
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

    Runs that have ended or are to stop are passed over, and those that began last come first. What suspended runs wait for is
    looked up many at once, and the logs of other runs are read; on a store without `flows`, of all. Runs without a flow stand in
    no index: all ids are listed for their sake, unless `only_flows`. A log that is damaged hides no other: `CorruptLog` is raised
    after the rest. Raises `Refused` on a store that can't list its runs.
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
    """Tell how a run stands. Raises `NotFound` for a run that isn't there.

    Who has just read the run's log gives its `entries`, so that it is not read again.
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
    """Yield how each run stands whose id starts with `prefix`, those that began last first.

    `status` is one or several of the statuses of `RunStatus`; `flow` the name of a flow; `since` leaves out what began earlier.
    A page is `limit` runs, and `before=(run.started_at, run.run_id)` of its last one asks for the next.

    A store with `flows` finds runs with a flow by its index and reads the logs of those alone. Runs without a flow stand in no
    index: unless `flow`, `status` or `only_flows` rules them out, all ids are listed for their sake. A store without `flows`
    reads the log of every run. A log that is damaged hides no other: `CorruptLog` is raised after the rest.
    """
    check_store(store)
    states = None if status is None else frozenset([status] if isinstance(status, str) else status)
    for state in states or ():
        if state not in RUN_STATES:
            raise ValueError(f"status {state!r} is not one of {', '.join(RUN_STATES)}")
    for what, moment in (("since", since), ("before", before[0] if before else None)):
        if moment is not None and moment.tzinfo is None:
            raise ValueError(f"{what} {moment!r} has no zone; give an aware datetime, such as datetime.now(UTC)")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit must be a number of runs from 1, not {limit!r}")
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

    It runs nothing itself. Raises `StepFailed` where the run failed or was cancelled, as `run` does; `TimeoutError` if it
    has not ended within `timeout` seconds; `NotFound` for a run that isn't there, `Refused` for one without a flow, and
    `StepDrift` if the value is no `returns`. The end is seen at once in the process that runs it, and within two seconds in
    another; on S3 within twenty.
    """
    check(store, run_id=run_id)
    codec = codec_for(Any if returns is None else returns)
    limit = None if timeout is None else duration("timeout", timeout)
    flow = await the_end(store, run_id, limit, clock)
    return None if returns is None else value_of(flow, codec)
