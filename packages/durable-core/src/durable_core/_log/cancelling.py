"""Asking for a run's cancellation: the request is an entry of its flow, which later ones carry on."""

from __future__ import annotations

from datetime import datetime

from durable_core.errors import Refused
from durable_core.record import StepRecord
from durable_core.store import Store

from .chain import CANCEL, FLOW, advance, decided, new_entry
from .news import telling
from .standing import cancelling, state_of


async def ask_to_cancel(store: Store, run_id: str, reason: str | None, by: str | None, now: datetime) -> StepRecord:
    """Append the request, unless there is one; return its entry. Raises `Refused` for a run that has ended."""
    append = telling(store)
    flow = await store.get(run_id, FLOW)
    asked: StepRecord | None = None
    if flow is None:
        said = {name: value for name, value in (("reason", reason), ("by", by)) if value is not None}
        asked = await append(new_entry(run_id, CANCEL, now, kind="flow", note=said or None))
        # Whoever begins a flow looks for the request after that, and whoever makes a request looks for a flow.
        flow = await store.get(run_id, FLOW)
        if flow is None:
            return asked
    mine = ""

    def propose(latest: StepRecord | None) -> StepRecord | None:
        nonlocal mine
        assert latest is not None
        if latest.id == mine or (decided(latest) and asked is not None):
            return None
        if decided(latest):
            state = state_of(latest)
            how = "was cancelled" if state == "cancelled" else state
            raise Refused(f"run {run_id!r} {how} at {latest.ended_at.isoformat(timespec='seconds')}: it has ended already")
        if (request := cancelling(latest, now, reason, by)) is not None:
            mine = request.id
        return request

    return await advance(append, flow, propose)
