"""Acting on runs as the signed-in user: each verb for one run and for many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from durable_core import control
from durable_core.errors import DurableError
from durable_core.record import check_id
from durable_core.store import Store

from ._door import View
from ._site import Site
from ._visit import Visit

_AT_ONCE: Final = 10


def value_of(visit: Visit, name: str) -> Any:
    """Return the JSON of a field; None if it is empty. Raises `HTTPException` for anything else."""
    text = visit.form.text(name)
    if not text.strip():
        return None
    try:
        return msgspec.json.decode(text)  # as a log would return it: without NaN and lone surrogates
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise HTTPException(400, f'{name} is not JSON: {error}; write text in quotes, such as "yes"; nothing was done') from None


def reason_of(visit: Visit) -> str | None:
    """Return the user's reason, or None if there is none."""
    return visit.form.text("reason").strip() or None


async def retry(site: Site, visit: Visit) -> Response:
    """Reopen a run, or one of its steps."""
    run, step = visit.id("run"), visit.id("step") if visit.form.text("step") else None
    await control.retry(site.store, run, step, reason=reason_of(visit), by=visit.user.name)
    return back(visit, "retried", run, step)


async def cancel(site: Site, visit: Visit) -> Response:
    """Ask a run to stop."""
    run = visit.id("run")
    await control.cancel(site.store, run, reason=reason_of(visit), by=visit.user.name)
    return back(visit, "cancelled", run)


async def fork(site: Site, visit: Visit) -> Response:
    """Begin a new run with the outcomes of an old one before a step."""
    run, step, new = visit.id("run"), visit.id("step"), visit.id("new_run")
    await control.fork(site.store, run, new, before=step, by=visit.user.name)
    return back(visit, "forked", new)


async def resolve(site: Site, visit: Visit) -> Response:
    """Set the outcome of a step by hand."""
    run, step, reason = visit.id("run"), visit.id("step"), reason_of(visit)
    if reason is None:
        raise HTTPException(400, "give a reason: an outcome that is set by hand needs one; nothing was done")
    await control.resolve(site.store, run, step, value_of(visit, "value"), reason=reason, by=visit.user.name)
    return back(visit, "resolved", run, step)


async def send(site: Site, visit: Visit) -> Response:
    """Give an event its value."""
    run, step = visit.id("run"), visit.id("step")
    await control.send(site.store, run, step, value_of(visit, "value"), by=visit.user.name)
    return back(visit, "sent", run, step)


async def clean(site: Site, visit: Visit) -> Response:
    """Clear a run that has ended, with its children."""
    await control.clear(site.store, visit.id("run"))
    return RedirectResponse(visit.url("runs", said="cleaned"), 303)


async def bulk(site: Site, visit: Visit) -> Response:
    """Do one thing to each of the chosen runs, and report the result of each."""
    verb = BULK.get(visit.form.text("verb"))
    if verb is None:
        raise HTTPException(400, f"choose what to do: {', '.join(BULK)}; nothing was done")
    chosen = [*dict.fromkeys(visit.form.all("run"))]
    if not chosen:
        raise HTTPException(400, "choose some runs first; nothing was done")

    async def line(run: str) -> tuple[str, bool, str]:
        try:
            return run, True, await verb(site.store, check_id("run", run), visit)
        except (DurableError, ValueError, OSError) as error:
            return run, False, site.showing.text("error", str(error))

    lines: list[tuple[str, bool, str]] = []
    for some in (chosen[start : start + _AT_ONCE] for start in range(0, len(chosen), _AT_ONCE)):
        lines += await asyncio.gather(*map(line, some))
    return site.page(visit, "bulk.html", verb=visit.form.text("verb"), lines=lines)


async def _retry_one(store: Store, run: str, visit: Visit) -> str:
    await control.retry(store, run, reason=reason_of(visit), by=visit.user.name)
    return "will be tried again"


async def _cancel_one(store: Store, run: str, visit: Visit) -> str:
    await control.cancel(store, run, reason=reason_of(visit), by=visit.user.name)
    return "will stop"


async def _clean_one(store: Store, run: str, visit: Visit) -> str:
    cleared = await control.clear(store, run)
    return "deleted" if len(cleared) == 1 else f"deleted, with {len(cleared) - 1} children"


BULK: Final[Mapping[str, Callable[[Store, str, Visit], Awaitable[str]]]] = {
    "retry": _retry_one,
    "cancel": _cancel_one,
    "clean": _clean_one,
}
VERBS: Final[Mapping[str, View]] = {
    "retry": retry,
    "cancel": cancel,
    "fork": fork,
    "resolve": resolve,
    "send": send,
    "clean": clean,
    "bulk": bulk,
}
"""The acts that need the access "all", by the last part of their paths."""


def back(visit: Visit, said: str, run: str, step: str | None = None) -> Response:
    """Redirect to the page of the run or step. `said` chooses the message at its top."""
    path = visit.url("run", run=run, said=said) if step is None else visit.url("step", run=run, step=step, said=said)
    return RedirectResponse(path, 303)
