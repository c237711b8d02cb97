"""Giving a run a value from outside: for an event, or for a step that is set by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._output import write, write_json

if TYPE_CHECKING:
    from durable_core import Store


async def send(store: Store, run_id: str, step_id: str, value: Any, error: str | None, *, as_json: bool) -> None:
    """Give an event its value, or report that it failed."""
    from durable_core import control

    if error is None:
        record = await control.send(store, run_id, step_id, value)
    else:
        record = await control.send_failure(store, run_id, step_id, error=error)
    if as_json:
        write_json(record)
    else:
        write(f"sent {step_id} to {run_id}" if error is None else f"told {run_id} that {step_id} went wrong")


async def resolve(store: Store, run_id: str, step_id: str, value: Any, *, reason: str, by: str, as_json: bool) -> None:
    """Set the outcome of a step by hand."""
    from durable_core import control

    record = await control.resolve(store, run_id, step_id, value, reason=reason, by=by)
    if as_json:
        write_json(record)
    else:
        write(f"{step_id} of {run_id} is set by hand, by {by}")
