"""Acting on a run from outside: each of these appends an entry, none rewrites one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import msgspec

from ._log.chain import CANCEL, FLOW, Append, advance, decided, expired, newest, successor
from ._log.copying import copy, fork, no_run
from ._log.news import tell
from ._log.parts import failed_parts, is_withdrawn
from ._log.standing import asking_to_cancel
from ._log.status import RunStatus, status_of
from ._system.ids import check_id, check_own_id
from ._values.returns import record_any
from ._waiting.approval import Decision, Request, Vote
from ._waiting.following import follow, published
from .clock import Clock
from .errors import AlreadyDecided, CorruptLog, DeadlinePassed, NotFound, Refused, StoreError
from .record import StepRecord
from .store import Store, check_store, lock_of, runs_of

__all__ = [
    "RunStatus",
    "approve",
    "cancel",
    "copy",
    "follow",
    "fork",
    "pending",
    "published",
    "reject",
    "resolve",
    "retry",
    "runs",
    "send",
    "status",
]


async def approve(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Say yes to an approval, as `by`; return the entry that holds the vote, or the decision if that was the last one needed.

    The same person counts once. Raises `AlreadyDecided` after another decision, `DeadlinePassed` after the deadline, `NotFound`
    for a run or step that isn't there, and `Refused` for one that doesn't wait for an approval, or that `by` may not decide.
    """
    return await _vote(store, run_id, step_id, Vote(_name(by), True, reason, _now(clock)))


