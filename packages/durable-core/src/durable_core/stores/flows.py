"""The state of a run by the newest entry of its flow, `$flow`. Stores keep an index of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

from durable_core.errors import RunCancelled
from durable_core.record import StepRecord

FLOW: Final = "$flow"
"""The step that represents the whole run: its input and its end."""

FlowState = Literal["waiting", "started", "crashed", "parked", "cancelling", "succeeded", "failed", "cancelled"]
FLOW_STATES: Final = frozenset(get_args(FlowState))


def state_of(flow: StepRecord) -> FlowState:
    """Return the state of a run by the newest entry of `$flow`. `started` includes runs whose process may have died."""
    if flow.status == "success":
        return "succeeded"
    if flow.status == "failure":
        # A step may have failed because its child was cancelled.
        is_cancelled = flow.error is not None and flow.error.matches(RunCancelled) and "failed" not in flow.notes
        return "cancelled" if is_cancelled else "failed"
    if is_parked(flow):  # also while it is being cancelled: somebody has to act before it can end
        return "parked"
    if cancelled(flow) is not None:
        return "cancelling"
    if flow.status == "started":
        return "started"
    return "crashed" if is_crash(flow) else "waiting"


def has_ended(flow: StepRecord) -> bool:
    """Return True if the run has ended, by this entry."""
    return flow.status in ("success", "failure")


def sortable(moment: datetime) -> str:
    """Return a time as 18 digits, which sort like times."""
    return f"{(moment - datetime.min.replace(tzinfo=UTC)) // timedelta(microseconds=1):018d}"


def cancelled(flow: StepRecord | None) -> Mapping[str, Any] | None:
    """Return who asked for the run's cancellation, when and why; None if nobody did."""
    asked = None if flow is None else flow.notes.get("cancelled")
    return asked if isinstance(asked, dict) else None


def is_crash(flow: StepRecord) -> bool:
    """Return True if the flow's own code raised, by this entry."""
    return flow.status == "reopened" and flow.error is not None


def is_parked(flow: StepRecord) -> bool:
    """Return True if the run continues only after somebody acts."""
    return flow.status == "waiting" and "parked" in flow.notes


def is_among(
    flow: StepRecord,
    prefix: str = "",
    *,
    names: Collection[str] | None = None,
    states: Collection[FlowState] | None = None,
    since: datetime | None = None,
    before: tuple[datetime, str] | None = None,
) -> bool:
    """Return True if `SupportsFlows.flows` with these arguments should return the entry."""
    return (
        flow.run_id.startswith(prefix)
        and (names is None or flow.name in names)
        and (since is None or flow.started_at >= since)
        and (before is None or (flow.started_at, flow.run_id) < before)
        and (states is None or state_of(flow) in states)
    )
