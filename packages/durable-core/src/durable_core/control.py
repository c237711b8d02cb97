"""Acting on a run from outside: each of these appends an entry, none rewrites one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec

from ._log.copying import copy, fork
from ._log.runlog import CANCEL
from ._log.status import RunStatus, status_of
from ._running.run import FLOW, announce_cancellation, decided
from ._system.ids import check_own_id
from ._values.returns import record_any
from ._waiting.approval import Decision, Request, Vote
from ._waiting.wait import expired
from .clock import Clock
from .errors import AlreadyDecided, DeadlinePassed, Refused
from .record import StepRecord
from .store import Store, check_store, lock_of, runs_of

__all__ = ["RunStatus", "approve", "cancel", "copy", "fork", "pending", "reject", "resolve", "retry", "runs", "send", "status"]


async def approve(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Say yes to an approval, as `by`; return the entry that holds the vote, or the decision if that was the last one needed.

    The same person counts once. Raises `AlreadyDecided` after another decision, `DeadlinePassed` after the deadline, and
    `Refused` for a run or step that isn't there, that doesn't wait for an approval, or that `by` may not decide.
    """
    return await _vote(store, run_id, step_id, Vote(_name(by), True, reason, _now(clock)))


async def reject(
    store: Store, run_id: str, step_id: str, *, by: str, reason: str | None = None, clock: Clock | None = None
) -> StepRecord:
    """Say no to an approval, as `by`: one rejection decides. Raises what `approve` raises."""
    return await _vote(store, run_id, step_id, Vote(_name(by), False, reason, _now(clock)))


async def send(store: Store, run_id: str, step_id: str, value: Any = None, *, clock: Clock | None = None) -> StepRecord:
    """Give an event its value, before a run waits for it or while it does; the run need not exist yet.

    The same value sent again changes nothing. Raises `AlreadyDecided` for another one, `DeadlinePassed` after the deadline,
    `Refused` for a step that is no event, and `TypeError` for a value that can't be recorded.
    """
    check_own_id("run_id", run_id)
    check_own_id("step_id", step_id)
    check_store(store)
    result = record_any(value, f"the value of event {step_id!r}")
    latest = await store.get(run_id, step_id)
    while True:
        if latest is not None and latest.kind != "event":
            raise Refused(f"{step_id!r} of run {run_id!r} is no event but {_describe(latest)}")
        if latest is not None and decided(latest):
            if latest.status == "success" and latest.result == result:
                return latest
            _refuse_decided(latest)
        now = _now(clock)
        if latest is not None and latest.until is not None and now >= latest.until:
            latest = await store.append(expired(latest, now))
            continue
        record = _next(latest, now, run_id=run_id, step_id=step_id, kind="event", status="success", result=result)
        latest = await store.append(record)
        if latest.id == record.id:
            return latest


async def resolve(
    store: Store, run_id: str, step_id: str, value: Any = None, *, reason: str, clock: Clock | None = None
) -> StepRecord:
    """Set the outcome of a step that failed or was interrupted by hand; the run's next replay returns `value`.

    A flow that failed because of it goes on when it is run again. Raises `Refused` for a step in any other state,
    `AlreadyDecided` if it got an outcome meanwhile, and `TypeError` for a value that can't be recorded.
    """
    result = record_any(value, f"the value of step {step_id!r}")
    latest = await _known_step(store, run_id, step_id)
    is_there = (latest.status, latest.result, (latest.note or {}).get("reason")) == ("success", result, reason)
    if is_there and await _let_flow_go_on(store, latest, clock):
        return latest  # the same again, after a crash between the two entries
    _refuse_unless_stuck(latest)
    if latest.kind == "approval" and not isinstance(value, Decision):
        raise TypeError(f"{step_id!r} of run {run_id!r} is an approval: resolve it with a Decision, not {value!r}")
    record = _next(latest, _now(clock), status="success", result=result, note={**(latest.note or {}), "reason": reason})
    return await _mend(store, record, clock)


