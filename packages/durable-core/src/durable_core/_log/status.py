"""The status of a run, from its entries and its lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, get_args

import msgspec

from durable_core.errors import CorruptLog
from durable_core.record import StepError, StepRecord
from durable_core.store import Holder
from durable_core.stores.flows import state_of

from .chain import CANCEL, FLOW, decided, newest
from .notes import children_of, ids_in, origin_of, parent_of, waits_of

RunState = Literal[
    "open", "waiting", "running", "interrupted", "crashed", "parked", "cancelling", "succeeded", "failed", "cancelled"
]
RUN_STATES: Final = get_args(RunState)


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of one run."""

    run_id: str
    flow: str | None
    """The name of its flow, or None for a run without one."""
    status: RunState
    """`waiting`: it waits for its turn, a time, an event or a person, perhaps in a live process. `running`: a process holds its
    lock. `interrupted`: it was started, and nobody holds its lock. `crashed`: its own code raised; the next run continues.
    `parked`: somebody must act. `cancelling`: it was asked to stop. `succeeded`, `failed`, `cancelled`: it has ended.

    A run without a flow is `open`, `failed` if its newest entry is a step's failure, or `cancelled` as soon as that is asked."""
    input: Any
    """The flow's input, as JSON."""
    result: Any
    """The flow's value, as JSON; None unless the run succeeded."""
    error: StepError | None
    """The error by which it failed or crashed."""
    failed: tuple[str, ...]
    """The ids of the steps whose failures ended it, or of the step that parked it."""
    why: str | None
    """Why it is parked or was cancelled."""
    mend: str | None
    """How to continue a parked run."""
    waiting_for: tuple[str, ...]
    """The ids of its waits without an outcome."""
    until: datetime | None
    """The earliest time at which it continues by itself: a wake-up time, a deadline, or the next attempt."""
    holder: Holder | None
    """Who holds its lock, if the store can tell; None for a run that has ended."""
    started_at: datetime
    changed_at: datetime
    parent: tuple[str, str] | None
    """The parent run and the step that called this run as a child, or None."""
    children: tuple[str, ...]
    """The children that its steps called."""
    origin: tuple[str, str] | None
    """The run from which this one was forked and the step before which it was forked, or None."""
    steps: int
    """The number of steps that have an entry."""


def status_of(
    run_id: str, entries: Sequence[StepRecord], holder: Holder | None = None, *, tells_holder: bool = True
) -> RunStatus:
    """Return a run's status from its entries and from the holder of its lock, if the store `tells_holder`."""
    latest = newest(entries)
    flow = latest.get(FLOW)
    steps = [record for record in latest.values() if not record.step_id.startswith("$")]
    last = next((record for record in reversed(entries) if not record.step_id.startswith("$")), None)
    waits = open_waits(latest)
    state = _state(latest, flow, last, waits, holder, tells_holder=tells_holder)
    if state in ("succeeded", "failed", "cancelled"):
        waits, holder = [], None
    if state == "parked":  # for somebody, and for nothing that its steps wait for
        waits = []
    parked = _object(flow, "parked") if state == "parked" else {}
    ending = flow if flow is not None else last if state == "failed" else None
    failed = [parked["step"]] if isinstance(parked.get("step"), str) else []
    if state == "failed" and ending is not None:
        failed = ids_in(ending, "failed") if ending is flow else [ending.step_id]
    cancelled = _object(flow, "cancelled") or (latest[CANCEL].notes if CANCEL in latest else {})
    return RunStatus(
        run_id=run_id,
        flow=None if flow is None else flow.name,
        status=state,
        input=None if flow is None else flow.notes.get("input"),
        result=_result(flow) if flow is not None and state == "succeeded" else None,
        error=next((record.error for record in (ending, *waits) if record is not None and record.error is not None), None),
        failed=tuple(failed),
        why=_text(parked["why"] if "why" in parked else cancelled.get("reason")),
        mend=_text(parked.get("mend")),
        waiting_for=tuple(record.step_id for record in waits),
        until=_until(run_id, latest, flow, waits, state),
        holder=holder,
        started_at=min(record.started_at for record in latest.values()) if flow is None else flow.started_at,
        changed_at=max(record.ended_at for record in latest.values()),
        parent=parent_of(flow),
        children=tuple(children_of(entries)),
        origin=origin_of(flow),
        steps=len(steps),
    )


def _result(flow: StepRecord) -> Any:
    try:
        return flow.value()
    except msgspec.DecodeError as error:  # such as a number that is too large
        where = f"the result of run {flow.run_id!r}, revision {flow.revision} of '$flow'"
        raise CorruptLog(f"{where}, can't be read: {error}") from error


def open_waits(latest: Mapping[str, StepRecord]) -> list[StepRecord]:
    """Return the waits without an outcome, except those that lost to another contender and will be withdrawn."""
    races = [record for record in latest.values() if record.kind == "first" and decided(record)]
    lost = {step_id for race in races for step_id in ids_in(race, "lost")} | {FLOW}
    return [record for record in latest.values() if record.status == "waiting" and record.step_id not in lost]


def _state(
    latest: Mapping[str, StepRecord],
    flow: StepRecord | None,
    last: StepRecord | None,
    waits: Sequence[StepRecord],
    holder: Holder | None,
    *,
    tells_holder: bool,
) -> RunState:
    if flow is None:
        if CANCEL in latest:
            return "cancelled"
        return "failed" if last is not None and last.status == "failure" else "open"
    state = state_of(flow)
    if CANCEL in latest and not decided(flow):  # of an older log
        return "cancelling"
    if state != "started":
        return state
    if tells_holder and holder is None:
        return "interrupted"
    # A child's own log says what the child waits for.
    if any(record.kind != "flow" for record in waits):
        return "waiting"
    return "running" if holder is not None else "interrupted"


def _until(
    run_id: str, latest: Mapping[str, StepRecord], flow: StepRecord | None, waits: Sequence[StepRecord], state: RunState
) -> datetime | None:
    times = [record.until for record in waits if record.until is not None]
    if flow is not None and flow.until is not None and state in ("waiting", "crashed"):
        mine = [step_id for run, step_id in waits_of(flow) if run == run_id]
        # Once something came, it waits for its turn alone.
        if not any((step := latest.get(step_id)) is not None and step.status != "waiting" for step_id in mine):
            times.append(flow.until)
    return min(times, default=None)


def _object(flow: StepRecord | None, member: str) -> Mapping[str, Any]:
    value = flow.notes.get(member) if flow is not None else None
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
