"""Doing the same with many runs: which ones, and the result of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from ._bar import bar
from ._ending import REFUSED, fail
from ._output import write, write_json
from ._text import moment, number

if TYPE_CHECKING:
    from durable_core import CorruptLog, Store
    from durable_core.control import RunState, RunStatus

_LISTED: Final = 10


class Chosen(NamedTuple):
    """The selection of runs: by flow, by status, and by when they began."""

    flow: str | None
    states: Collection[RunState]
    since: datetime | None


async def find(store: Store, chosen: Chosen) -> tuple[Sequence[RunStatus], CorruptLog | None]:
    """Return the selected runs, and the errors of damaged logs, which don't hide other runs."""
    from durable_core import CorruptLog, control

    found: list[RunStatus] = []
    try:
        async for run in control.runs(store, flow=chosen.flow, status=chosen.states or None, since=chosen.since):
            found.append(run)  # noqa: PERF401  # those that were found before an error count
    except CorruptLog as damage:
        return found, damage
    return found, None


def listed(runs: Sequence[RunStatus]) -> list[str]:
    """List the first of the runs, one on each line."""
    wide = max(len(run.run_id) for run in runs[:_LISTED])
    lines = [f"  {run.run_id:<{wide}}  {run.status}  since {moment(run.changed_at)}" for run in runs[:_LISTED]]
    return [*lines, f"  and {len(runs) - _LISTED:,} more"] if len(runs) > _LISTED else lines


async def on_each(
    run_ids: Sequence[str], act: Callable[[str], Awaitable[object]], *, doing: str, done: str, as_json: bool
) -> None:
    """Act on one run after the other, and report each result; exit with code 1 if any was refused.

    `doing` and `done` are words for it, such as "copying" and "copied {}". A run that is refused, busy or damaged doesn't stop
    the others; an unreachable store does.
    """
    from durable_core import CorruptLog, Refused, RunBusy

    refused: list[str] = []
    count = 0
    try:
        with bar(doing, len(run_ids)) as advance:
            for run_id in run_ids:
                error = None
                try:
                    await act(run_id)
                except (Refused, RunBusy, CorruptLog) as refusal:
                    error = str(refusal)
                    refused.append(error)
                count += error is None
                if as_json:
                    write_json({"run_id": run_id, "done": error is None, "error": error})
                advance()
    finally:  # also after an interrupt: what was done stays
        if not as_json:
            write(done.format(f"{count:,} of {number(len(run_ids), 'run')}"))
    if refused:
        more = [f"and {len(refused) - _LISTED:,} more"] if len(refused) > _LISTED else []
        fail(*refused[:_LISTED], *more)
        raise click.exceptions.Exit(REFUSED)
