"""Deciding waits from outside: a person's vote, and the value or failure of an event."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from durable_core._log.chain import advance, decided, new_entry, successor
from durable_core._log.known import describe, known_step, now_by
from durable_core._log.wakeups import waking
from durable_core.clock import Clock
from durable_core.errors import AlreadyDecided, DeadlinePassed, Refused, Withdrawn
from durable_core.record import StepError, StepRecord
from durable_core.store import Store

from .approval import DEADLINE, Decision, Request, overdue


async def cast(store: Store, run_id: str, step_id: str, vote: Decision, clock: Clock | None) -> StepRecord:
    """Append the vote, or the decision that it completes; return the entry."""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        assert latest is not None
        if latest.kind != "approval" or latest.status in ("started", "reopened"):
            raise Refused(f"{step_id!r} of run {run_id!r} is not waiting for an approval: it is {describe(latest)}")
        request = Request.of(latest)
        if decided(latest):
            decision = request.decision()
            agrees = decision is not None and latest.status == "success" and decision.approved == vote.approved
            if agrees and request.holds(vote):
                return None
            raise already_decided(latest)
        if request.approvers is not None and vote.by not in request.approvers:
            raise Refused(f"{vote.by!r} may not decide {step_id!r} of run {run_id!r}; approvers: {', '.join(request.approvers)}")
        if latest.until is not None and vote.at >= latest.until:
            return overdue(latest, vote.at)
        if request.holds(vote):
            return None
        request = request.with_vote(vote)
        if (decision := request.decision()) is None:
            return successor(latest, vote.at, note=request.note())
        return successor(latest, vote.at, status="success", result=msgspec.json.encode(decision), note=request.note())

    latest = await known_step(store, run_id, step_id)
    async with waking(store, run_id, clock) as append:
        return await advance(append, latest, propose)


async def give(
    store: Store,
    run_id: str,
    step_id: str,
    clock: Clock | None,
    *,
    result: bytes | None = None,
    error: StepError | None = None,
    said: Mapping[str, str],
) -> StepRecord:
    """Append the value of an event, or with `error` the failure of an event or the withdrawal of an approval.

    `said` goes into the note.
    """
    outcome = {"status": "success", "result": result} if error is None else {"status": "failure", "error": error}

    def propose(latest: StepRecord | None) -> StepRecord | None:
        now = now_by(clock)
        if latest is None:
            return new_entry(run_id, step_id, now, kind="event", note=dict(said) or None, **outcome)
        if error is None and latest.kind != "event":
            raise Refused(f"{step_id!r} of run {run_id!r} is not an event: it is {describe(latest)}")
        if latest.kind not in ("event", "approval") or (latest.kind == "approval" and latest.status == "reopened"):
            raise Refused(f"{step_id!r} of run {run_id!r} can't be answered: it is {describe(latest)}")
        if decided(latest):
            if (latest.status, latest.result, _told(latest.error)) == (outcome["status"], result, _told(error)):
                return None
            raise already_decided(latest)
        if latest.until is not None and now >= latest.until:
            return overdue(latest, now)
        return successor(latest, now, note={**latest.notes, **said} if said else latest.note, **outcome)

    async with waking(store, run_id, clock) as append:
        return await advance(append, await store.get(run_id, step_id), propose)


def already_decided(record: StepRecord) -> Refused:
    """Return the error for a decision that came after another."""
    if record.status == "failure" and record.error is not None:
        if record.error.matches(DeadlinePassed):
            return DeadlinePassed(record.error.message)
        if record.error.matches(Withdrawn):
            return AlreadyDecided(record, f"it lost to another contender ({record.error.message})")
        return AlreadyDecided(record, f"it failed: {record.error}")
    if record.kind == "approval":
        decision = Request.of(record).decision()
        if decision is not None and decision.by == DEADLINE:
            return DeadlinePassed(decision.reason or f"nobody decided {record.step_id!r} in time")
        return AlreadyDecided(
            record, "set by hand" if decision is None else f"{'approved' if decision else 'rejected'} by {decision.by!r}"
        )
    return AlreadyDecided(record, f"it is {describe(record)}")


def _told(error: StepError | None) -> object:
    """Return the part that two reports of one failure have in common."""
    return None if error is None else (error.type, error.message, error.data)
