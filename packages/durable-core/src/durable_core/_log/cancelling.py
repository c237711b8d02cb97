"""Cancelling a run: the request is an entry of `$flow`, and later entries repeat it in their notes."""

from __future__ import annotations

from datetime import datetime

import msgspec

from durable_core.errors import Refused, RunCancelled
from durable_core.record import StepError, StepRecord
from durable_core.store import Store
from durable_core.stores.flows import cancelled, state_of

from .chain import CANCEL, FLOW, Append, advance, decided, new_entry, successor
from .lock import driven_elsewhere
from .notes import lasting


def cancellation(flow: StepRecord, now: datetime, reason: str | None, by: str | None) -> StepRecord | None:
    """Return the entry of `$flow` that cancels its run; None if the run has ended or is already being cancelled."""
    if decided(flow) or cancelled(flow) is not None:
        return None
    note = {**lasting(flow), "cancelled": {"reason": reason, "by": by, "at": now.isoformat()}}
    request = successor(flow, now, status="reopened", until=None, note=note)
    if flow.status == "waiting" and flow.revision == 0:  # nothing of it ever ran, so no code has to be told
        return msgspec.structs.replace(request, status="failure", error=StepError.from_exception(RunCancelled(request)))
    return request


def in_spite_of(rival: StepRecord, outcome: StepRecord) -> StepRecord:
    """Return the outcome of a flow that lost its slot to a cancellation, which came too late if the run succeeded.

    Raises `LockLost` if another runner holds the slot, because it now drives the run.
    """
    asked = cancelled(rival)
    if asked is None:
        raise driven_elsewhere(outcome.run_id)
    late = {"late": True} if outcome.status == "success" else {}
    return msgspec.structs.replace(outcome, note={**outcome.notes, "cancelled": {**asked, **late}})


async def ask_to_cancel(
    store: Store, append: Append, run_id: str, reason: str | None, by: str | None, now: datetime
) -> StepRecord:
    """Append the request unless there is one, and return its entry. Raises `Refused` for a run that has ended."""
    flow = await store.get(run_id, FLOW)
    asked: StepRecord | None = None
    if flow is None:
        said = {name: value for name, value in (("reason", reason), ("by", by)) if value is not None}
        asked = await append(new_entry(run_id, CANCEL, now, kind="flow", note=said or None))
        # Who begins a flow looks for a request afterwards, and who makes a request looks for a flow afterwards.
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
            raise Refused(f"run {run_id!r} has already ended: it {how} at {latest.ended_at.isoformat(timespec='seconds')}")
        if (request := cancellation(latest, now, reason, by)) is not None:
            mine = request.id
        return request

    return await advance(append, flow, propose)
