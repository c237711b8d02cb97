"""Driving a run: calling its flow's function once, and recording the state of the run then."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from durable_core._log.cancelling import cancellation
from durable_core._log.chain import CANCEL, FLOW, decided, successor
from durable_core._log.lock import driven_elsewhere
from durable_core._log.notes import ids_in, lasting, parent_of
from durable_core._log.wakeups import wake
from durable_core._system.waits import cancellations
from durable_core._values.codec import Codec
from durable_core.errors import (
    ChildStopped,
    RunCancelled,
    SomeFailed,
    StepDrift,
    StepFailed,
    StepInterrupted,
    UnrecordableValue,
)
from durable_core.options import exponential
from durable_core.record import StepError, StepRecord
from durable_core.stores.flows import cancelled, is_crash, is_parked

from .ending import Left, Verdict, behind, judge, leaves
from .outcome import ended_by, failure_of
from .run import Run

_next_try: Final = exponential(1, limit=300)


class Work(msgspec.Struct, frozen=True):
    """The work of a run: a flow's function with its input, the codec of its value, and the exceptions that fail it."""

    call: Callable[[], Awaitable[Any]]
    codec: Codec[Any]
    fails_on: tuple[type[BaseException], ...] = ()
    timeout: float | None = None
    """Seconds from the run's first start, after which it is cancelled."""
    end_children: Callable[[], Awaitable[None]] | None = None
    """Cancels the children of a cancelled run that have not ended, and drives them to their end."""


class Standing(msgspec.Struct, frozen=True):
    """The state of a run: the newest entry of its flow, and the error for its caller."""

    record: StepRecord
    error: BaseException | None = None
    """The exception for callers; None if the run succeeded."""


async def begin(run: Run, name: str, note: dict[str, Any], fingerprint: str | None, timeout: float | None) -> StepRecord:
    """Claim the first entry of the run's flow for this runner, and return the newest; others may have asked for the run."""
    note = {**note, **_deadline(run, {}, timeout), **await run.visit(name, None)}
    started = run.entry(FLOW, None, status="started", kind="flow", name=name, note=note, fingerprint=fingerprint)
    try:
        newest = await run.log.claim(started)
        run.flow = newest if newest.id == started.id else None
        if run.flow is None:
            await _emit_stop(run, newest)
        asked = await run.log.look(CANCEL)
        return newest if asked is None else await _cancelled_by(run, newest, asked)
    except BaseException as error:
        await _emit_stop(run, started, error)
        raise


async def _cancelled_by(run: Run, latest: StepRecord, asked: StepRecord) -> StepRecord:
    """Cancel a run if `$cancel` asks for that, unless it has ended; return the newest entry of its flow."""
    request = cancellation(latest, run.clock.now(), asked.notes.get("reason"), asked.notes.get("by"))
    return latest if request is None else await run.log.claim(request)


def _deadline(run: Run, note: Mapping[str, Any], timeout: float | None) -> dict[str, Any]:
    """Return the deadline of a run that starts now for the first time."""
    if timeout is None or "deadline" in note:
        return {}
    return {"deadline": (run.clock.now() + timedelta(seconds=timeout)).isoformat()}


async def claim(run: Run, latest: StepRecord, **fields: Any) -> StepRecord:
    """Append the next entry of the run's flow; return it, or an entry that somebody from outside appended first.

    Raises `LockLost` if another runner was first, because that runner drives the run.
    """
    note = {**lasting(latest), **fields.pop("note", {})}
    record = successor(latest, run.clock.now(), **{"error": None, "until": None, **fields, "note": note})
    newest = await run.log.claim(record)
    if newest.id != record.id and not _is_from_outside(newest):
        raise driven_elsewhere(run.id)
    return newest


def _is_from_outside(record: StepRecord) -> bool:
    """Return True if somebody from outside ended the run, cancelled it or reopened it; a driving runner does none of these."""
    return decided(record) or (record.status == "reopened" and not is_crash(record))


async def drive(run: Run, latest: StepRecord, work: Work) -> Standing:
    """Drive a run, given the newest entry of its flow, and return its state then.

    It is driven again while somebody cancels or repairs it meanwhile. Raises only errors that say nothing about the run.
    """
    try:
        standing = await _drive(run, latest, work)
    except BaseException as error:
        await _emit_stop(run, latest, error)
        raise
    await _emit_stop(run, standing.record)
    return standing


