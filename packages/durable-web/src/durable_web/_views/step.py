"""One step: its entries, with who acted, why and when."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from durable_core.engine import FLOW, child_of, decided, entries_of, ids_in
from durable_core.engine import state_of as state_of_run
from durable_core.errors import NotFound
from durable_core.record import StepRecord
from durable_core.store import holder_of
from durable_web._asked import asked_by
from durable_web._site import Site
from durable_web._visit import Visit

from ._live import rounds, stream
from ._steps import acts_of, note_of, state_of

_MOST: Final = 100


async def view(site: Site, visit: Visit) -> Response:
    """Show the entries of a step. If there are many, show the last ones."""
    return site.page(visit, "step.html", **await _found(site, visit))


async def live(site: Site, visit: Visit) -> Response:
    """Show a step as it changes, until it has an outcome."""
    visit.id("run"), visit.id("step")  # raise before the stream begins

    async def looks() -> AsyncGenerator[dict[str, Any], None]:
        async for _ in rounds(site.store):
            found = await _found(site, visit)
            yield found
            if found["is_over"]:
                return

    return stream(site, visit, "live/step.html", looks)


async def _found(site: Site, visit: Visit) -> dict[str, Any]:
    run_id, step_id = visit.id("run"), visit.id("step")
    newest = await site.store.get(run_id, step_id)
    if newest is None:
        raise NotFound(f"there is no step {step_id!r} in run {run_id!r}")
    entries = [newest]
    if newest.revision:
        entries = sorted(entries_of(await site.store.list(run_id), step_id), key=lambda entry: entry.revision) or entries
        newest = entries[-1]
    reader = holder_of(site.store)
    is_at_work = reader is None or await reader.holder(run_id) is not None
    return {
        "entries": [
            (entry, state_of(entry, is_at_work=is_at_work or entry is not newest), acts_of(entry)[-1:], note_of(entry))
            for entry in entries[-_MOST:]
        ],
        "left_out": max(0, len(entries) - _MOST),
        "newest": newest,
        "state_word": state_of(newest, is_at_work=is_at_work),
        "is_over": decided(newest),
        "child": child_of(newest),
        "asked": asked_by(newest) if newest.kind == "approval" else None,
        "verbs": verbs_for(newest) if _can_continue(await site.store.get(run_id, FLOW), step_id) else [],
        "now": datetime.now(UTC),
    }


def _can_continue(flow: StepRecord | None, step_id: str) -> bool:
    """Return True if the run would ask for the step again, as `control.retry` and `resolve` require."""
    if flow is None or (state := state_of_run(flow)) not in ("succeeded", "failed", "cancelled"):
        return True
    answers = ids_in(flow, "answered_by")
    return state == "failed" and (not answers or step_id in answers)


def verbs_for(newest: StepRecord) -> list[str]:
    """Return the actions that a step's state allows, besides answering it."""
    if newest.step_id.startswith("$") or newest.kind == "published":
        return []
    if newest.status == "failure":
        return ["retry", "resolve"] if newest.kind != "approval" else ["retry"]
    if newest.status == "started":
        return ["retry", "resolve"]
    if newest.status == "waiting" and newest.kind == "step":
        return ["retry"]
    return ["send"] if newest.status == "waiting" and newest.kind == "event" else []
