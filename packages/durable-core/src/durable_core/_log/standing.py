"""How a run stands, as the newest entry of its flow, `$flow`, says it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, get_args

import msgspec

from durable_core.errors import LockLost, RunCancelled
from durable_core.record import StepError, StepRecord

from .chain import successor

LASTING: Final = ("input", "defaults", "asked", "parent", "root", "origin", "deadline", "cancelled")
"""What each entry of `$flow` carries on in its note. Anything else in a note is of its own entry."""

FlowState = Literal["waiting", "started", "crashed", "parked", "cancelling", "succeeded", "failed", "cancelled"]
FLOW_STATES: Final = frozenset(get_args(FlowState))


def lasting(flow: StepRecord) -> dict[str, Any]:
    """Return what the next entry of `$flow` carries on in its note."""
    return {name: flow.notes[name] for name in LASTING if name in flow.notes}


def cancelled(flow: StepRecord | None) -> Mapping[str, Any] | None:
    """Return who asked for the run's cancellation, when and why; None if nobody did."""
    asked = None if flow is None else flow.notes.get("cancelled")
    return asked if isinstance(asked, dict) else None


def is_crash(flow: StepRecord) -> bool:
    """Tell whether the entry says that the flow's own code raised."""
    return flow.status == "reopened" and flow.error is not None


def state_of(flow: StepRecord) -> FlowState:
    """Tell how a run stands by the newest entry of its flow; `started` until its lock tells whether anybody runs it."""
    if flow.status == "success":
        return "succeeded"
    if flow.status == "failure":
        return "cancelled" if flow.error is not None and flow.error.matches(RunCancelled) else "failed"
    if cancelled(flow) is not None:
        return "cancelling"
    if flow.status == "started":
        return "started"
    if is_crash(flow):
        return "crashed"
    return "parked" if "parked" in flow.notes else "waiting"


def in_spite_of(rival: StepRecord, outcome: StepRecord) -> StepRecord:
    """Return the outcome of a flow that lost its slot to a cancellation, which came too late where the run succeeded.

    Raises `LockLost` where the slot is another runner's, which drives the run by now.
    """
    asked = cancelled(rival)
    if asked is None:
        raise LockLost(f"another runner drives run {outcome.run_id!r} by now; run it again, or leave it to that one")
    late = {"late": True} if outcome.status == "success" else {}
    return msgspec.structs.replace(outcome, note={**outcome.notes, "cancelled": {**asked, **late}})


def asking_to_cancel(flow: StepRecord, now: datetime, reason: str | None, by: str | None) -> StepRecord:
    """Return the entry of `$flow` that asks for the run's cancellation."""
    asked = {"reason": reason, "by": by, "at": now.isoformat()}
    note = {**lasting(flow), "cancelled": asked}
    return successor(flow, now, status="reopened", note=note, error=None, result=None, until=None)


def ended_before_it_began(flow: StepRecord, now: datetime, reason: str | None, by: str | None) -> StepRecord:
    """Return the entry that ends a cancelled run which was only asked for."""
    asked = asking_to_cancel(flow, now, reason, by)
    error = StepError.from_exception(RunCancelled(asked))
    return successor(flow, now, status="failure", note=asked.note, error=error, until=None)
