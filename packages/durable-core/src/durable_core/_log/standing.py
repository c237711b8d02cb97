"""What the entries of `$flow` hand on, from one to the next."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import msgspec

from durable_core.errors import LockLost, RunCancelled
from durable_core.record import StepError, StepRecord
from durable_core.stores.flows import FLOW_STATES as FLOW_STATES
from durable_core.stores.flows import FlowState as FlowState
from durable_core.stores.flows import cancelled as cancelled
from durable_core.stores.flows import is_crash as is_crash
from durable_core.stores.flows import state_of as state_of

from .chain import decided, successor

LASTING: Final = ("input", "defaults", "asked", "parent", "root", "origin", "deadline", "cancelled")
"""What each entry of `$flow` carries on in its note. Anything else in a note is of its own entry."""


def lasting(flow: StepRecord) -> dict[str, Any]:
    """Return what the next entry of `$flow` carries on in its note."""
    return {name: flow.notes[name] for name in LASTING if name in flow.notes}


def cancelling(latest: StepRecord, now: datetime, reason: str | None, by: str | None) -> StepRecord | None:
    """Return the entry that cancels a run; None where it has ended, or is being cancelled already."""
    if decided(latest) or cancelled(latest) is not None:
        return None
    if latest.status == "waiting" and latest.revision == 0:  # nothing ever ran of it, so nobody has to be told
        return ended_before_it_began(latest, now, reason, by)
    return asking_to_cancel(latest, now, reason, by)


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
