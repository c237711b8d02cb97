"""Runs, filtered by the URL."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from durable_core import CorruptLog, control
from durable_core.store import Store, flows_of
from durable_web._acting import BULK
from durable_web._site import Site
from durable_web._visit import Visit

from ._filters import before_of, span_of
from ._reading import has_many, read

_PAGE: Final = 50
_COUNTED: Final = 1000
STATES: Final = (
    *("waiting", "running", "interrupted", "crashed", "parked", "cancelling"),
    *("succeeded", "failed", "cancelled", "open"),
)
_INDEXED: Final = {"crashed", "parked", "cancelling", "succeeded", "failed", "cancelled"}
"""The states that an index can tell by itself. It can't for a started run, which may wait, work or be interrupted."""
ENDED: Final = {"succeeded", "failed", "cancelled"}


async def view(site: Site, visit: Visit) -> Response:
    """Show a page of runs: `state` (several), `flow`, `prefix`, `since`, `longer` (waiting longer than), `before`.

    If there are many runs, shows those without a flow only with `plain=1` or the state `open`.
    """
    states: Any = [state for state in visit.request.query_params.getlist("state") if state in STATES]
    longer, since, now = span_of(visit, "longer"), span_of(visit, "since"), datetime.now(UTC)
    looked_for: Any = ["waiting"] if longer is not None and not states else states
    before = before_of(visit)
    only_flows = "open" not in states and not visit.asked("plain") and await has_many(site.store, visit.asked("prefix"))
    # A run that has waited for so long began before that: skip all later ones.
    newest = before if longer is None else min(filter(None, [before, (now - longer, "")]))
    listed = control.runs(
        site.store,
        visit.asked("prefix"),
        status=looked_for or None,
        flow=visit.asked("flow") or None,
        since=None if since is None else now - since,
        before=newest,
        limit=_PAGE if longer is None else None,
        only_flows=only_flows,
    )
    found, damage = await read(listed, _PAGE, lambda run: longer is None or run.changed_at <= now - longer)
    kept = {"state": states, **{name: visit.asked(name) for name in ("flow", "prefix", "since", "longer", "plain")}}
    is_all = len(found) < _PAGE and not (states or longer or since or before or damage)
    last = found[-1] if len(found) == _PAGE else None
    older = None if last is None else visit.url("runs", **kept, before=f"{last.started_at.isoformat()} {last.run_id}")
    return site.page(
        visit,
        "runs.html",
        runs=found,
        damage=damage,
        states=STATES,
        counts=_counted(found) if is_all else await _counts(site.store, kept),
        kept=kept,
        before=visit.asked("before"),
        only_flows=only_flows,
        all=bool(visit.asked("all")),
        older=older,
        now=now,
        ended=ENDED,
        verbs=[*BULK],
    )


def _counted(runs: Sequence[control.RunStatus]) -> dict[str, str]:
    """Return how many of these runs are in each state."""
    numbers = Counter(run.status for run in runs)
    return {state: str(numbers[state]) for state in STATES if state != "open"}


async def _counts(store: Store, kept: dict[str, Any]) -> dict[str, str]:
    """Return how many runs are in each state that the store's index can tell, counted up to a thousand."""
    index = flows_of(store)
    if index is None or kept["since"] or kept["longer"]:
        return {}
    held = getattr(index, "flow_states", None)
    states: list[Any] = [state for state in STATES if state in _INDEXED and (held is None or state in held)]
    names = [kept["flow"]] if kept["flow"] else None

    async def count(state: Any) -> int:
        try:
            flows = await index.flows(kept["prefix"], names=names, states=[state], limit=_COUNTED)
        except CorruptLog:  # nothing else can be read; the table says why
            return 0
        return sum(not flow.run_id.startswith("$") for flow in flows)

    numbers = dict(zip(states, await asyncio.gather(*map(count, states)), strict=True))
    return {state: f"{number:,}" if number < _COUNTED else f"{_COUNTED:,}+" for state, number in numbers.items()}