async def retry(store: Store, run_id: str, step_id: str, *, reason: str | None = None, clock: Clock | None = None) -> StepRecord:
    """Reopen a step that failed or was interrupted: the run's next run starts it again.

    A flow that failed because of it goes on when it is run again. An interrupted step is reopened only under the run's lock,
    lest it be running now: `RunBusy` is raised if it is held. Raises `Refused` for a step in any other state.
    """
    latest = await _known_step(store, run_id, step_id)
    if latest.status == "reopened" and await _let_flow_go_on(store, latest, clock):
        return latest  # the same again, after a crash between the two entries
    _refuse_unless_stuck(latest)
    note = latest.note if reason is None else {**(latest.note or {}), "reason": reason}
    record = _next(latest, _now(clock), status="reopened", note=note)
    if latest.status == "started" and step_id != FLOW and (locks := lock_of(store)):
        async with locks.lock(run_id):
            return await _mend(store, record, clock)
    return await _mend(store, record, clock)


async def cancel(store: Store, run_id: str, *, reason: str | None = None, clock: Clock | None = None) -> StepRecord:
    """Cancel a run: steps and waits that have no outcome yet raise `RunCancelled`, now and when it is run again.

    A runner notices before its next step if it is in this process, else within some two seconds, in a sleep within thirty. It
    starts nothing more; a function that is running is not interrupted. Cancelling again changes nothing. Raises `Refused` for
    a run that isn't there.
    """
    await _known_run(store, run_id)
    now = _now(clock)
    note = {"reason": reason} if reason else None
    record = StepRecord(run_id=run_id, step_id=CANCEL, kind="flow", note=note, started_at=now, ended_at=now)
    holder = await store.append(record)
    announce_cancellation()
    return holder


async def pending(store: Store, prefix: str = "", *, clock: Clock | None = None) -> AsyncIterator[StepRecord]:
    """Yield the newest entry of each approval that waits for a person, over all runs whose id starts with `prefix`.

    Reads the log of every run. Raises `Refused` on a store that can't list its runs.
    """
    async for run_id in _runs(store, prefix):
        latest = _latest(await store.list(run_id))
        if CANCEL in latest:
            continue
        for record in latest.values():
            open_to_people = record.kind == "approval" and record.status == "waiting"
            if open_to_people and (record.until is None or _now(clock) < record.until):
                yield record


async def status(store: Store, run_id: str) -> RunStatus:
    """Tell how a run stands. Raises `Refused` for a run that isn't there."""
    return status_of(run_id, _latest(await _known_run(store, run_id)))


async def runs(store: Store, prefix: str = "") -> AsyncIterator[RunStatus]:
    """Yield how each run stands whose id starts with `prefix`. Reads the log of every run."""
    async for run_id in _runs(store, prefix):
        if entries := await store.list(run_id):
            yield status_of(run_id, _latest(entries))


async def _vote(store: Store, run_id: str, step_id: str, vote: Vote) -> StepRecord:
    latest = await _known_step(store, run_id, step_id)
    while True:
        if latest.kind != "approval" or latest.status in ("started", "reopened"):
            raise Refused(f"{step_id!r} of run {run_id!r} doesn't wait for an approval: it is {_describe(latest)}")
        request = msgspec.convert(latest.note or {}, Request)
        if decided(latest):
            decision = request.decision()
            agrees = decision is not None and latest.status == "success" and decision.approved == vote.approved
            if agrees and request.holds(vote):
                return latest
            _refuse_decided(latest)
        if request.approvers is not None and vote.by not in request.approvers:
            raise Refused(f"{vote.by!r} may not decide {step_id!r} of run {run_id!r}; approvers: {', '.join(request.approvers)}")
        if latest.until is not None and vote.at >= latest.until:
            latest = await store.append(expired(latest, vote.at))
            continue
        if request.holds(vote):
            return latest
        request = request.with_vote(vote)
        decision = request.decision()
        record = _next(
            latest,
            vote.at,
            status="waiting" if decision is None else "success",
            result=None if decision is None else msgspec.json.encode(decision),
            note=request.note(),
        )
        latest = await store.append(record)
        if latest.id == record.id:
            return latest


def _refuse_unless_stuck(latest: StepRecord) -> None:
    if latest.status not in ("failure", "started"):
        what = f"{latest.step_id!r} of run {latest.run_id!r}"
        raise Refused(f"{what} neither failed nor was interrupted: it is {_describe(latest)}")


