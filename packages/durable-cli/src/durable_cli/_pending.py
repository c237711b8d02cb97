"""The approvals that wait for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from durable_core import StepRecord, Store, StoreError, control

from ._asked import Asked
from ._output import console, draw, write, write_json
from ._steps import votes_of, whose
from ._text import brief, cut, harmless, soon
from ._words import age


async def list_pending(store: Store, asked: Asked, prefix: str) -> None:
    """Show the approvals that nobody has decided, the oldest first."""
    found: list[StepRecord] = []
    damage: StoreError | None = None
    try:
        async for record in control.pending(store, prefix):
            found.append(record)  # noqa: PERF401  # what came before an error stays
    except StoreError as error:  # of one log: the others were read
        damage = error
    found.sort(key=lambda record: (record.started_at, record.run_id, record.step_id))
    if damage is None or found:
        _show(found, asked)
    if damage is not None:
        raise damage


def _show(found: Sequence[StepRecord], asked: Asked) -> None:
    if asked.as_json:
        for record in found:
            write_json(_as_json(record))
        return
    if not found:
        write("Nothing waits for a person.")
        return
    from ._table import table

    now, screen = datetime.now(UTC), console()
    rows = [_row(record, now) for record in found]
    draw(table(("RUN", "STEP", "WAITS", "UNTIL", "BY", "SHOWS"), rows, screen.width, ids=2), screen)
    oldest = found[0]
    write("\nDecide the first one:")
    for verb in ("approve", "reject"):
        write(f"  {asked.command(verb, oldest.run_id, oldest.step_id, options=whose(oldest))}")


def _row(record: StepRecord, now: datetime) -> Sequence[str]:
    until = "" if record.until is None else soon(record.until, now)
    show = brief(msgspec.json.encode(record.notes.get("show"))) if record.notes.get("show") is not None else ""
    return harmless(record.run_id), harmless(record.step_id), age(record.started_at, now), until, who(record), show


def who(record: StepRecord) -> str:
    """Return who may decide an approval, and how many people must."""
    approvers, quorum = record.notes.get("approvers"), record.notes.get("quorum", 1)
    names = cut(", ".join(map(str, approvers)), 30) if isinstance(approvers, list) else "anybody"
    return names if quorum == 1 else f"{names}, {len(votes_of(record))} of {quorum}"


def _as_json(record: StepRecord) -> dict[str, Any]:
    notes = record.notes
    return {
        "run_id": record.run_id,
        "step_id": record.step_id,
        "name": record.name,
        "show": notes.get("show"),
        "approvers": notes.get("approvers"),
        "quorum": notes.get("quorum", 1),
        "votes": votes_of(record),
        "on_timeout": notes.get("on_timeout", "fail"),
        "started_at": record.started_at,
        "until": record.until,
    }
