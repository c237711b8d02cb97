"""The list of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from durable_core import Store, StoreError, control
from durable_core.control import RunState, RunStatus

from ._asked import Asked
from ._output import console, draw, write, write_json
from ._text import cut, harmless
from ._words import about, age, styled

PAGE: Final = 20


class Filter(NamedTuple):
    """The runs to list, and where the page begins."""

    prefix: str
    states: Collection[RunState]
    flow: str | None
    since: datetime | None
    before: str | None
    limit: int


async def list_runs(store: Store, asked: Asked, wanted: Filter) -> None:
    """Show a page of runs, newest first."""
    before = None
    if wanted.before is not None:
        last = await control.status(store, wanted.before)
        before = last.started_at, last.run_id
    found: list[RunStatus] = []
    damage: StoreError | None = None
    try:
        await _find(store, wanted, before, found, only_flows="open" not in wanted.states)
        if not found and wanted.flow is None and not await _has_flows(store):
            await _find(store, wanted, before, found, only_flows=False)
    except StoreError as error:  # of one log: the others were read
        damage = error
    if damage is None or found:
        _show(found[: wanted.limit], asked, wanted, more=len(found) > wanted.limit)
    if damage is not None:
        raise damage


async def _has_flows(store: Store) -> bool:
    async for _ in control.runs(store, only_flows=True, limit=1):
        return True
    return False


async def _find(
    store: Store, wanted: Filter, before: tuple[datetime, str] | None, found: list[RunStatus], *, only_flows: bool
) -> None:
    runs = control.runs(
        store,
        wanted.prefix,
        status=wanted.states or None,
        flow=wanted.flow,
        since=wanted.since,
        before=before,
        limit=wanted.limit + 1,
        only_flows=only_flows,
    )
    async for run in runs:
        found.append(run)  # noqa: PERF401  # what came before an error stays


def _show(runs: Sequence[RunStatus], asked: Asked, wanted: Filter, *, more: bool) -> None:
    if asked.as_json:
        for run in runs:
            write_json(run)
        return
    if not runs:
        asks_for_some = wanted._replace(limit=0) != Filter("", (), None, None, None, 0)
        write("There are no such runs." if asks_for_some else "There are no runs in this store.")
        return
    from ._table import table

    now, screen = datetime.now(UTC), console()
    rows = [
        (harmless(run.run_id), cut(run.flow or "-", 24), styled(run.status), age(run.started_at, now), about(run, now))
        for run in runs
    ]
    draw(table(("RUN", "FLOW", "STATE", "AGE", ""), rows, screen.width), screen)
    if len(runs) > 1:
        counts = Counter(run.status for run in runs)
        said = ", ".join(f"{number} {state}" for state, number in counts.most_common())
        write(f"\n{'The newest' if more else 'All'} {len(runs)}: {said}.")
    if more:
        write(f"Older ones:\n  {_next(asked, wanted, runs[-1].run_id)}")


def _next(asked: Asked, wanted: Filter, last: str) -> str:
    """Return the command that shows the next page."""
    options = {
        "--status": wanted.states,
        "--flow": wanted.flow,
        "--since": wanted.since and wanted.since.astimezone().isoformat(timespec="seconds"),
        "--limit": None if wanted.limit == PAGE else str(wanted.limit),
        "--before": last,
    }
    words = [
        word
        for name, given in options.items()
        for each in ([given] if isinstance(given, str) else given or ())
        for word in (name, each)
    ]
    return asked.command("runs", *filter(None, [wanted.prefix]), options=words)
