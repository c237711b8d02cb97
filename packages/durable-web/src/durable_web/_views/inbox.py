"""The approvals that wait for people, oldest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from durable_core import control
from durable_core.errors import CorruptLog
from durable_core.store import Store
from durable_web._asked import Asked, asked_by
from durable_web._site import Site
from durable_web._visit import Visit

from ._filters import number_of, span_of
from ._live import rounds, stream
from ._reading import has_many, read

_PAGE: Final = 50
_MOST: Final = 200


async def view(site: Site, visit: Visit) -> Response:
    """Show approvals that wait. `mine=1`: those that the visitor may still decide; `prefix` of run ids; `longer`: waiting longer.

    If there are many runs, looks at those without a flow only with `plain=1`.
    """
    return site.page(visit, "inbox.html", **await _found(site, visit))


async def live(site: Site, visit: Visit) -> Response:
    """Show approvals that wait, as they change."""
    span_of(visit, "longer")  # raises before the stream begins

    async def looks() -> AsyncGenerator[dict[str, Any], None]:
        async for _ in rounds(site.store):
            yield await _found(site, visit)

    return stream(site, visit, "live/inbox.html", looks)


async def _found(site: Site, visit: Visit) -> dict[str, Any]:
    longer, now = span_of(visit, "longer"), datetime.now(UTC)
    prefix = visit.asked("prefix")
    only_flows = not visit.asked("plain") and await has_many(site.store, prefix)
    counted, damage = Counter[str](), list[str]()

    def wants(each: Asked) -> bool:
        is_mine = _is_for(each, visit.user.name)
        counted["mine"] += is_mine
        is_wanted = (is_mine or not visit.asked("mine")) and (longer is None or each.since <= now - longer)
        counted["all"] += is_wanted
        return is_wanted

    waiting = _waiting(site.store, prefix, damage, only_flows=only_flows)
    asked, trouble = await read(waiting, _MOST, wants, first_by=lambda each: each.since)
    pages = max(1, -(-len(asked) // _PAGE))
    page = number_of(visit, "page", pages) or 1
    kept = {name: visit.asked(name) for name in ("mine", "prefix", "longer", "plain")}
    return {
        "asked": asked[(page - 1) * _PAGE : page * _PAGE],
        "count": counted["all"],
        "most": _MOST,
        "mine": counted["mine"],
        "page": page,
        "pages": pages,
        "kept": kept,
        "damage": "\n".join(filter(None, [trouble, *damage])),
        "only_flows": only_flows,
    }


async def _waiting(store: Store, prefix: str, damage: list[str], *, only_flows: bool) -> AsyncGenerator[Asked, None]:
    """Yield the approvals that wait for people. For one that can't be read, add the error to `damage`."""
    async with aclosing(control.pending(store, prefix, only_flows=only_flows)) as records:  # type: ignore[type-var]  # it can be closed
        async for record in records:
            try:
                yield asked_by(record)
            except CorruptLog as error:
                damage.append(str(error))


def _is_for(asked: Asked, name: str) -> bool:
    return asked.may_decide(name) and not asked.has_voted(name)
