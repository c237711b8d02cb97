"""Runs, filtered by the URL."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from durable_core import control
from durable_web._site import Site
from durable_web._visit import Visit

from ._reading import read

_PAGE: Final = 50
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
STATES: Final = (
    *("waiting", "running", "interrupted", "crashed", "parked", "cancelling"),
    *("succeeded", "failed", "cancelled", "open"),
)


async def view(site: Site, visit: Visit) -> Response:
    """Show a page of runs: `state` (several), `flow`, `prefix`, `since`, `longer` (waiting longer than), `before`."""
    states: Any = [state for state in visit.request.query_params.getlist("state") if state in STATES]
    longer = span_of(visit, "longer")
    if longer is not None and not states:
        states = ["waiting"]
    since = span_of(visit, "since")
    now = datetime.now(UTC)
    listed = control.runs(
        site.store,
        visit.asked("prefix"),
        status=states or None,
        flow=visit.asked("flow") or None,
        since=None if since is None else now - since,
        before=_before(visit),
        limit=None if longer is not None else _PAGE,
    )
    found, damage = await read((run async for run in listed if longer is None or run.changed_at <= now - longer), _PAGE)
    kept = {"state": states, **{name: visit.asked(name) for name in ("flow", "prefix", "since", "longer")}}
    last = found[-1] if len(found) == _PAGE else None
    older = None if last is None else visit.url("runs", **kept, before=f"{last.started_at.isoformat()} {last.run_id}")
    return site.page(visit, "runs.html", runs=found, damage=damage, states=STATES, kept=kept, older=older)


def span_of(visit: Visit, name: str) -> timedelta | None:
    """Return a length of time from the query, such as `30d`, `12h`, `5m`. Raises `HTTPException` for anything else."""
    text = visit.asked(name).strip()
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,6})([smhdw]?)", text)
    if found is None:
        raise HTTPException(400, f"{name} must be a length of time, such as 30d, 12h, 5m or 10s, not {text!r}")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2] or "s"])


def _before(visit: Visit) -> tuple[datetime, str] | None:
    at, _, run_id = visit.asked("before").partition(" ")
    if not at:
        return None
    try:
        return datetime.fromisoformat(at).astimezone(UTC), run_id
    except (ValueError, OverflowError):
        raise HTTPException(400, f"before must be the time and the id of a run, not {visit.asked('before')!r}") from None
