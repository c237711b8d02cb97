"""One run: its state, and its steps over time. The page is live until the run has ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from durable_core import control
from durable_core.engine import FLOW, ids_in
from durable_core.errors import NotFound
from durable_core.record import StepRecord
from durable_core.store import Store
from durable_web._site import Site
from durable_web._visit import Visit

from ._filters import number_of
from ._live import rounds, stream
from ._steps import steps_of
from .runs import ENDED

_STATUSES: Final = ("success", "failure", "started", "waiting", "reopened")


async def view(site: Site, visit: Visit) -> Response:
    """Show a run and a page of its steps: `page`, by default the last, and `only` steps with these statuses."""
    run_id = visit.id("run")
    return site.page(visit, "run.html", **await _found(site, visit, await _log(site.store, run_id)))


async def live(site: Site, visit: Visit) -> Response:
    """Show a run as it changes, until it has ended."""
    run_id = visit.id("run")
    number_of(visit, "page", 1)  # raises before the stream begins

    async def looks() -> AsyncGenerator[dict[str, Any], None]:
        async for _ in rounds(site.store):
            found = await _found(site, visit, await _log(site.store, run_id))
            yield found
            if found["is_over"]:
                return

    return stream(site, visit, "live/run.html", looks)


async def _log(store: Store, run_id: str) -> Sequence[StepRecord]:
    if entries := await store.list(run_id):
        return entries
    raise NotFound(f"there is no run {run_id!r} in this store")


async def _found(site: Site, visit: Visit, entries: Sequence[StepRecord]) -> dict[str, Any]:
    run = await control.status(site.store, visit.id("run"), entries=entries)
    only = [status for status in visit.request.query_params.getlist("only") if status in _STATUSES]
    page = number_of(visit, "page", 1_000_000)
    steps = steps_of(entries, statuses=only, page=page, is_at_work=run.holder is not None)
    now = datetime.now(UTC)
    flow = next((entry for entry in reversed(entries) if entry.step_id == FLOW), None)
    return {
        "run": run,
        "answers": ids_in(flow, "answered_by") if flow and run.status == "failed" else [],
        "steps": steps,
        "axis": steps.axis(now) if steps.page else None,
        "only": only,
        "page": page,
        "now": now,
        "is_over": run.status in ENDED,
    }
