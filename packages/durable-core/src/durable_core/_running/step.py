"""Running one step: its attempts, its intent if it may happen only once, and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from durable_core._log.chain import decided, successor
from durable_core._system.ids import new_id
from durable_core._system.waits import undisturbed
from durable_core.errors import RunCancelled, StepFailed, StepInterrupted, StepReused, UnrecordableValue
from durable_core.events import is_logged
from durable_core.options import Recovered
from durable_core.record import StepError, StepRecord

from .attempt import Caller, Failure, Outcome, attempt, thread_for
from .call import Call, check, is_async, may_change_its_variables, reused
from .looking import listening
from .outcome import outcome_of
from .pausing import pause
from .race import Wait, note_wait
from .run import Run


class Tried(msgspec.Struct):
    """The result of one attempt."""

    record: StepRecord
    value: Any
    error: Failure | None
    cancelled: asyncio.CancelledError | None
    is_recorded: bool = False
    """True if the store already holds the record."""
    is_last: bool = False
    """True if no other attempt follows, whatever the policy says."""


TryOnce = Callable[[Run, Call, StepRecord | None, int, StepError | None], Awaitable[Tried | StepRecord]]
"""A way to try once: called with the newest entry, the attempt's number, and the error of the attempt before if not recorded.

It returns the result, or an entry that somebody else appended first: an outcome, or the start of an attempt.
"""

_UNRECORDED: Final = 1.0  # seconds; a shorter delay is not recorded


async def run_step(run: Run, call: Call, once: TryOnce | None = None) -> Any:
    """Return the step's recorded value, or raise its failure; if it has no outcome, run it until it has one.

    `once` is another way to try once, such as a transaction's.
    """
    if call.reuses_id:
        raise reused(run, call.step_id)
    await run.ready()
    while call.step_id in run.running and not decided(run.log.latest(call.step_id)):
        await run.an_end()  # the same call is running elsewhere; if it is cancelled, this one takes over
        await run.ready()  # unless its outcome is kept or the run was suspended meanwhile
    latest = run.log.latest(call.step_id)
    if latest is not None and decided(latest):
        run.tell_again(call.step_id)
        if run.on_event is not None or is_logged("step:replay"):
            await run.emit("step:replay", latest)
        return outcome_of(run, latest, call)
    run.running[call.step_id] = asyncio.current_task()
    try:
        if latest is None and run.log.answers:
            await run.refuse_unanswered(call.step_id)
        while True:
            if latest is not None:
                run.check_kind(latest, "step")
                if latest.status == "started" and (found := await _recover(run, call, latest)):
                    return outcome_of(run, found, call)
            tried = await _attempts(run, call, latest, once or try_once)
            if not isinstance(tried, StepRecord):
                break
            await run.emit_stop(call)
            if decided(tried):
                return outcome_of(run, tried, call)
            latest = tried
        recorded = tried.record if tried.is_recorded else await run.log.outcome(tried.record, tried.value, tried.cancelled)
        if run.on_event is not None:
            await run.emit_outcome(recorded, tried.error)
        if recorded.id != tried.record.id:
            return outcome_of(run, recorded, call, ran=True)
        if tried.error is not None:
            raise StepFailed(recorded) from tried.error
        return tried.value
    except BaseException as error:
        if isinstance(error, RunCancelled):
            run.told_at[call.step_id] = None
        await run.emit_stop(call, error)
        raise
    finally:
        run.end_step(call.step_id)


run_step.__qualname__ = "Runner.step"  # Python raises this for a coroutine that was never awaited


async def _attempts(run: Run, call: Call, latest: StepRecord | None, once: TryOnce) -> Tried | StepRecord:
    """Try until no further attempt is due; return the result of the last one, or an entry that somebody else appended first."""
    number, raised = (0, 0) if latest is None else run.log.attempts(latest)
    failed: StepRecord | None = None
    due: datetime | None = None
    try:
        while True:
            if latest is not None and latest.status == "waiting":
                if raised >= call.policy.max_attempts:  # the limit was higher when the attempt was recorded
                    return await run.log.outcome(successor(latest, run.clock.now(), status="failure", error=latest.error), None)
                latest = await due_entry(run, call, latest)
                if decided(latest):
                    return latest
                if latest.status == "reopened":
                    number = raised = 0
            number += 1
            if run.on_event is not None:
                await run.emit("step:start", call, number)
            tried = await once(run, call, latest, number, None if failed is None else failed.error)
            if isinstance(tried, StepRecord) or tried.error is None or tried.is_last:
                return tried
            failed, due = tried.record, None
            raised += 1
            if tried.cancelled is not None and raised < call.policy.max_attempts:
                raise tried.cancelled from tried.error
            if not call.policy.retries(tried.error, raised):
                return tried
            delay = call.policy.delay(raised, tried.error)
            await run.emit("step:retry", call, number, error=tried.error, delay=delay)
            due = run.clock.now() + timedelta(seconds=delay)
            if delay > _UNRECORDED:
                latest = await run.log.claim(_next_try(failed, due))
                failed = None
                if decided(latest):
                    return latest
            else:
                await run.clock.sleep(delay)
                latest = run.log.latest(call.step_id)
            may_change_its_variables(call)
    except (Exception, asyncio.CancelledError, RunCancelled):
        intent = run.log.latest(call.step_id)
        if call.policy.at_most_once and failed is not None and intent is not None and intent.revision < failed.revision:
            # Otherwise the intent would mean that nobody knows how the attempt ended.
            if due is None:
                await run.log.outcome_if_possible(failed)
            else:
                await undisturbed(run.log.claim(_next_try(failed, due)))
        raise


def _next_try(failed: StepRecord, until: datetime) -> StepRecord:
    """Return the entry with the error of an attempt and the time of the next one."""
    return msgspec.structs.replace(failed, id=new_id(), status="waiting", until=until)


async def due_entry(run: Run, call: Call, waiting: StepRecord) -> StepRecord:
    """Wait until the next attempt is due, in this process or another; return the step's newest entry then."""
    limit = run.end_of_waiting()
    latest = waiting
    note_wait(run, Wait(call.step_id, call.name, "step"))
    await run.begin(undoes=call.policy.when_cancelled)
    with listening(run, call.step_id) as listener, run.delaying(call.step_id):
        while latest.status == "waiting" and latest.until is not None and latest.until > run.clock.now():
            await pause(run, listener, latest.until, limit, undoes=call.policy.when_cancelled)
            latest = run.log.latest(call.step_id) or latest
    return latest