async def _mend(store: Store, record: StepRecord, clock: Clock | None) -> StepRecord:
    """Append what mends a step, and let its flow go on."""
    holder = await store.append(record)
    if holder.id != record.id and not (holder.status == record.status == "reopened"):
        _refuse_decided(holder)
    await _let_flow_go_on(store, holder, clock)
    return holder


async def _let_flow_go_on(store: Store, mended: StepRecord, clock: Clock | None) -> bool:
    """Reopen the flow that failed because of a step which was mended; tell whether there was one."""
    flow = None if mended.step_id == FLOW else await store.get(mended.run_id, FLOW)
    if flow is None or flow.status != "failure":
        return False
    note = {**(flow.note or {}), "reason": f"{mended.step_id!r} was mended"}
    await store.append(_next(flow, _now(clock), status="reopened", note=note))
    return True


def _next(latest: StepRecord | None, now: datetime, **fields: Any) -> StepRecord:
    """Return the entry that follows `latest`, alike but for `fields`."""
    if latest is None:
        return StepRecord(started_at=now, ended_at=now, **fields)
    alike = {
        "run_id": latest.run_id,
        "step_id": latest.step_id,
        "kind": latest.kind,
        "name": latest.name,
        "note": latest.note,
        "until": latest.until if latest.status == "waiting" else None,
        "attempt": latest.attempt,
        "fingerprint": latest.fingerprint,
    }
    return StepRecord(**{**alike, **fields}, revision=latest.revision + 1, started_at=min(latest.started_at, now), ended_at=now)


async def _known_run(store: Store, run_id: str) -> Sequence[StepRecord]:
    check_store(store)
    if entries := await store.list(run_id):
        return entries
    there = ""
    if listing := runs_of(store):
        found: list[str] = []
        async for other in listing.runs():
            found.append(other)
            if len(found) == 10:
                break
        there = f"; runs there: {', '.join(map(repr, sorted(found)))}" if found else "; there are no runs at all"
    raise Refused(f"there is no run {run_id!r} in this store{there}")


async def _known_step(store: Store, run_id: str, step_id: str) -> StepRecord:
    check_store(store)
    latest = await store.get(run_id, step_id)
    if latest is None:
        there = [name for name in _latest(await _known_run(store, run_id)) if not name.startswith("$")]
        listed = ", ".join(map(repr, there[-10:])) or "none"
        raise Refused(f"there is no step {step_id!r} in run {run_id!r}; its last steps: {listed}")
    return latest


def _latest(entries: Sequence[StepRecord]) -> dict[str, StepRecord]:
    latest: dict[str, StepRecord] = {}
    for record in entries:
        if record.step_id not in latest or latest[record.step_id].revision < record.revision:
            latest[record.step_id] = record
    return latest


async def _runs(store: Store, prefix: str) -> AsyncIterator[str]:
    check_store(store)
    listing = runs_of(store)
    if listing is None:
        raise Refused(f"{store!r} can't list its runs: it has no method runs(prefix)")
    async for run_id in listing.runs(prefix):
        yield run_id


def _describe(record: StepRecord) -> str:
    return f"{'an' if record.kind in ('approval', 'event') else 'a'} {record.kind} with status {record.status!r}"


def _refuse_decided(record: StepRecord) -> NoReturn:
    if record.status == "failure" and record.error is not None and record.error.matches(DeadlinePassed):
        raise DeadlinePassed(record.error.message)
    if record.kind == "approval" and record.status == "success":
        decision = msgspec.convert(record.note or {}, Request).decision()
        what = "set by hand" if decision is None else f"{'approved' if decision else 'rejected'} by {decision.by!r}"
    else:
        what = f"it is {_describe(record)}"
    raise AlreadyDecided(record, what)


def _name(by: object) -> str:
    if not isinstance(by, str) or not by:
        raise TypeError(f"by must be the name of who decides, not {by!r}")
    return by


def _now(clock: Clock | None) -> datetime:
    return datetime.now(UTC) if clock is None else clock.now()
