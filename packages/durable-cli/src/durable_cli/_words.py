"""The states of runs and steps, in words and colours."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from durable_core import StepError
from durable_core.control import RunStatus

from ._text import brief, cut, harmless, soon

if TYPE_CHECKING:
    from rich.text import Text

_SHORT: Final = 200
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))
STYLES: Final = {
    "succeeded": "green",
    "approved": "green",
    "failed": "red",
    "rejected": "red",
    "crashed": "red",
    "interrupted": "red",
    "parked": "yellow",
    "cancelling": "yellow",
    "waiting": "cyan",
    "waits": "cyan",
    "retries": "yellow",
    "running": "blue",
    "cancelled": "dim",
    "withdrawn": "dim",
}
"""The colours of states; others have none."""


def styled(state: str) -> Text:
    """Return a state in its colour."""
    from rich.text import Text

    return Text(state, style=STYLES.get(state, ""))


def age(at: datetime, now: datetime) -> str:
    """Return how long ago something was, in whole units."""
    seconds = max(0, int((now - at).total_seconds()))
    unit, name = next(((unit, name) for unit, name in _UNITS if seconds >= unit), (1, "s"))
    return f"{seconds // unit} {name}"


def error_text(error: StepError | None) -> str:
    """Return a recorded exception on one line."""
    if error is None:
        return ""
    first = next((line for line in error.message[:1000].splitlines() if line.strip()), "")
    name = error.type.rpartition(".")[2]
    return cut(f"{name}: {first}" if first else name, _SHORT)


def about(run: RunStatus, now: datetime) -> str:
    """Return a short text on what a run waits for, how it failed, or its value."""
    until = "" if run.until is None else f" until {soon(run.until, now)}"
    steps = ", ".join(map(harmless, run.waiting_for[:3])) + (
        f" and {len(run.waiting_for) - 3} more" if len(run.waiting_for) > 3 else ""
    )
    failed = f"at {', '.join(map(harmless, run.failed[:3]))}" if run.failed else ""
    because = cut(run.why, _SHORT) if run.why else ""
    error = error_text(run.error)
    match run.status:
        case "waiting":
            its_turn = "for its turn" if run.until is None else f"for its turn, from {soon(run.until, now)}"
            return f"for {steps}{until}" if steps else its_turn
        case "running" | "interrupted" if run.holder is None:
            return f"nobody holds it since {soon(run.changed_at, now)}"
        case "running":
            assert run.holder is not None
            return f"by {harmless(run.holder.name)}"
        case "crashed":
            return error + ("" if run.until is None else f", next try {soon(run.until, now)}")
        case "parked":
            return ": ".join(part for part in (failed, because.partition(";")[0]) if part)
        case "failed":
            return ": ".join(part for part in (failed, error) if part)
        case "open":
            return f"for {steps}{until}" if steps else ""
        case "cancelling" | "cancelled":
            return because
    return brief_value(run.result)


def brief_value(value: object) -> str:
    """Return a decoded JSON value on one line."""
    if value is None:
        return ""
    return brief(msgspec.json.encode(value), _SHORT)
