"""A step whose own writes and whose record commit together, so that it happens exactly once."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from durable_core._calls.arguments import Call
from durable_core.errors import StepFailed, StepInterrupted, StoreError, UnrecordableValue
from durable_core.options import exponential
from durable_core.record import StepRecord
from durable_core.store import SupportsTransaction

from .attempt import invoke, is_nested
from .call import turn
from .run import Run, decided
from .step import ended, outcome_of

_pause: Final = exponential(0.02, limit=1, jitter=True)


class _Failed(Exception):
    """Carries what `fn` raised out of the transaction, so that nothing of it is committed."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Lost(Exception):
    """Another outcome holds the slot: what this transaction did is rolled back."""

    def __init__(self, holder: StepRecord) -> None:
        self.holder = holder


async def transact(run: Run, store: SupportsTransaction, call: Call) -> Any:
    """Return the step's recorded value, or raise its failure; run it if it has no outcome yet."""
    latest = await turn(run, call)
    if decided(latest):
        await run.emit_record("step:replay", latest)
        return outcome_of(run, latest, call)
    run.running[call.step_id] = asyncio.current_task()
    try:
        return await _execute(run, store, call, latest)
    finally:
        run.stopped(call.step_id)


async def _execute(run: Run, store: SupportsTransaction, call: Call, latest: StepRecord | None) -> Any:
    """Run `fn(connection, *args)` in a transaction that also holds the record, until one of them is committed."""
    if latest is not None:
        run.check_kind(latest, "step")
        if latest.status == "started":
            raise StepInterrupted(latest)
    revision = 0 if latest is None else latest.revision + 1
    deadline = 0.0
    attempt = tries = 1
    while True:
        if tries == 1:
            await run.emit("step:start", call.step_id, call.name, attempt)
        await run.begin()
        started_at, began = run.clock.now(), run.clock.monotonic()
        try:
            record, value = await _once(run, store, call, revision, attempt)
        except _Lost as lost:
            holder = run.log.add(lost.holder)
            if decided(holder):
                return outcome_of(run, holder, call)
            revision = holder.revision + 1
            continue
        except _Failed as failed:
            error = failed.error
        except Exception as failure:
            # Neither committed nor refused for good, or committed with its answer lost: look, then do all of it again.
            if not store.is_retryable(failure):
                raise
            if tries == 1:
                deadline = run.clock.monotonic() + run.log.timeout
            await run.clock.sleep(_pause(tries))
            tries += 1
            if decided(found := await run.look(call.step_id)):
                return outcome_of(run, found, call)
            if run.clock.monotonic() >= deadline:
                raise
            continue
        else:
            run.log.add(record)
            await run.emit_record("step:success", record)
            return value
        if store.is_retryable(error):
            if tries == 1:  # the time that the function itself takes does not count
                deadline = run.clock.monotonic() + run.log.timeout
            elif run.clock.monotonic() >= deadline:
                raise StoreError(
                    f"transaction {call.step_id!r} of run {run.id!r} was rolled back {tries} times, for {run.log.timeout:g}"
                    f" seconds, and nothing was recorded; run it again: {error}"
                ) from error
            await run.clock.sleep(_pause(tries))
            tries += 1
            continue
        if not call.policy.retries(error, attempt):
            break
        delay = call.policy.delay(attempt, error)
        await run.emit("step:retry", call.step_id, call.name, attempt, error=error, delay=delay)
        await run.clock.sleep(delay)
        attempt, tries = attempt + 1, 1
    # What it wrote is rolled back, so its failure alone is recorded, as any step's is.
    failed_record = ended(run, call, revision, attempt, started_at, began, None, error)
    recorded = await run.log.outcome(failed_record, None)
    await run.emit_record("step:failure" if recorded.status == "failure" else "step:success", recorded, error)
    if recorded.id != failed_record.id:
        return outcome_of(run, recorded, call)
    raise StepFailed(recorded) from error


async def _once(run: Run, store: SupportsTransaction, call: Call, revision: int, attempt: int) -> tuple[StepRecord, Any]:
    """Run one transaction; return its record and value once both are committed."""
    async with store.transaction() as transaction:
        started_at, began = run.clock.now(), run.clock.monotonic()
        context = run.context(call.step_id, attempt)
        value, error, cancelled = await invoke(context, call.fn, (transaction.connection, *call.args), call.policy.timeout)
        if cancelled is not None:
            raise cancelled
        if error is not None and is_nested(error):
            raise error
        result: bytes | None = None
        if error is None and call.codec is not None:
            try:
                result, value = call.codec.record(value)
            except UnrecordableValue as refusal:
                error = refusal
        if error is not None:
            raise _Failed(error)
        record = ended(run, call, revision, attempt, started_at, began, result, None)
        holder = await transaction.append(record)
        if holder.id != record.id:
            raise _Lost(holder)
    return record, value if call.codec is not None else None
