"""A progress bar for long work: on stderr, if that is a terminal, and removed at the end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, cast

from ._output import error_console, say

if TYPE_CHECKING:
    from durable_core import StepRecord, Store


@contextmanager
def bar(what: str, total: int | None = None, *, stopped: str = "") -> Iterator[Callable[[], None]]:
    """Show the progress of work. Call the yielded function for each finished thing. Without a total, the bar only moves.

    `stopped` is the message if the work is interrupted.
    """
    try:
        with _drawn(what, total) if sys.stderr.isatty() else nullcontext(lambda: None) as advance:
            yield advance
    except asyncio.CancelledError:
        if stopped:
            say(stopped)
        raise


@contextmanager
def _drawn(what: str, total: int | None) -> Iterator[Callable[[], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=error_console(), transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def counted(store: Store, done: Callable[[], None]) -> Store:
    """Return the same store, which reports each entry that it appended and each run that it cleared."""
    return cast("Store", _Counted(store, done))


class _Counted:
    def __init__(self, store: Store, done: Callable[[], None]) -> None:
        self._store: Final = store
        self._done: Final = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def append(self, record: StepRecord) -> StepRecord:
        holder = await self._store.append(record)
        self._done()
        return holder

    async def clear(self, run_id: str) -> None:
        await self._store.clear(run_id)
        self._done()
