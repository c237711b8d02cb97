"""Workers and schedules: what is recorded of schedules, runs that are parked, and runs at work."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from durable_core import control
from durable_core.store import Store, runs_of
from durable_web._site import Site
from durable_web._visit import Visit

from ._reading import read

_MOST: Final = 50
_SCHEDULES: Final = "$cron/"


async def view(site: Site, visit: Visit) -> Response:
    """Show schedules with their next ticks, runs that are parked, and runs at work with who holds them."""
    parked, damage = await read(control.runs(site.store, status="parked", limit=_MOST))
    at_work, more = await read(control.runs(site.store, status=["running", "cancelling"], limit=_MOST))
    schedules = await _schedules(site.store)
    held = [run for run in at_work if run.holder]
    return site.page(
        visit, "work.html", damage=damage or more, schedules=schedules, parked=parked, at_work=held, showing=site.showing
    )


async def _schedules(store: Store) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the name of each schedule and what is recorded of it: `expression`, `timezone`, `first_seen`, `next`."""
    listing = runs_of(store)
    names = [] if listing is None else sorted([run_id async for run_id in listing.runs(_SCHEDULES)])
    records = [record for run_id in names if (record := await store.get(run_id, "$cron")) is not None]
    return [(record.run_id.removeprefix(_SCHEDULES), record.value(list[dict[str, Any]])) for record in records]