async def _emit_stop(run: Run, latest: StepRecord, error: BaseException | None = None) -> None:
    """Emit the end of a visit that recorded no entry, if handlers got its beginning and no end."""
    if run.carried is not None and not isinstance(error, GeneratorExit):  # a coroutine that is closed can't wait
        await run.emit_visited("run:stop", run.flow or latest, error)


async def _drive(run: Run, latest: StepRecord, work: Work) -> Standing:
    while not decided(latest):
        if (
            asked := run.log.cancelled
        ) is not None and asked.step_id == CANCEL:  # the process that asked died before the flow said so
            latest = await _cancelled_by(run, latest, asked)
            if decided(latest):
                break
        standing = await _drive_once(run, latest, work)
        if standing.record is not run.flow:  # or the function is called again in the same visit
            await _emit_stop(run, standing.record)
        if standing.error is not None or standing.record.status == "success":
            return standing
        latest = standing.record
    return Standing(latest, None if latest.status == "success" else ended_by(latest, _failed_step(run, latest)))


async def _drive_once(run: Run, latest: StepRecord, work: Work) -> Standing:
    """Call the flow's function, and record the state of the run; without an error if it must be driven again."""
    while latest is not run.flow:  # twice if it is cancelled just now
        note = {**_deadline(run, latest.notes, work.timeout), **await run.visit(latest.name, latest)}
        latest = run.flow = await claim(run, latest, status="started", note=note)
        if decided(latest):  # it was only asked for, and is cancelled
            return Standing(latest)
        if latest.status != "started":
            run.flow = None
    deadline = latest.notes.get("deadline")
    run.drive(latest, datetime.fromisoformat(deadline) if isinstance(deadline, str) else None)
    await run.emit("run:start", latest)
    error, value, result, is_own = await _call(run, work)
    await run.idle()  # a step that still runs in a task may fail, or never be recorded
    while run.told and run.waiting:  # siblings of the same gather learn it next, and may undo what they did
        await run.an_end()
        await run.idle()
    if run.log.kept:
        await run.log.settle()
    verdict = judge(
        Left(
            run_id=run.id,
            error=error,
            is_own=is_own,
            suspended=run.suspended is not None,
            told=run.told,
            undoing=run.undoing,
            fails_on=work.fails_on,
            answers=run.answers,
            outside=run.outside,
        )
    )
    if verdict is None:
        assert error is not None
        if isinstance(error, asyncio.CancelledError) and run.driver.hands_back():
            run.lock.check()
            await claim(run, latest, status="waiting", note=_handed_back(run))
        raise error
    run.lock.check()
    if run.told and work.end_children is not None:
        try:
            await work.end_children()
        except ChildStopped as stopped:
            error, verdict = stopped, Verdict("parked" if is_parked(stopped.record) else "crashed")
    assert run.flow is not None
    try:
        return await _recorded(run, run.flow, verdict, error, value, result)
    finally:
        del error  # its traceback holds this frame


async def _call(run: Run, work: Work) -> tuple[BaseException | None, Any, bytes | None, bool]:
    """Call the function; return its exception or its value, also as JSON, and whether the exception is its own."""
    run.outside = frozenset(map(id, behind(sys.exception())))
    before = cancellations()
    try:
        returned = await work.call()
    except asyncio.CancelledError as error:
        return error, None, None, cancellations() <= before  # from a task that the flow awaited and somebody else cancelled
    except BaseException as error:
        return error, None, None, False
    if run.suspended is not None or run.told:
        return None, None, None, False
    try:
        result, value = work.codec.record(returned)
    except UnrecordableValue as refusal:
        return refusal, None, None, True
    return None, value, result, False


