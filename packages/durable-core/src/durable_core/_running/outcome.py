"""Replaying a recorded outcome: its value or its failure."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from durable_core._log.chain import FLOW, decided, successor
from durable_core._log.notes import failed_parts
from durable_core._values.codec import Codec
from durable_core.errors import StepDrift, StepFailed
from durable_core.record import Kind, StepRecord
from durable_core.stores.flows import state_of

from .call import Call
from .run import Run

_RETRY_THE_STEP: Final = (  # in an older log, whose flow names no step
    "find the step that failed in the message above, and reopen it with durable_core.control.retry or resolve"
)


def outcome_of(run: Run, record: StepRecord, call: Call, *, ran: bool = False) -> Any:
    """Return the value of a recorded outcome, or raise its failure. Raises `StepDrift` if it doesn't match the code."""
    run.check_kind(record, "step")
    if call.fingerprint != record.fingerprint:
        run.tell_drift(
            f"step {record.step_id!r} of run {run.id!r} was recorded with other arguments than it is now called with; the"
            " recorded outcome is used. To run it again, give it another id",
            record.step_id,
        )
    if record.status == "failure":
        raise StepFailed(record) if ran else failed_before(record, to_retry(record))
    return None if call.codec is None else value_of(record, call.codec)


async def newest_of(run: Run, step_id: str, kind: Kind) -> StepRecord | None:
    """Return the newest entry of a race or a map. If it failed and the failed parts were repaired, reopen it."""
    record = run.log.latest(step_id)
    if record is None:
        return None
    run.check_kind(record, kind)
    parts = [run.log.latest(part) for part in failed_parts(record)] if record.status == "failure" else []
    if any(part is not None and part.status != "failure" for part in parts):
        record = await run.log.claim(successor(record, run.clock.now(), status="reopened"))
    if decided(record):
        await run.emit("step:replay", record)
    return record


def failed_before(record: StepRecord, advice: str) -> StepFailed:
    """Return the recorded failure, with a note that says why it is raised although nothing ran, and what to do."""
    failed = StepFailed(record)
    failed.add_note(f"recorded at {record.ended_at.isoformat(timespec='seconds')}; nothing was run again; {advice}")
    return failed


def failure_of(flow: StepRecord, step: StepRecord | None) -> StepRecord:
    """Return what made a flow fail: the first step whose failure left it, if `step`, its newest entry, is still a failure."""
    return flow if step is None or step.status != "failure" or step.error is None else step


def ended_by(flow: StepRecord, step: StepRecord | None) -> StepFailed:
    """Return the failure that ended a run. `step` is the newest entry of the first step whose failure left its flow."""
    if state_of(flow) == "cancelled":
        return StepFailed(flow)
    failure = failure_of(flow, step)
    old = failure is flow and flow.error is not None and flow.error.matches(StepFailed)
    return failed_before(failure, _RETRY_THE_STEP if old else to_retry(failure))


def to_retry(record: StepRecord) -> str:
    """Return the advice on how to retry a failure."""
    step = "" if record.step_id == FLOW else f", {record.step_id!r}"
    return f"to run it again: durable_core.control.retry(store, {record.run_id!r}{step})"


def value_or_failure(record: StepRecord, codec: Codec[Any] | None) -> Any:
    """Return the value of a wait's outcome, None without a codec; raise its failure."""
    if record.status == "failure":
        raise StepFailed(record)
    return None if codec is None else value_of(record, codec)


def value_of(record: StepRecord, codec: Codec[Any]) -> Any:
    """Decode a recorded value. Raises `StepDrift` if today's type doesn't accept it."""
    try:
        return codec.decode(record.result or b"null")
    except msgspec.DecodeError as error:
        raise StepDrift(
            f"the recorded value of step {record.step_id!r} of run {record.run_id!r} can't be read as {codec.type!r} ({error});"
            " nothing was run. Let the type accept the old value too, or give the step another id",
            step_id=record.step_id,
        ) from error
