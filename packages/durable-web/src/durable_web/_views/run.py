"""One run: how it stands, and its steps over time."""

from __future__ import annotations

from starlette.responses import Response

from durable_core import control
from durable_core.record import StepRecord
from durable_web._site import Site
from durable_web._visit import Visit


async def view(site: Site, visit: Visit) -> Response:
    """Show a run and its steps."""
    run_id = visit.id("run")
    run = await control.status(site.store, run_id)
    latest: dict[str, StepRecord] = {}
    for record in await site.store.list(run_id):
        if not record.step_id.startswith("$"):
            latest[record.step_id] = record
    return site.page(visit, "run.html", run=run, steps=[*latest.values()], showing=site.showing)
