"""Running one step: its attempts, its intent where it may happen only once, and its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from durable_core._log.chain import advance, decided, successor
from durable_core.errors import StepFailed, StepInterrupted, StepReused, UnrecordableValue
from durable_core.events import is_logged
from durable_core.options import Recovered
from durable_core.record import StepError, StepRecord

from .attempt import Failure, Thread, attempt, is_async, is_lambda
from .call import Call, check_closure, reused
from .outcome import outcome_of
from .run import Run


class Tried(NamedTuple):
    """What came of one attempt."""

    record: StepRecord
    value: Any = None
    error: Failure | None = None
    cancelled: asyncio.CancelledError | None = None
    recorded: bool = False
    """Whether the store holds the record already."""


TryOnce = Callable[[Run, Call, StepRecord | None, int], Awaitable[Tried | StepRecord]]
"""A way to try once; it returns what came of it, or the outcome of somebody else that was there first."""


async def run_step(run: Run, call: Call, once: TryOnce | None = None) -> Any:
    """Return the step's recorded value, or raise its failure; run it until it has an outcome, if it has none.

    `once` is another way to try once, such as a transaction's.
    """
    if call.reuses_id:
        raise reused(run, call.step_id)
    await run.ready()
    while not decided(latest := run.log.latest(call.step_id)) and call.step_id in run.running:
        await run.an_end()  # the same call elsewhere; if that is cancelled, this one takes over
        await run.ready()  # unless its outcome is kept, or the run was suspended meanwhile
    if decided(latest):
        if run.on_event is not None or is_logged("step:replay"):
            await run.emit("step:replay", latest)
        return outcome_of(run, latest, call)
    run.running[call.step_id] = asyncio.current_task()
    try:
        return await _decide(run, call, latest, once or _once)
    finally:
        run.stopped(call.step_id)


run_step.__qualname__ = "Runner.step"  # which is what Python says of one that was never awaited


async def _decide(run: Run, call: Call, latest: StepRecord | None, once: TryOnce) -> Any:
    """Try until the step has an outcome, record it, and return its value."""
    if latest is None and run.log.answers:
        await run.refuse_unanswered(call.step_id)
    if latest is not None:
        run.check_kind(latest, "step")
        if latest.status == "started" and (found := await _recover(run, call, latest)):
            return outcome_of(run, found, call)
    number = 1
    while True:
        if run.on_event is not None:
            await run.emit("step:start", call, number)
        tried = await once(run, call, latest, number)
        if isinstance(tried, StepRecord):
            return outcome_of(run, tried, call)
        if tried.error is None or (tried.cancelled is not None and call.policy.at_most_once):
            break
        if tried.cancelled is not None and number < call.policy.max_attempts:
            raise tried.cancelled from tried.error
        if not call.policy.retries(tried.error, number):
            break
        delay = call.policy.delay(number, tried.error)
        await run.emit("step:retry", call, number, error=tried.error, delay=delay)
        await run.clock.sleep(delay)
        latest = run.log.latest(call.step_id)
        number += 1
    try:
        recorded = tried.record if tried.recorded else await run.log.outcome(tried.record, tried.value, tried.cancelled)
        if run.on_event is not None:
            await run.emit_outcome(recorded, tried.error)
        if recorded.id != tried.record.id:
            return outcome_of(run, recorded, call, ran=True)
        if tried.error is not None:
            raise StepFailed(recorded) from tried.error
        return tried.value
    finally:
        del tried  # its error's traceback holds this frame


async def _once(run: Run, call: Call, latest: StepRecord | None, number: int) -> Tried | StepRecord:
    """Call the function once. What could keep it from being called is checked last, when nothing is waited for any more."""
    thread = None if call.is_async else await Thread.take()

    undoes = call.policy.when_cancelled

    def check() -> None:
        run.check(undoes=undoes)
        if number == 1 or is_lambda(call.fn):  # any other function may change its own variables
            check_closure(run, call)

    try:
        await run.begin(undoes=undoes)
        if call.closure:
            check()
        if call.policy.at_most_once:
            latest = await _intend(run, call, latest, number)
            if decided(latest):
                return latest
        try:
            return await tried_by(run, call, latest, number, call.args, check, thread)
        except StepReused:
            if latest is not None and latest.status == "started":  # which nothing was done for
                await run.log.claim(successor(latest, run.clock.now(), status="reopened"))
            raise
    finally:
        if thread is not None:
            thread.give()


async def tried_by(
    run: Run,
    call: Call,
    latest: StepRecord | None,
    number: int,
    args: tuple[Any, ...],
    check: Callable[[], None],
    thread: Thread | None = None,
) -> Tried:
    """Call `check` and then the function with `args`, and make the record of what came of it."""
    started_at, began = run.clock.now(), run.clock.monotonic()
    context = run.context(call.step_id, number)
    value, error, cancelled = await attempt(context, call.fn, args, call.policy.timeout, thread=thread, check=check)
    result: bytes | None = None
    if error is None and call.codec is not None:
        try:
            result, value = call.codec.record(value)
        except UnrecordableValue as refusal:
            error = refusal
    record = _entry(
        run,
        call,
        latest,
        status="success" if error is None else "failure",
        result=result,
        error=None if error is None else StepError.from_exception(error),
        attempt=number,
        started_at=started_at,
        ended_at=started_at + timedelta(seconds=run.clock.monotonic() - began),
    )
    return Tried(record, None if error is not None or call.codec is None else value, error, cancelled)


def _entry(run: Run, call: Call, latest: StepRecord | None, **fields: Any) -> StepRecord:
    """Return the entry of this call that follows `latest`."""
    return StepRecord(
        run_id=run.id,
        step_id=call.step_id,
        revision=0 if latest is None else latest.revision + 1,
        name=call.name,
        fingerprint=call.fingerprint,
        **{"note": None if call.answered is None else {"answered": call.answered}, **fields},
    )


async def _intend(run: Run, call: Call, latest: StepRecord | None, number: int) -> StepRecord:
    """Record that an attempt begins; return that entry, or an outcome if another was there first."""
    before, mine = latest, ""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        nonlocal mine
        if latest is not None and (latest.id == mine or decided(latest)):
            return None
        if latest is not None and latest is not before:
            run.check_kind(latest, "step")
            if latest.status != "reopened":
                raise StepInterrupted(latest)
        now = run.clock.now()
        intent = _entry(run, call, latest, status="started", attempt=number, started_at=now, ended_at=now)
        mine = intent.id
        return intent

    return await advance(run.log.claim, latest, propose)


async def _recover(run: Run, call: Call, started: StepRecord) -> StepRecord | None:
    """Ask what came of an attempt that left no outcome; return one to record it, None to let the step start again."""
    recover = call.policy.recover
    if recover is None or not run.lock.held:
        raise StepInterrupted(started, unlocked=recover is not None)
    thread = None if is_async(recover) else await Thread.take()
    try:
        await run.begin()
        check_closure(run, call)
        began: datetime = run.clock.now()
        context = run.context(call.step_id, started.attempt)
        found, error, cancelled = await attempt(context, recover, (), thread=thread, check=run.check)
    finally:
        if thread is not None:
            thread.give()
    if cancelled is not None:
        raise cancelled from error
    if isinstance(error, asyncio.CancelledError):  # raised as it is, a task group would take it for its own
        raise StepInterrupted(started) from error
    if error is not None:
        raise error
    if found is None:
        return None
    if not isinstance(found, Recovered):
        raise TypeError(f"recover of step {call.step_id!r} must return Recovered(value), or None to start again, not {found!r}")
    result, value = (None, None) if call.codec is None else call.codec.record(found.value)
    record = _entry(
        run,
        call,
        started,
        status="success",
        result=result,
        note={"recovered": True},
        attempt=started.attempt,
        started_at=started.started_at,
        ended_at=max(began, started.started_at),
    )
    return await run.log.outcome(record, value)
