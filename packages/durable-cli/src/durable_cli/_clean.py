"""Clearing runs that ended long ago."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from ._asked import Asked
from ._bar import bar, counted
from ._output import write, write_json
from ._question import agree
from ._text import number, span

if TYPE_CHECKING:
    from durable_core import Store

_LISTED: Final = 10


def clean(asked: Asked, prefix: str, older: timedelta, *, dry_run: bool, yes: bool) -> None:
    """Clear runs that ended so long ago, with their children, after confirmation."""
    cleared: Sequence[str] = ()
    total = None
    if dry_run or not yes:
        cleared = asked.run(lambda store: _clear(store, prefix, older, dry_run=True))
        total = len(cleared)
    if total and not dry_run:
        more = [f"  and {total - _LISTED:,} more"] if total > _LISTED else []
        agree(f"Clear {number(total, 'run')} for good?", shown=[*(f"  {run_id}" for run_id in cleared[:_LISTED]), *more])
    if not dry_run and total != 0:
        cleared = asked.run(lambda store: _clear(store, prefix, older, total, dry_run=False))
    for run_id in cleared:
        if asked.as_json:
            write_json({"run_id": run_id, "cleared": not dry_run})
        elif dry_run:
            write(run_id)
    if not asked.as_json:
        found = f"{number(len(cleared), 'run')} that ended more than {span(older)} ago"
        write(f"would clear {found}" if dry_run else f"cleared {found}")


async def _clear(store: Store, prefix: str, older: timedelta, total: int | None = None, *, dry_run: bool) -> Sequence[str]:
    from durable_core import control

    doing, stopped = ("looking", "") if dry_run else ("clearing", "Stopped half-way: the same command again clears the rest.")
    with bar(doing, total, stopped=stopped) as advance:
        return await control.clear_ended(counted(store, advance), prefix, older_than=older, dry_run=dry_run)
