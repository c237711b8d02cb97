"""The central rule: a step's history is a chain of entries, and every actor appends the next entry or loses to another actor.

The entries of a chain are numbered by revisions, and a store accepts each number once. To act on a step, an actor takes the
newest entry, makes the next one, and appends it. The entry that comes back holds the slot: the actor's own, or a rival's.
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
"""The step whose first entry asks the run to stop."""

Append = Callable[[StepRecord], Awaitable[StepRecord]]


def decided(record: StepRecord | None) -> TypeGuard[StepRecord]:
    """Return True if the entry is an outcome."""
    return record is not None and (record.status == "success" or record.status == "failure")


def new_entry(run_id: str, step_id: str, now: datetime, latest: StepRecord | None = None, /, **fields: Any) -> StepRecord:
    """Return the entry after `latest`, or the step's first one. It copies no fields, and begins and ends now."""
    revision = 0 if latest is None else latest.revision + 1
    return StepRecord(run_id=run_id, step_id=step_id, revision=revision, **{"started_at": now, "ended_at": now, **fields})


def successor(latest: StepRecord, now: datetime, **fields: Any) -> StepRecord:
    """Return the entry after `latest`: a copy with other `fields`. It begins when the chain began and ends now."""
    own = {
        "id": new_id(),
        "revision": latest.revision + 1,
        "result": None,
        "error": None,
        "until": latest.until if latest.status == "waiting" else None,
        "started_at": min(latest.started_at, now),  # the clock may have been set back
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
    """Append what `propose` returns for the newest entry, until it returns None; then return the newest entry.

    After each append, `propose` is called with the entry that holds the slot: its own, or a rival's that came first.
    """
    while (record := propose(latest)) is not None:
        latest = await append(record)
    assert latest is not None, "of a step without entries there is always one to add"
    return latest