async def reject(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Say no to an approval, as `by`: one rejection decides. Raises what `approve` raises."""
    return await _vote(store, run_id, step_id, Vote(_name(by), False, reason, _now(clock)))


async def _vote(store: Store, run_id: str, step_id: str, vote: Vote) -> StepRecord:
    def propose(latest: StepRecord | None) -> StepRecord | None:
        assert latest is not None
        if latest.kind != "approval" or latest.status in ("started", "reopened"):
            raise Refused(f"{step_id!r} of run {run_id!r} doesn't wait for an approval: it is {_describe(latest)}")
        request = Request.of(latest)
        if decided(latest):
            decision = request.decision()
            agrees = decision is not None and latest.status == "success" and decision.approved == vote.approved
            if agrees and request.holds(vote):
                return None
            raise _already_decided(latest)
        if request.approvers is not None and vote.by not in request.approvers:
            raise Refused(f"{vote.by!r} may not decide {step_id!r} of run {run_id!r}; approvers: {', '.join(request.approvers)}")
        if latest.until is not None and vote.at >= latest.until:
            return expired(latest, vote.at)
        if request.holds(vote):
            return None
        request = request.with_vote(vote)
        if (decision := request.decision()) is None:
            return successor(latest, vote.at, note=request.note())
        return successor(latest, vote.at, status="success", result=msgspec.json.encode(decision), note=request.note())

    return await advance(_telling(store), await _known_step(store, run_id, step_id), propose)


async def send(store: Store, run_id: str, step_id: str, value: Any = None, *, clock: Clock | None = None) -> StepRecord:
    """Give an event its value, before a run waits for it or while it does; the run need not exist yet.

    The same value sent again changes nothing. Raises `AlreadyDecided` for another one, `DeadlinePassed` after the deadline,
    `Refused` for a step that is no event, and `TypeError` for a value that can't be recorded.
    """
    check_own_id("run_id", run_id)
    check_own_id("step_id", step_id)
    check_store(store)
    result = record_any(value, f"the value of event {step_id!r}")

    def propose(latest: StepRecord | None) -> StepRecord | None:
        now = _now(clock)
        if latest is None:
            return StepRecord(run_id=run_id, step_id=step_id, kind="event", result=result, started_at=now, ended_at=now)
        if latest.kind != "event":
            raise Refused(f"{step_id!r} of run {run_id!r} is no event but {_describe(latest)}")
        if decided(latest):
            if latest.status == "success" and latest.result == result:
                return None
            raise _already_decided(latest)
        if latest.until is not None and now >= latest.until:
            return expired(latest, now)
        return successor(latest, now, status="success", result=result)

    return await advance(_telling(store), await store.get(run_id, step_id), propose)


async def resolve(
    store: Store, run_id: str, step_id: str, value: Any = None, *, reason: str, clock: Clock | None = None
) -> StepRecord:
    """Set the outcome of a step that failed or was interrupted by hand; the run's next replay returns `value`.

    A flow that failed because of it goes on when it is run again. An interrupted step is resolved only under the run's lock,
    lest it be running now: `RunBusy` is raised if it is held. Raises `NotFound` for a run or step that isn't there, `Refused`
    for a step in any other state, `AlreadyDecided` if it got an outcome meanwhile, and `TypeError` for a value that can't be
    recorded.
    """
    _check(store, run_id=run_id, step_id=step_id)
    result = record_any(value, f"the value of step {step_id!r}")

    def mended(latest: StepRecord) -> StepRecord | None:
        if (latest.status, latest.result, latest.notes.get("reason")) == ("success", result, reason):
            return None
        _refuse_unless_stuck(latest)
        if latest.kind == "approval" and not isinstance(value, Decision):
            raise TypeError(f"{step_id!r} of run {run_id!r} is an approval: resolve it with a Decision, not {value!r}")
        note = {**latest.notes, "reason": reason}
        return successor(latest, _now(clock), status="success", result=result, note=note)

    return await _mend(store, run_id, step_id, mended, clock)


async def retry(store: Store, run_id: str, step_id: str, *, reason: str | None = None, clock: Clock | None = None) -> StepRecord:
    """Reopen a step that failed or was interrupted: the run's next run starts it again.

    Of a race (`first`) or a map, what it failed by is reopened, too; waits that were withdrawn are left. A flow that failed
    because of it goes on when it is run again. An interrupted step is reopened only under the run's lock, lest it be running
    now: `RunBusy` is raised if it is held. Raises `NotFound` for a run or step that isn't there, and `Refused` for a step in
    any other state.
    """
    failed = await _known_step(store, run_id, step_id)

    def mended(latest: StepRecord) -> StepRecord | None:
        if latest.status == "reopened":
            return None
        _refuse_unless_stuck(latest)
        note = latest.note if reason is None else {**latest.notes, "reason": reason}
        return successor(latest, _now(clock), status="reopened", note=note)

    await _reopen_parts(store, failed, clock)
    return await _mend(store, run_id, step_id, mended, clock)


async def cancel(store: Store, run_id: str, *, reason: str | None = None, clock: Clock | None = None) -> StepRecord:
    """Cancel a run: steps and waits that have no outcome yet raise `RunCancelled`, now and when it is run again.

    A runner in this process notices before its next step; one in another notices within two seconds, on S3 within twenty. It
    starts nothing more; a function that is running is not interrupted. Cancelling again changes nothing. Raises `NotFound` for
    a run that isn't there.
    """
    await _known_run(store, run_id)
    now = _now(clock)
    note = {"reason": reason} if reason else None

    def propose(latest: StepRecord | None) -> StepRecord | None:
        assert latest is not None
        if decided(latest) or "cancelled" in latest.notes:
            return None
        return asking_to_cancel(latest, now, reason, None)

    if flow := await store.get(run_id, FLOW):
        return await advance(_telling(store), flow, propose)
    return await _telling(store)(StepRecord(run_id=run_id, step_id=CANCEL, kind="flow", note=note, started_at=now, ended_at=now))


async def pending(store: Store, prefix: str = "", *, clock: Clock | None = None) -> AsyncIterator[StepRecord]:
    """Yield the newest entry of each approval that waits for a person, over all runs whose id starts with `prefix`.

    Reads the log of every run. A log that is damaged hides no other: `CorruptLog` is raised after the rest. Raises `Refused` on
    a store that can't list its runs.
    """
    async for _, steps in _runs(store, prefix):
        if CANCEL in steps or decided(steps.get(FLOW)):
            continue
        for record in steps.values():
            open_to_people = record.kind == "approval" and record.status == "waiting"
            if open_to_people and (record.until is None or _now(clock) < record.until):
                yield record


async def status(store: Store, run_id: str) -> RunStatus:
    """Tell how a run stands. Raises `NotFound` for a run that isn't there."""
    return status_of(run_id, newest(await _known_run(store, run_id)))


async def runs(store: Store, prefix: str = "") -> AsyncIterator[RunStatus]:
    """Yield how each run stands whose id starts with `prefix`. Reads the log of every run.

    A log that is damaged hides no other: `CorruptLog` is raised after the rest.
    """
    async for run_id, steps in _runs(store, prefix):
        yield status_of(run_id, steps)


def _telling(store: Store) -> Append:
    """Return the store's `append`, which tells a runner of the run in this process, too."""

    async def append(record: StepRecord) -> StepRecord:
        holder = await store.append(record)
        tell(record.run_id)
        return holder

    return append


def _refuse_unless_stuck(latest: StepRecord) -> None:
    if latest.status not in ("failure", "started"):
        what = f"{latest.step_id!r} of run {latest.run_id!r}"
        raise Refused(f"{what} neither failed nor was interrupted: it is {_describe(latest)}")
    if is_withdrawn(latest):
        raise Refused(f"{latest.step_id!r} of run {latest.run_id!r} is no longer needed: another contender was first")


async def _mend(
    store: Store, run_id: str, step_id: str, mended: Callable[[StepRecord], StepRecord | None], clock: Clock | None
) -> StepRecord:
    """Append what `mended` makes of the step's newest entry, and let its flow go on."""
    mine = ""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        nonlocal mine
        assert latest is not None
        if latest.id == mine:
            return None
        if mine and decided(latest):
            raise _already_decided(latest)
        record = mended(latest)
        mine = "" if record is None else record.id
        return record

    latest = await _known_step(store, run_id, step_id)
    async with AsyncExitStack() as stack:
        if latest.status == "started" and (locks := lock_of(store)):
            await stack.enter_async_context(locks.lock(run_id))
            latest = await _known_step(store, run_id, step_id)  # the run may have ended it just now
        holder = await advance(_telling(store), latest, propose)
        # The same again, after a crash between the two entries, lets the flow go on.
        if not await _let_flow_go_on(store, holder, clock) and holder is latest:
            _refuse_unless_stuck(holder)
    return holder


async def _reopen_parts(store: Store, failed: StepRecord, clock: Clock | None) -> None:
    """Reopen the steps by which a race or a map failed, before its own entry: after a kill the same again does the rest."""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        assert latest is not None
        if latest.status != "failure" or is_withdrawn(latest):
            return None
        return successor(latest, _now(clock), status="reopened")

    for step_id in failed_parts(failed):
        if (part := await store.get(failed.run_id, step_id)) is not None:
            await _reopen_parts(store, part, clock)
            await advance(_telling(store), part, propose)


async def _let_flow_go_on(store: Store, mended: StepRecord, clock: Clock | None) -> bool:
    """Reopen the flow that failed because of a step which was mended; tell whether there was one."""
    flow = None if mended.step_id == FLOW else await store.get(mended.run_id, FLOW)
    if flow is None or flow.status != "failure":
        return False
    note = {name: value for name, value in flow.notes.items() if name != "failed"}
    note = {**note, "reason": f"{mended.step_id!r} was mended"}
    await _telling(store)(successor(flow, _now(clock), status="reopened", note=note))
    return True


def _check(store: Store, *, run_id: str, step_id: str | None = None) -> None:
    """Refuse what is no store and no id, before anything is asked of the store."""
    check_store(store)
    check_id("run_id", run_id)
    if step_id is not None:
        check_id("step_id", step_id)


async def _known_run(store: Store, run_id: str) -> Sequence[StepRecord]:
    _check(store, run_id=run_id)
    if entries := await store.list(run_id):
        return entries
    raise await no_run(store, run_id)


async def _known_step(store: Store, run_id: str, step_id: str) -> StepRecord:
    _check(store, run_id=run_id, step_id=step_id)
    latest = await store.get(run_id, step_id)
    if latest is None:
        there = [name for name in newest(await _known_run(store, run_id)) if not name.startswith("$")]
        listed = ", ".join(map(repr, there[-10:])) or "none"
        raise NotFound(f"there is no step {step_id!r} in run {run_id!r}; its last steps: {listed}")
    return latest


async def _runs(store: Store, prefix: str) -> AsyncIterator[tuple[str, dict[str, StepRecord]]]:
    """Yield the newest entries of each run; raise what is wrong with some of them after the others."""
    check_store(store)
    listing = runs_of(store)
    if listing is None:
        raise Refused(f"{store!r} can't list its runs: it has no method runs(prefix)")
    damaged: list[StoreError] = []
    away = False
    async for run_id in listing.runs(prefix):
        try:
            steps = newest(await store.list(run_id))
            away = False
        except StoreError as error:  # damaged, or written by a newer version; twice in a row it is the store that is away
            if away and not isinstance(error, CorruptLog):
                raise
            away = not isinstance(error, CorruptLog)
            damaged.append(error)
            continue
        if steps:
            yield run_id, steps
    if damaged:
        for other in damaged[1:10]:
            damaged[0].add_note(f"and: {other}")
        raise damaged[0]


def _describe(record: StepRecord) -> str:
    return f"{'an' if record.kind in ('approval', 'event') else 'a'} {record.kind} with status {record.status!r}"


def _already_decided(record: StepRecord) -> Refused:
    if record.status == "failure" and record.error is not None and record.error.matches(DeadlinePassed):
        return DeadlinePassed(record.error.message)
    if record.kind == "approval" and record.status == "success":
        decision = Request.of(record).decision()
        what = "set by hand" if decision is None else f"{'approved' if decision else 'rejected'} by {decision.by!r}"
    else:
        what = f"it is {_describe(record)}"
    return AlreadyDecided(record, what)


def _name(by: object) -> str:
    if not isinstance(by, str) or not by:
        raise TypeError(f"by must be the name of who decides, not {by!r}")
    return by


def _now(clock: Clock | None) -> datetime:
    return datetime.now(UTC) if clock is None else clock.now()
