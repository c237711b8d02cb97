"""One step: its chain of entries, with who, why and when."""

from __future__ import annotations

from starlette.responses import Response

from durable_core.engine import entries_of
from durable_core.errors import NotFound
from durable_web._asked import asked_by
from durable_web._site import Site
from durable_web._visit import Visit


async def view(site: Site, visit: Visit) -> Response:
    """Show the entries of a step."""
    run_id, step_id = visit.id("run"), visit.id("step")
    entries = entries_of(await site.store.list(run_id), step_id)
    if not entries:
        raise NotFound(f"there is no step {step_id!r} in run {run_id!r}")
    newest = entries[-1]
    asked = asked_by(newest) if newest.kind == "approval" else None
    return site.page(visit, "step.html", entries=entries, newest=newest, asked=asked, showing=site.showing)
