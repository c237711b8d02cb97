"""Waiting for time, for people, for events: one chain of entries, whoever appends the next one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import msgspec

from durable_core._log.runlog import CANCEL
from durable_core._running.run import Run, decided
from durable_core._system.ids import check_own_id
from durable_core.errors import DeadlinePassed, RunCancelled, RunSuspended, StepDrift
from durable_core.options import duration, exponential
from durable_core.record import Kind, StepError, StepRecord

_pause: Final = exponential(0.05, limit=2)
_sleep_pause: Final = exponential(2, limit=30)  # a sleep asks nobody but the clock, which may jump


class Wait(msgspec.Struct, frozen=True):
    """What is waited for, as it is recorded first."""

    step_id: str
    name: str
    kind: Kind
    until: datetime | None
    note: Any = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "step_id", check_own_id("step_id", self.step_id))
        if not isinstance(self.name, str):
            raise TypeError(f"name of {self.kind} {self.step_id!r} must be a str, not {self.name!r}")


def moment(run: Run, what: str, when: float | timedelta | datetime) -> datetime:
    """Return the time of day that seconds from now, a timedelta or an aware datetime mean."""
    if not isinstance(when, datetime):
        try:
            return run.clock.now() + timedelta(seconds=duration(what, when))
        except OverflowError as error:
            raise ValueError(f"{what} {when!r} ends after the year 9999; give a shorter one") from error
    if when.tzinfo is None:
        raise ValueError(f"{what} {when!r} has no zone; give an aware datetime, a timedelta or seconds")
    return when.astimezone(UTC)


async def wait(run: Run, asked: Wait) -> StepRecord:
    """Wait until there is an outcome, and return its record.

    Raises `RunSuspended` after `wait_limit` seconds, once no step of this runner is running any more; `RunCancelled` when
    the run is; `StepDrift` if something else was asked for under this id before.
    """
    await run.ready()
    record = run.log.latest(asked.step_id)
    if record is not None:
        _check(run, record, asked)
        if decided(record):
            await run.emit_record("step:replay", record)
            return record
    await run.begin()
    if record is None or record.status == "reopened":
        record = await _ask(run, asked, 0 if record is None else record.revision + 1)
        _check(run, record, asked)
    else:
        record = await run.look(asked.step_id) or record
    await run.emit_record("step:wait", record)
    run.waiting.append(record)
    try:
        return await _decision(run, asked, record)
    finally:
        run.waiting.remove(record)


async def _ask(run: Run, asked: Wait, revision: int) -> StepRecord:
    now = run.clock.now()
    record = StepRecord(
        run_id=run.id,
        step_id=asked.step_id,
        revision=revision,
        status="waiting",
        kind=asked.kind,
        name=asked.name,
        note=asked.note,
        until=asked.until,
        started_at=now,
        ended_at=now,
        fingerprint=asked.fingerprint,
    )
    while asked.step_id in run.running:  # the same wait elsewhere, which asks for both
        await run.ended(asked.step_id)
    run.running[asked.step_id] = asyncio.current_task()  # a sibling that suspends lets this be recorded first
    try:
        return await run.log.claim(record)
    finally:
        run.stopped(asked.step_id)


def _check(run: Run, record: StepRecord, asked: Wait) -> None:
    run.check_kind(record, asked.kind)
    if asked.kind == "approval" and record.fingerprint != asked.fingerprint:
        raise StepDrift(
            f"approval {record.step_id!r} of run {run.id!r} was asked for with something else to show; a decision holds for"
            " what was shown. Ask under another id"
        )


async def _decision(run: Run, asked: Wait, record: StepRecord) -> StepRecord:
    clock, began = run.clock, run.clock.monotonic()
    for attempt in count(1):
        if decided(record):
            await run.emit_record("step:success" if record.status == "success" else "step:failure", record)
            return record
        remaining = float("inf") if record.until is None else (record.until - clock.now()).total_seconds()
        if remaining <= 0:
            record = await run.log.claim(expired(record, clock.now()))
            continue
        left = float("inf") if run.wait_limit is None else began + run.wait_limit - clock.monotonic()
        if left > 0:
            pause = _sleep_pause if record.kind == "sleep" else _pause
            await clock.sleep(min(pause(attempt), remaining, left))
        elif await run.idle():
            raise _suspension(run)
        run.lock.lease.check()  # once the runner was left, nobody waits for this any more
        if (cancelled := await run.look(CANCEL)) is not None:
            raise RunCancelled(cancelled)
        record = await run.look(record.step_id) or record
        if record.status == "reopened":  # its deadline passed elsewhere, and somebody asks for another try
            record = await _ask(run, asked, record.revision + 1)
    raise AssertionError("counting ended")


def _suspension(run: Run) -> RunSuspended:
    """Name all that is waited for; a sibling may have been suspended a moment before."""
    earlier = run.suspended
    names = dict.fromkeys((*(earlier.waiting_for if earlier else ()), *(record.step_id for record in run.waiting)))
    times = [record.until for record in run.waiting if record.until is not None]
    if earlier is not None and earlier.until is not None:
        times.append(earlier.until)
    run.suspended = RunSuspended(run.id, waiting_for=tuple(names), until=min(times, default=None))
    return run.suspended


def expired(record: StepRecord, now: datetime) -> StepRecord:
    """Return the entry that ends a wait whose time has come: a sleep is over, anything else failed."""
    error: StepError | None = None
    if record.kind != "sleep":
        assert record.until is not None
        passed = DeadlinePassed(f"nobody decided {record.step_id!r} before {record.until.isoformat(timespec='seconds')}")
        error = StepError.from_exception(passed)
    return StepRecord(
        run_id=record.run_id,
        step_id=record.step_id,
        revision=record.revision + 1,
        status="failure" if error else "success",
        kind=record.kind,
        name=record.name,
        error=error,
        note=record.note,
        until=record.until,
        started_at=record.started_at,
        ended_at=max(now, record.started_at),
        fingerprint=record.fingerprint,
    )
