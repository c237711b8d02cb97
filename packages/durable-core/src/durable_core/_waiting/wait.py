"""Waiting for times, people and events: one chain of entries, to which any actor may append."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from durable_core._log.chain import decided
from durable_core._running.looking import Listener, listening
from durable_core._running.pausing import pause
from durable_core._running.race import Wait, note_wait
from durable_core._running.run import Run
from durable_core.clock import Clock
from durable_core.errors import StepDrift
from durable_core.options import duration
from durable_core.record import StepRecord

from .approval import overdue


def moment(clock: Clock, what: str, when: float | timedelta | datetime) -> datetime:
    """Convert seconds from now, a timedelta or an aware datetime to a time of day."""
    if not isinstance(when, datetime):
        try:
            return clock.now() + timedelta(seconds=duration(what, when))
        except OverflowError as error:
            raise ValueError(f"{what} {when!r} ends after the year 9999; give a shorter one") from error
    if when.tzinfo is None:
        raise ValueError(f"{what} {when!r} has no time zone; give an aware datetime, a timedelta or seconds")
    return when.astimezone(UTC)


async def wait(run: Run, asked: Wait) -> StepRecord:
    """Wait until there is an outcome, and return its record.

    Raises `RunSuspended` after `wait_limit` seconds, once no step of this runner is running any more; `RunCancelled` when
    the run is; `StepDrift` if something else was asked for under this id before.
    """
    await run.ready()
    replays = decided(run.log.latest(asked.step_id))
    with listening(run, asked.step_id) as listener:
        record = await ask(run, asked, partial(_check, run, asked))
        if replays:
            return record
        decision = await _decision(run, asked, record, listener)
    await run.arriving(run.emit_outcome(decision))
    return decision


async def ask(run: Run, asked: Wait, check: Callable[[StepRecord], None]) -> StepRecord:
    """Return the newest entry of a wait, after recording it if no run has. `check` raises if the entry is for something else."""
    record = run.log.latest(asked.step_id)
    if record is not None:
        check(record)
        if decided(record):
            run.tell_again(asked.step_id)
            await run.emit("step:replay", record)
            return record
        note_wait(run, asked)  # it may have lost already
    is_child = asked.end is not None and record is not None and record.status == "waiting"
    await run.arriving(run.begin(undoes=is_child))  # a child that was started is cancelled first, and then the flow learns of it
    note_wait(run, asked)
    if record is None and run.log.answers:
        await run.arriving(run.refuse_unanswered(asked.step_id))
    if record is None or record.status == "reopened":
        record = await _append(run, asked, record)
        check(record)
    else:
        record = await run.arriving(run.log.look(asked.step_id)) or record
    await run.arriving(run.emit("step:wait", record))
    return record


async def _append(run: Run, asked: Wait, reopened: StepRecord | None) -> StepRecord:
    """Record the wait, and return the entry that holds its slot."""
    record = run.entry(
        asked.step_id,
        reopened,
        status="waiting",
        kind=asked.kind,
        name=asked.name,
        note=asked.note,
        until=asked.until,
        fingerprint=asked.fingerprint,
    )
    while asked.step_id in run.running:  # the same wait is running elsewhere, and records for both
        await run.an_end()
    run.running[asked.step_id] = asyncio.current_task()  # a sibling that suspends lets this be recorded first
    try:
        return await run.log.claim(record)
    finally:
        run.end_step(asked.step_id)


def _check(run: Run, asked: Wait, record: StepRecord) -> None:
    run.check_kind(record, asked.kind)
    if asked.kind == "approval" and record.fingerprint != asked.fingerprint:
        raise StepDrift(
            f"approval {record.step_id!r} of run {run.id!r} now shows something else than the recorded one; a decision is valid"
            " only for what was shown. Ask under another id",
            step_id=record.step_id,
        )


async def _decision(run: Run, asked: Wait, record: StepRecord, listener: Listener) -> StepRecord:
    """Wait until the newest entry is an outcome, its time has come, or this process has waited long enough."""
    limit = run.end_of_waiting()
    while not decided(record):
        now = run.clock.now()
        if record.status == "reopened":  # its deadline passed elsewhere, and somebody reopened it
            record = await _append(run, asked, record)
        elif record.until is not None and record.until <= now:
            record = await run.arriving(run.log.claim(overdue(record, now)))
        else:
            await pause(run, listener, record.until, limit)
            record = run.log.latest(record.step_id) or record
    return record
