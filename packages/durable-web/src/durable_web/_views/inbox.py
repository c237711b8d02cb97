"""What waits for people, oldest first."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any, Final

from starlette.responses import Response

from durable_core import control
from durable_core.errors import CorruptLog
from durable_web._asked import Asked, asked_by
from durable_web._site import Site
from durable_web._visit import Visit

from ._filters import number_of, span_of
from ._live import rounds, stream
from ._reading import has_many, read

_PAGE: Final = 50
_MOST: Final = 200


async def view(site: Site, visit: Visit) -> Response:
    """Show what waits: `mine=1` what the visitor may decide and has not, `prefix` of run ids, `longer` waiting than.

    Of many runs, those without a flow are looked at where `plain=1` asks for it.
    """
    return site.page(visit, "inbox.html", **await _found(site, visit))


async def live(site: Site, visit: Visit) -> Response:
    """Show what waits as it changes."""
    span_of(visit, "longer")  # what is wrong with it is said before the stream begins

    async def looks() -> AsyncGenerator[dict[str, Any], None]:
        async for _ in rounds(site.store):
            yield await _found(site, visit)

    return stream(site, visit, "live/inbox.html", looks)


async def _found(site: Site, visit: Visit) -> dict[str, Any]:
    longer, now = span_of(visit, "longer"), datetime.now(UTC)
    prefix = visit.asked("prefix")
    only_flows = not visit.asked("plain") and await has_many(site.store, prefix)
    records, damage = await read(control.pending(site.store, prefix, only_flows=only_flows), _MOST + 1)
    asked: list[Asked] = []
    for record in records[:_MOST]:
        try:
            asked.append(asked_by(record))
        except CorruptLog as error:
            damage = f"{damage}\n{error}".strip()
    name = visit.user.name
    mine = sum(_is_for(each, name) for each in asked)
    if visit.asked("mine"):
        asked = [each for each in asked if _is_for(each, name)]
    if longer is not None:
        asked = [each for each in asked if each.since <= now - longer]
    asked.sort(key=lambda each: each.since)
    if len(records) > _MOST:
        more = f"There are more than {_MOST}; the runs of these began last. Choose less by what run ids begin with."
        damage = f"{more}\n{damage}".strip()
    pages = max(1, -(-len(asked) // _PAGE))
    page = number_of(visit, "page", pages) or 1
    kept = {name: visit.asked(name) for name in ("mine", "prefix", "longer", "plain")}
    return {
        "asked": asked[(page - 1) * _PAGE : page * _PAGE],
        "count": len(asked),
        "mine": mine,
        "page": page,
        "pages": pages,
        "kept": kept,
        "damage": damage,
        "only_flows": only_flows,
    }


def _is_for(asked: Asked, name: str) -> bool:
    return asked.may_decide(name) and not asked.has_voted(name)