async def try_once(run: Run, call: Call, latest: StepRecord | None, number: int, before: StepError | None) -> Tried | StepRecord:
    """Call the function once. Everything that could forbid the call is checked last, after all waiting."""
    thread = None if call.is_async else await thread_for(call)
    try:
        await run.poll(undoes=call.policy.when_cancelled)
        check(run, call)
        if not call.policy.at_most_once:
            return await try_fn(run, call, latest, number, call.args, thread)
        intent, is_mine = await _intend(run, call, latest, number, before)
        if not is_mine:
            return intent
        try:
            check(run, call)
            return await try_fn(run, call, intent, number, call.args, thread)
        except StepReused:  # the intent had no effect
            await run.log.claim(successor(intent, run.clock.now(), status="reopened"))
            raise
    finally:
        if thread is not None:
            thread.give()


async def try_fn(
    run: Run, call: Call, latest: StepRecord | None, number: int, args: tuple[Any, ...], thread: Caller | None = None
) -> Tried:
    """Call the function with `args`, and make the record of the result, which follows `latest`."""
    started_at, began = run.clock.now(), run.clock.monotonic()
    outcome = await attempt(run, call, number, call.fn, args, thread=thread, timeout=call.policy.timeout)
    return tried_of(run, call, latest, number, outcome, started_at, run.clock.monotonic() - began)


def tried_of(
    run: Run, call: Call, latest: StepRecord | None, number: int, outcome: Outcome, started_at: datetime, took: float
) -> Tried:
    """Make the record of the result of calling the function, which follows `latest`. Works from any thread."""
    value, error, result = None, outcome.error, None
    if error is None and call.codec is not None:
        try:
            result, value = call.codec.record(outcome.value)
        except UnrecordableValue as refusal:
            error = refusal
    record = StepRecord(
        run_id=run.id,
        step_id=call.step_id,
        revision=0 if latest is None else latest.revision + 1,
        status="success" if error is None else "failure",
        name=call.name,
        result=result,
        error=None if error is None else StepError.from_exception(error),
        attempt=number,
        started_at=started_at,
        ended_at=started_at + timedelta(0, took),
        fingerprint=call.fingerprint,
        note=call.note,
    )
    return Tried(record, value, error, outcome.cancelled)


async def _intend(
    run: Run, call: Call, latest: StepRecord | None, number: int, before: StepError | None
) -> tuple[StepRecord, bool]:
    """Record the start of an attempt, and the error of the one before; return that entry and True, or another that came first.

    A process that has lost the run's lock may have appended it: its last append can arrive after this process read the log.
    """
    while True:
        intent = run.entry(
            call.step_id,
            latest,
            status="started",
            name=call.name,
            error=before,
            attempt=number,
            fingerprint=call.fingerprint,
            note=call.note,
        )
        latest = await run.log.claim(intent)
        if latest.id == intent.id:
            return latest, True
        if latest.status != "reopened" or latest.kind != "step":
            return latest, False


async def _recover(run: Run, call: Call, started: StepRecord) -> StepRecord | None:
    """Call `recover` for an attempt without an outcome; return an outcome to record, or None to start the step again."""
    recover = call.policy.recover
    if recover is None or not run.lock.is_held:
        if run.replay is not None:  # an error would end its siblings of a task group before they have replayed
            await run.replay.stop(run, call.step_id)
        run.check(undoes=call.policy.when_cancelled)
        raise StepInterrupted(started, unlocked=recover is not None)
    # A cancelled run calls it too: what happened is recorded, and the next step raises.
    call = msgspec.structs.replace(call, policy=msgspec.structs.replace(call.policy, when_cancelled=True))
    thread = None if is_async(recover) else await thread_for(call)
    try:
        await run.poll(undoes=True)
        check(run, call)
        asked = await attempt(run, call, started.attempt, recover, (), thread=thread)
    finally:
        if thread is not None:
            thread.give()
    if asked.cancelled is not None:
        raise asked.cancelled from asked.error
    if isinstance(asked.error, asyncio.CancelledError):  # if it were raised as it is, a task group would take it for its own
        raise StepInterrupted(started) from asked.error
    if asked.error is not None:
        raise asked.error
    found = asked.value
    if found is None:
        return None
    if not isinstance(found, Recovered):
        raise TypeError(f"recover of step {call.step_id!r} must return Recovered(value), or None to start again, not {found!r}")
    result, value = (None, None) if call.codec is None else call.codec.record(found.value)
    record = successor(started, run.clock.now(), status="success", result=result, note={"recovered": True})
    return await run.log.outcome(record, value)
