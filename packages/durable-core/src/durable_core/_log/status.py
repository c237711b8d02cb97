"""How a run stands, read off the newest entries of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from durable_core.record import StepError, StepRecord

RunState = Literal["ended", "failed", "waiting", "interrupted", "cancelled"]


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How one run stands."""

    run_id: str
    status: RunState
    """`ended`: its flow returned. `failed`: its flow raised, or, without a flow, a step did. `waiting`: for time, an event or a
    person. `cancelled`: from outside. `interrupted`: none of these, so that it runs right now, or its process is gone."""
    flow: str | None
    """The name of its flow, or None for a run without one."""
    input: Any
    """What the flow was called with, as JSON."""
    waiting_for: tuple[str, ...]
    """The ids of what it waits for."""
    until: datetime | None
    """The earliest wake-up time or deadline among these."""
    error: StepError | None
    steps: int
    """How many steps have an entry."""
    started_at: datetime
    changed_at: datetime


def status_of(run_id: str, latest: Mapping[str, StepRecord]) -> RunStatus:
    """Read a run's status off the newest entry of each of its steps."""
    flow = latest.get("$flow")
    steps = [record for record in latest.values() if not record.step_id.startswith("$")]
    waiting = [record for record in steps if record.status == "waiting"]
    failed = next((record for record in reversed(steps) if record.status == "failure"), None) if flow is None else None
    ending = flow if flow is not None and flow.status in ("success", "failure") else failed
    status: RunState = "interrupted"
    if ending is not None:
        status = "ended" if ending.status == "success" else "failed"
    elif "$cancel" in latest:
        status = "cancelled"
    elif waiting:
        status = "waiting"
    return RunStatus(
        run_id=run_id,
        status=status,
        flow=None if flow is None else flow.name,
        input=None if flow is None else flow.notes.get("input"),
        waiting_for=tuple(record.step_id for record in waiting),
        until=min((record.until for record in waiting if record.until is not None), default=None),
        error=None if ending is None else ending.error,
        steps=len(steps),
        started_at=min(record.started_at for record in latest.values()),
        changed_at=max(record.ended_at for record in latest.values()),
    )
