"""Workers and schedules: recorded schedules, parked runs, and runs that processes hold."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from starlette.responses import Response

from durable_core import control
from durable_core.errors import CorruptLog
from durable_core.store import Holder, Store, flows_of, holder_of, runs_of
from durable_web._site import Site
from durable_web._visit import Visit

from ._reading import read

_MOST: Final = 50
_LOOKED_AT: Final = 1000
_SCHEDULES: Final = "$cron/"


class AtWork(NamedTuple):
    """A run that a process holds."""

    run_id: str
    flow: str | None
    holder: Holder


class Schedule(NamedTuple):
    """A schedule as it is recorded."""

    name: str
    expression: str
    timezone: str
    next: datetime | None
    """Its next tick. None if there is none."""
    since: datetime | None
    """When it was first seen."""


async def view(site: Site, visit: Visit) -> Response:
    """Show schedules with their next ticks, parked runs, and runs that processes hold."""
    parked, damage = await read(control.runs(site.store, status="parked", limit=_MOST), _MOST)
    held, more = await _at_work(site.store)
    workers: dict[str, list[AtWork]] = {}
    for each in held[:_MOST]:
        workers.setdefault(each.holder.name, []).append(each)
    schedules, others = await _schedules(site.store)
    return site.page(
        visit,
        "work.html",
        damage="\n".join(filter(None, dict.fromkeys([damage, more, others]))),
        schedules=schedules,
        parked=parked,
        workers=workers,
        left_out=len(held) - _MOST,
        most=_MOST,
    )


async def _at_work(store: Store) -> tuple[list[AtWork], str]:
    """Return the runs that processes hold, of the thousand that began last, and the errors of others."""
    index, reader = flows_of(store), holder_of(store)
    if reader is None:
        return [], ""
    if index is None:  # read all logs
        runs, damage = await read(control.runs(store, status=["running", "waiting", "cancelling"]), _LOOKED_AT)
        return [AtWork(run.run_id, run.flow, run.holder) for run in runs if run.holder is not None], damage
    try:
        flows = await index.flows(states=["started", "cancelling"], limit=_LOOKED_AT)
    except CorruptLog as error:  # nothing else can be read
        return [], str(error)
    holders = await reader.holders([flow.run_id for flow in flows]) if flows else {}
    return [AtWork(flow.run_id, flow.name, holders[flow.run_id]) for flow in flows if flow.run_id in holders], ""


async def _schedules(store: Store) -> tuple[list[Schedule], str]:
    """Return the recorded schedules, the earliest next tick first, and the errors of others."""
    listing = runs_of(store)
    if listing is None:
        return [], ""
    names, damage = await read(listing.runs(_SCHEDULES), _LOOKED_AT)
    found: list[Schedule] = []
    for run_id in names:
        try:
            record = await store.get(run_id, "$cron")
            versions = [] if record is None else record.value(list[dict[str, Any]])
            found += [_schedule(run_id.removeprefix(_SCHEDULES), version) for version in versions]
        except (CorruptLog, ValueError, TypeError) as error:
            damage = f"{damage}\nschedule {run_id.removeprefix(_SCHEDULES)!r} can't be read: {error}".strip()
    return sorted(found, key=lambda each: (each.next is None, str(each.next), each.name)), damage


def _schedule(name: str, version: Mapping[str, Any]) -> Schedule:
    """Decode a schedule. Raises `ValueError` or `TypeError` for an invalid time."""
    next_tick, since = (datetime.fromisoformat(version[each]) if version.get(each) else None for each in ("next", "first_seen"))
    return Schedule(name, str(version.get("expression")), str(version.get("timezone")), next_tick, since)
