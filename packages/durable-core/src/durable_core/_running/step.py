"""Running one step: its attempts, its intent where it may happen only once, and its outcome."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import msgspec

from durable_core._calls.arguments import Call
from durable_core._log.runlog import OUTCOMES
from durable_core._values.returns import Codec
from durable_core.context import running
from durable_core.errors import StepDrift, StepFailed, StepInterrupted, UnrecordableValue
from durable_core.options import Recovered
from durable_core.record import StepError, StepRecord

from .attempt import invoke, is_nested
from .call import turn
from .run import Run


async def execute(run: Run, call: Call) -> Any:
    """Return the step's recorded value, or raise its failure; run it until it has an outcome, and record that, if it has none."""
    step_id = call.step_id
    if call.is_same and run.loaded and not run.log.kept and run.suspended is None and step_id not in run.running:
        latest = run.log.latest(step_id)  # as `turn` does where nothing is to be waited for
    else:
        latest = await turn(run, call)
    if latest is not None and latest.status in OUTCOMES:
        if run.on_event is not None:  # asked here too: a step without listeners pays for no event
            await run.emit_record("step:replay", latest)
        return outcome_of(run, latest, call)
    codec, policy, clock = call.codec, call.policy, run.clock
    task = run.running[step_id] = asyncio.current_task()
    try:
        revision = 0
        if latest is not None:
            run.check_kind(latest, "step")
            if latest.status == "started" and (found := await _recover(run, call, latest)):
                return outcome_of(run, found, call)
            revision = latest.revision + 1
        attempt = 1
        while True:
            if run.on_event is not None:
                await run.emit("step:start", step_id, call.name, attempt)
            began = clock.monotonic()
            if run.must_look(began):  # asked here: most steps need no look
                await run.begin()
                began = clock.monotonic()
            if policy.at_most_once:
                holder = await _intend(run, call, revision, attempt)
                if holder.status in OUTCOMES:
                    return outcome_of(run, holder, call)
                revision = holder.revision + 1
                began = clock.monotonic()
            context, started_at = run.context(step_id, attempt), clock.now()
            fn, result, error, cancelled = call.fn, None, None, None
            if call.is_coroutine and policy.timeout is None:
                token = running.set(context)
                try:  # as `invoke` does, with one coroutine less
                    value = await fn(*call.args)
                except Exception as failure:
                    value, error = None, failure
                finally:
                    context.end()
                    running.reset(token)
                    del context, token  # a thousand steps that wait for their records keep little
            else:
                value, error, cancelled = await invoke(context, fn, call.args, policy.timeout)
            if error is None:
                if codec is None:
                    value = None
                    break
                try:
                    result, value = codec.record(value)
                    break
                except UnrecordableValue as refusal:
                    error, value = refusal, None
            if is_nested(error):
                raise error
            if not policy.retries(error, attempt):
                break
            if cancelled is not None:
                raise cancelled
            delay = policy.delay(attempt, error)
            if run.on_event is not None:
                await run.emit("step:retry", step_id, call.name, attempt, error=error, delay=delay)
            await clock.sleep(delay)
            attempt += 1
        record = ended(run, call, revision, attempt, started_at, began, result, error)
        try:  # as `outcome` does, with one coroutine less to resume
            if cancelled is not None:
                raise cancelled
            recorded = await run.log.append(record, run.log.timeout, task=task)
        except (Exception, asyncio.CancelledError) as failure:
            await run.log.rescue(record, value, failure)
        if run.on_event is not None:
            await run.emit_record("step:success" if recorded.status == "success" else "step:failure", recorded, error)
        if recorded.id != record.id:
            return outcome_of(run, recorded, call, ran=True)
        if error is not None:
            raise StepFailed(recorded) from error
        return value
    finally:
        error = None  # whose traceback holds this frame
        run.stopped(step_id)


execute.__qualname__ = "Runner.step"  # which is what Python says of one that was never awaited