async def _recorded(
    run: Run, latest: StepRecord, verdict: Verdict, error: BaseException | None, value: Any, result: bytes | None
) -> Standing:
    """Record the state of the run, unless it was repaired or cancelled meanwhile."""
    note: dict[str, Any] = {}
    if verdict.end == "succeeded":
        asked = cancelled(latest)  # and no step was left to raise it
        note |= {} if asked is None else {"cancelled": {**asked, "late": True}}
        return await _end(run, latest, value, note, None, status="success", result=result)
    if verdict.end == "failed":
        still = [failed for failed in verdict.failed if await _still_failed(run, failed)]
        if verdict.failed and not still:  # it was mended meanwhile
            return Standing(latest)
        if still:
            note["failed"] = [failed.step_id for failed in still]
        if verdict.answered_by:
            note["answered_by"] = [*verdict.answered_by]
        assert error is not None
        described = (still[0].record.error if still else None) or StepError.from_exception(error)
        return await _end(run, latest, None, note, error, status="failure", error=described)
    if verdict.end == "cancelled":
        assert run.log.cancelled is not None
        told = RunCancelled(run.log.cancelled)
        described = StepError.from_exception(told)
        return await _end(run, latest, None, {}, error or told, status="failure", error=described)
    fields: dict[str, Any] = {"status": "waiting"}
    if verdict.end == "suspended":
        error = run.suspended or error
        pairs = [*map(list, getattr(error, "pairs", ()))]
        fields |= {"until": getattr(error, "until", None), "note": {"waiting_for": pairs}}
        if run.driver.hands_back():
            fields |= {"until": None, "note": _handed_back(run)}
    else:
        assert error is not None
        stopped = [each for each in leaves(error) if isinstance(each, ChildStopped)]
        stopped_by = stopped[0].error if stopped else error
        if verdict.end == "parked":
            fields["note"] = _parked(run, stopped[0] if stopped else error)
        else:
            until = run.clock.now() + timedelta(seconds=_next_try(run.log.crashes() + 1))
            fields = {"status": "reopened", "error": StepError.from_exception(stopped_by), "until": until}
        if len(stopped) == len([*leaves(error)]):  # callers don't know the child, so they get the error that stopped it
            error = stopped_by
    if fields.get("until") is not None and not run.is_child:
        await run.driver.suspends(run.store, latest, fields["until"])
    record = await claim(run, latest, **fields)
    if _is_from_outside(record):
        return Standing(record)
    crashed = verdict.end == "crashed"
    await run.emit_visited("run:crash" if crashed else "run:suspend", record, error if crashed else None)
    return Standing(record, error)


def _handed_back(run: Run) -> dict[str, Any]:
    """Return the fields of the entry that hands a run to others because this program shuts down."""
    return {"handed_back": {"at": run.clock.now().isoformat()}}


async def _end(
    run: Run, latest: StepRecord, value: Any, note: dict[str, Any], cause: BaseException | None, **fields: Any
) -> Standing:
    """Record the outcome, or find the one that somebody else recorded."""
    outcome = successor(latest, run.clock.now(), **{"until": None, **fields, "note": {**lasting(latest), **note}})
    recorded = await run.log.outcome(outcome, value)
    if parent_of(recorded) is not None and not run.is_child:
        await wake(run.store, recorded, run.clock.now())
    await run.emit_visited("run:end", recorded, cause)
    if recorded.status == "success":
        return Standing(recorded)
    failed = StepFailed(failure_of(recorded, _failed_step(run, recorded)))
    failed.__cause__ = cause
    return Standing(recorded, failed)


def _failed_step(run: Run, flow: StepRecord) -> StepRecord | None:
    names = ids_in(flow, "failed")
    return run.log.latest(names[0]) if names else None


async def _still_failed(run: Run, failed: StepFailed | SomeFailed) -> bool:
    """Read a failure again that is about to end the run, because somebody may have repaired it."""
    newest = await run.log.look(failed.step_id)
    return newest is None or newest.id == failed.record.id


def _parked(run: Run, error: BaseException | None) -> dict[str, Any]:
    """Return the note of a parked run: the step, the reason, and the call that repairs it."""
    parked = next(each for each in leaves(error) if isinstance(each, (StepInterrupted, StepDrift, ChildStopped)))
    if isinstance(parked, ChildStopped):
        pairs = parked.record.notes.get("waiting_for") or [[parked.run_id, FLOW]]
        return {"parked": parked.record.notes.get("parked"), "waiting_for": pairs}
    step_id = getattr(parked, "step_id", None)
    if isinstance(parked, StepInterrupted):
        mend = f"durable_core.control.resolve or retry(store, {run.id!r}, {step_id!r})"
    else:
        mend = f"mend the flow's code, and run it again; or durable_core.control.retry(store, {run.id!r})"
    pairs = [[run.id, step_id]] if isinstance(parked, StepInterrupted) else []
    by = "interruption" if isinstance(parked, StepInterrupted) else "drift"
    return {"parked": {"step": step_id, "why": str(parked), "mend": mend, "by": by}, "waiting_for": pairs}
