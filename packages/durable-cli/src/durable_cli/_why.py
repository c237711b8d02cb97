"""Why a run does not go on, in words."""

from __future__ import annotations

from durable_core import Store, control

from ._output import write, write_json


async def why(store: Store, run_id: str, *, as_json: bool) -> None:
    """Say why a run does not go on, since when, and what would help."""
    run = await control.status(store, run_id)
    if as_json:
        write_json(run)
    else:
        write(f"{run.run_id} is {run.status}")