def ended(
    run: Run,
    call: Call,
    revision: int,
    attempt: int,
    started_at: datetime,
    began: float,
    result: bytes | None,
    error: Exception | None,
) -> StepRecord:
    """Make the record of an outcome: the end is the start plus monotonic time."""
    return StepRecord(
        run_id=run.id,
        step_id=call.step_id,
        revision=revision,
        status="success" if error is None else "failure",
        name=call.name,
        result=result,
        error=None if error is None else StepError.from_exception(error),
        attempt=attempt,
        started_at=started_at,
        ended_at=started_at + timedelta(0, run.clock.monotonic() - began),
        fingerprint=call.fingerprint,
    )


def outcome_of(run: Run, record: StepRecord, call: Call, *, ran: bool = False) -> Any:
    """Return the value of a recorded outcome, or raise its failure. Raises `StepDrift` where it doesn't fit the code."""
    if record.kind != "step":
        run.check_kind(record, "step")
    if call.fingerprint != record.fingerprint:
        run.drifted(record)
    if record.status == "failure":
        raise StepFailed(record) if ran else failed_before(record, to_retry(record))
    return None if call.codec is None else value_of(record, call.codec)


def failed_before(record: StepRecord, advice: str) -> StepFailed:
    """Return the failure that is recorded, with a note that says why it is raised although nothing ran, and what to do."""
    failed = StepFailed(record)
    failed.add_note(f"recorded at {record.ended_at.isoformat(timespec='seconds')}; nothing was run again; {advice}")
    return failed


def to_retry(record: StepRecord) -> str:
    """Say how a failure is taken back."""
    return f"to let it run anew: durable_core.control.retry(store, {record.run_id!r}, {record.step_id!r})"


def value_of(record: StepRecord, codec: Codec[Any]) -> Any:
    """Decode a recorded value. Raises `StepDrift` if today's type can't."""
    try:
        return codec.decode(record.result or b"null")
    except msgspec.DecodeError as error:
        raise StepDrift(
            f"the recorded value of step {record.step_id!r} of run {record.run_id!r} is no {codec.type!r} any more ({error});"
            " nothing was run. Let the type read the old value too, or give the step another id"
        ) from error


async def _intend(run: Run, call: Call, revision: int, attempt: int) -> StepRecord:
    """Record that an attempt begins; return that entry if it may, and an outcome if another was there first."""
    while True:
        now = run.clock.now()
        intent = StepRecord(
            run_id=run.id,
            step_id=call.step_id,
            revision=revision,
            status="started",
            name=call.name,
            attempt=attempt,
            started_at=now,
            ended_at=now,
            fingerprint=call.fingerprint,
        )
        holder = await run.log.claim(intent)
        if holder.id == intent.id or holder.status in OUTCOMES:
            return holder
        run.check_kind(holder, "step")
        if holder.status != "reopened":
            raise StepInterrupted(holder)
        revision = holder.revision + 1


async def _recover(run: Run, call: Call, started: StepRecord) -> StepRecord | None:
    """Ask what came of an attempt that left no outcome; return one to record it, None to let the step start again."""
    if call.policy.recover is None or not run.lock.held:
        raise StepInterrupted(started, unlocked=call.policy.recover is not None)
    await run.begin()
    began = run.clock.now()
    found, error, cancelled = await invoke(run.context(call.step_id, started.attempt), call.policy.recover, (), None)
    if error is not None:
        raise error
    if cancelled is not None:
        raise cancelled
    if found is None:
        return None
    if not isinstance(found, Recovered):
        raise TypeError(f"recover of step {call.step_id!r} must return Recovered(value), or None to start again, not {found!r}")
    result, value = (None, None) if call.codec is None else call.codec.record(found.value)
    record = StepRecord(
        run_id=run.id,
        step_id=call.step_id,
        revision=started.revision + 1,
        status="success",
        name=call.name,
        result=result,
        note={"recovered": True},
        attempt=started.attempt,
        started_at=started.started_at,
        ended_at=max(began, started.started_at),
        fingerprint=call.fingerprint,
    )
    return await run.log.outcome(record, value)
