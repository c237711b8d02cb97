"""What waits for people, oldest first."""

from __future__ import annotations

from starlette.responses import Response

from durable_core import control
from durable_web._asked import asked_by
from durable_web._site import Site
from durable_web._visit import Visit

from ._reading import read


async def view(site: Site, visit: Visit) -> Response:
    """Show the approvals that wait; with `mine=1` those that the visitor may decide and has not."""
    records, damage = await read(control.pending(site.store, visit.asked("prefix")))
    asked = [asked_by(record) for record in records]
    if visit.asked("mine"):
        asked = [each for each in asked if each.may_decide(visit.user.name) and not each.has_voted(visit.user.name)]
    asked.sort(key=lambda each: each.since)
    return site.page(visit, "inbox.html", asked=asked, damage=damage, showing=site.showing)
