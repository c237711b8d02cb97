"""The one rule. A step's history is a chain of entries, and every actor appends the next one or loses it to another.

A chain is numbered by revisions, and a store gives each number away once. So whoever wants to act on a step takes the newest
entry, makes the one that follows, and appends it. The entry that comes back holds the slot: the actor's own, or a rival's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any, Final, TypeGuard

import msgspec

from durable_core._system.ids import new_id
from durable_core.record import StepRecord
from durable_core.stores.flows import FLOW as FLOW

CANCEL: Final = "$cancel"
"""The step whose first entry says that the run is to stop."""

Append = Callable[[StepRecord], Awaitable[StepRecord]]


def decided(record: StepRecord | None) -> TypeGuard[StepRecord]:
    """Tell whether an entry is an outcome."""
    return record is not None and (record.status == "success" or record.status == "failure")


def new_entry(run_id: str, step_id: str, now: datetime, latest: StepRecord | None = None, /, **fields: Any) -> StepRecord:
    """Return an entry that follows `latest`, or is the step's first one, and takes nothing over. It begins and ends now."""
    revision = 0 if latest is None else latest.revision + 1
    return StepRecord(run_id=run_id, step_id=step_id, revision=revision, **{"started_at": now, "ended_at": now, **fields})


def successor(latest: StepRecord, now: datetime, **fields: Any) -> StepRecord:
    """Return the entry that follows `latest`, alike but for `fields`. It begins with the chain and ends now."""
    own = {
        "id": new_id(),
        "revision": latest.revision + 1,
        "result": None,
        "error": None,
        "until": latest.until if latest.status == "waiting" else None,
        "started_at": min(latest.started_at, now),  # a clock may have been set back
        "ended_at": now,
    }
    return msgspec.structs.replace(latest, **{**own, **fields})


def newest(entries: Iterable[StepRecord]) -> dict[str, StepRecord]:
    """Return the newest entry of each step, in the order in which the steps began."""
    found: dict[str, StepRecord] = {}
    for record in entries:
        if record.step_id not in found or found[record.step_id].revision < record.revision:
            found[record.step_id] = record
    return found


async def advance(
    append: Append, latest: StepRecord | None, propose: Callable[[StepRecord | None], StepRecord | None]
) -> StepRecord:
    """Append what `propose` makes of the newest entry, until it has nothing to add; return the newest entry then.

    `propose` is asked anew after each append, with the entry that holds the slot: its own, or that of a rival who was first.
    """
    while (record := propose(latest)) is not None:
        latest = await append(record)
    assert latest is not None, "of a step without entries there is always one to add"
    return latest
