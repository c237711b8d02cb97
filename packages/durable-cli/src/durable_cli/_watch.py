"""A live run: redrawn on a terminal, line by line in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from durable_core import StepFailed, StepRecord, Store, control
from durable_core.control import RunStatus
from durable_core.engine import FLOW, state_of

from ._asked import Asked
from ._output import console, draw, write, write_json
from ._steps import Step, Steps
from ._text import harmless, soon

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_BEFORE: Final = 20
"""How many of the existing entries are shown in a pipe."""


async def watch(store: Store, asked: Asked, run_id: str) -> bool:
    """Show a run until it ends; return True if it succeeded."""
    if asked.as_json or not sys.stdout.isatty():
        run = await _lines(store, asked, run_id)
    else:
        run = await _live(store, asked, run_id)
    return run.status == "succeeded"


async def wait(store: Store, asked: Asked, run_id: str, timeout: timedelta | None) -> None:
    """Wait for a run's end, and print its value as JSON; raise its failure if it didn't succeed."""
    try:
        value = await control.result(store, run_id, timeout=timeout)
    except (StepFailed, TimeoutError) as error:
        error.add_note(f"Why, and what helps:\n  {asked.command('why', run_id)}")
        if asked.as_json:
            write_json(await control.status(store, run_id))
        raise
    write_json(await control.status(store, run_id) if asked.as_json else value)


async def _live(store: Store, asked: Asked, run_id: str) -> RunStatus:
    from rich.console import Group
    from rich.live import Live

    from ._timeline import drawn

    screen = console()
    lines: list[Text] = []
    run = None
    try:
        with Live(console=screen, auto_refresh=False, transient=True) as live:
            async for entries in control.looks(store, run_id):
                run = await control.status(store, run_id, entries=entries)
                lines = [*drawn(run, Steps(entries), asked, screen.width)]
                live.update(Group(*_fitting(lines, screen)), refresh=True)
    finally:
        draw(lines, screen)  # in full, where it can be scrolled
    assert run is not None
    return run


def _fitting(lines: Sequence[Text], screen: Console) -> list[Text]:
    """Return as many lines as the terminal shows: the first ones, and the last."""
    from rich.text import Text

    room = screen.height - 2
    cut = [line.copy() for line in lines]
    for line in cut:
        line.truncate(screen.width, overflow="ellipsis")
    if len(cut) <= room:
        return cut
    above = min(5, room // 2)
    return [*cut[:above], Text("…", style="dim"), *cut[len(cut) - room + above + 1 :]]


async def _lines(store: Store, asked: Asked, run_id: str) -> RunStatus:
    seen: set[tuple[str, int]] = set()
    run, first = None, True
    async for entries in control.looks(store, run_id):
        run = await control.status(store, run_id, entries=entries)
        fresh = [record for record in entries if (record.step_id, record.revision) not in seen]
        seen.update((record.step_id, record.revision) for record in fresh)
        for record in fresh[-_BEFORE:] if first and not asked.as_json else fresh:
            if asked.as_json:
                write_json(record)
            else:
                write(_line(run, record))
        sys.stdout.flush()
        first = False
    assert run is not None
    return run


def _line(run: RunStatus, record: StepRecord) -> str:
    now = datetime.now(UTC)
    step = Step(record, record, 1)
    parts: list[Any] = [soon(record.ended_at, now)]
    if record.step_id == FLOW:
        parts += [harmless(record.run_id), state_of(record)]
    else:
        parts += [harmless(record.step_id), "started" if record.status == "started" else step.state(run), step.said(now)]
    return "  ".join(filter(None, parts))
