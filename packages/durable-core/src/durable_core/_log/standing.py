"""How a run stands, as the newest entry of its flow, `$flow`, says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from durable_core.errors import RunCancelled
from durable_core.record import StepRecord

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
