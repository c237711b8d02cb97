"""Logs the runs that a worker drove."""

from __future__ import annotations

import logging
from typing import Final

from durable_core.engine import state_of
from durable_core.record import StepRecord

_logger: Final = logging.getLogger("durable_worker")


def log(flow: StepRecord, error: BaseException | None) -> None:
    """Log a run if it crashed, failed or is parked. `flow` is its newest entry, `error` the exception that a caller would get."""
    state, extra = state_of(flow), {"run_id": flow.run_id}
    if state == "crashed":
        text = f"run {flow.run_id!r} of flow {flow.name!r} crashed"
        if flow.until is not None:
            text += f", and is tried again in {(flow.until - flow.ended_at).total_seconds():.0f} s"
        _logger.warning("%s", text, exc_info=error, extra=extra)
    elif state == "parked":
        parked = flow.notes["parked"]
        text = f"run {flow.run_id!r} of flow {flow.name!r} is parked: {parked.get('why')}. What helps: {parked.get('mend')}"
        _logger.error("%s", text, extra=extra)
    elif state == "failed":
        _logger.warning("%s", error, extra=extra)
