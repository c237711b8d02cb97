"""Workers and schedules: what is recorded of schedules, runs that are parked, and runs at work."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from durable_core import control
from durable_core.errors import CorruptLog
from durable_core.store import Store, runs_of
from durable_web._site import Site
from durable_web._visit import Visit

from ._reading import read

_MOST: Final = 50
_SCHEDULES: Final = "$cron/"


class Schedule(NamedTuple):
    """What is recorded of a schedule."""

    name: str
    expression: str
    timezone: str
    next: datetime | None
    """Its next tick; None for none."""
    since: datetime | None
    """When it was first seen."""


async def view(site: Site, visit: Visit) -> Response:
    """Show schedules with their next ticks, runs that are parked, and runs at work with who holds them."""
    parked, damage = await read(control.runs(site.store, status="parked", limit=_MOST), _MOST)
    held, more = await read(control.runs(site.store, status=["running", "cancelling"], limit=_MOST), _MOST)
    workers: dict[str, list[control.RunStatus]] = {}
    for run in held:
        if run.holder is not None:
            workers.setdefault(run.holder.name, []).append(run)
    schedules, others = await _schedules(site.store)
    return site.page(
        visit,
        "work.html",
        damage="\n".join(filter(None, dict.fromkeys([damage, more, others]))),
        schedules=schedules,
        parked=parked,
        workers=workers,
        most=_MOST,
        now=datetime.now(UTC),
        showing=site.showing,
    )


async def _schedules(store: Store) -> tuple[list[Schedule], str]:
    """Return what is recorded of schedules, those that tick next first, and what is wrong with others."""
    listing = runs_of(store)
    if listing is None:
        return [], ""
    names, damage = await read(listing.runs(_SCHEDULES), 1000)
    found: list[Schedule] = []
    for run_id in names:
        try:
            record = await store.get(run_id, "$cron")
            versions = [] if record is None else record.value(list[dict[str, Any]])
            found += [_schedule(run_id.removeprefix(_SCHEDULES), version) for version in versions]
        except (CorruptLog, ValueError, TypeError) as error:
            damage = f"{damage}\nschedule {run_id.removeprefix(_SCHEDULES)!r} can't be read: {error}".strip()
    return sorted(found, key=lambda each: (each.next is None, each.next or each.since, each.name)), damage


def _schedule(name: str, version: Mapping[str, Any]) -> Schedule:
    """Read a schedule. Raises `ValueError` for a time that is none."""
    times = [datetime.fromisoformat(version[each]) if version.get(each) else None for each in ("next", "first_seen")]
    return Schedule(name, str(version.get("expression")), str(version.get("timezone")), *times)
