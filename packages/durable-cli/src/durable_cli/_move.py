"""Exporting runs as lines of text, importing them, and copying them to other stores."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import IO, TYPE_CHECKING, Final

import click

from ._bar import bar, counted
from ._each import on_each
from ._output import say, write, write_json
from ._text import harmless_json, number

if TYPE_CHECKING:
    from durable_core import StepRecord, Store

_HALF_WAY: Final = "Stopped half-way: the same command again completes it."


async def named(store: Store, run_ids: Sequence[str], prefix: str | None) -> Sequence[str]:
    """Return the given ids, or those in the store with this prefix. Raises `Refused` if it can't list its runs."""
    from durable_core import Refused
    from durable_core.store import runs_of

    if prefix is None:
        return run_ids
    if (listing := runs_of(store)) is None:
        raise Refused("this store can't list its runs: name them")
    return sorted([run_id async for run_id in listing.runs(prefix) if not run_id.startswith("$")])


async def copy(store: Store, run_ids: Sequence[str], prefix: str | None, to: str, *, dry_run: bool, as_json: bool) -> None:
    """Copy runs to another store, entry for entry."""
    from durable_core import control, open_store

    found = await named(store, run_ids, prefix)
    async with open_store(to) as target:
        if prefix is None and len(found) == 1:
            count = await control.copy(store, found[0], target, dry_run=True)
            if not dry_run:
                with bar("copying", count, stopped=_HALF_WAY) as advance:
                    count = await control.copy(store, found[0], counted(target, advance))
            _say_copied(found[0], count, dry_run=dry_run, as_json=as_json)
            return

        async def one(run_id: str) -> None:
            await control.copy(store, run_id, target, dry_run=dry_run)

        await on_each(found, one, doing="copying", done="would copy {}" if dry_run else "copied {}", as_json=as_json)


async def export(store: Store, run_ids: Sequence[str], prefix: str | None) -> None:
    """Write the entries of runs and their children to stdout, one on each line, in the order in which they were appended."""
    from durable_core import control
    from durable_core.engine import child_of

    on_terminal = sys.stdout.isatty()
    out = sys.stdout.buffer
    left, seen = deque(await named(store, run_ids, prefix)), set[str]()
    while left:
        if (run_id := left.popleft()) in seen:
            continue
        seen.add(run_id)
        children: dict[str, None] = {}
        count = 0
        async with aclosing(_entries(store, run_id)) as entries:
            async for record in entries:
                line = record.to_json()
                if on_terminal:
                    line = harmless_json(line.decode()).encode()
                out.write(line + b"\n")
                count += 1
                if (child := child_of(record)) is not None:
                    children[child] = None
        left.extendleft([child for child in reversed(children) if await _is_child(store, child, run_id)])
        if not count and prefix is None:
            await control.status(store, run_id)  # says that there is no such run, and which there are
    out.flush()


async def _is_child(store: Store, child: str, run_id: str) -> bool:
    """Tell whether a run is the child of this one, and not of the run from which this one was forked."""
    from durable_core.engine import FLOW, parent_of

    parent = parent_of(await store.get(child, FLOW))
    return parent is not None and parent[0] == run_id


async def _entries(store: Store, run_id: str) -> AsyncGenerator[StepRecord, None]:
    from durable_core.store import scan_of

    if (long := scan_of(store)) is None:
        for record in await store.list(run_id):
            yield record
        return
    async for record in long.scan(run_id):
        yield record


def read(file: IO[bytes], where: str) -> Sequence[StepRecord]:
    """Return the entries that `export` wrote. Raises `ClickException` with the line's number if the text is not a log."""
    from durable_core import StepRecord, StoreError

    found: list[StepRecord] = []
    revisions: dict[tuple[str, str], int] = {}
    for at, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = StepRecord.from_json(line)
        except StoreError as error:
            raise click.ClickException(f"{where}, line {at}: {error}") from None
        step = record.run_id, record.step_id
        due = revisions.get(step, -1) + 1
        if record.revision != due:
            raise click.ClickException(
                f"{where}, line {at}: revision {record.revision} of step {record.step_id!r} of run {record.run_id!r}, where"
                f" revision {due} is next: a line is missing, doubled or out of order"
            )
        revisions[step] = due
        found.append(record)
    return found


async def restore(store: Store, entries: Sequence[StepRecord], *, dry_run: bool, as_json: bool) -> None:
    """Append the entries, run by run. Raises `CopyConflict` before that if the store has other entries of a run."""
    from durable_core import MemoryStore, control

    runs = MemoryStore()
    for record in entries:
        await runs.append(record)
    counts: dict[str, int] = {}
    async for run_id in runs.runs():
        await control.copy(runs, run_id, store, dry_run=True)
        counts[run_id] = len(await runs.list(run_id))  # without its children, which are among the runs
    if not dry_run:
        with bar("importing", len(entries), stopped=_HALF_WAY) as advance:
            for run_id in counts:
                await control.copy(runs, run_id, counted(store, advance))
    for run_id, count in counts.items():
        _say_copied(run_id, count, dry_run=dry_run, as_json=as_json)
    if not counts:
        say("There was nothing to import.")


def _say_copied(run_id: str, count: int, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        write_json({"run_id": run_id, "entries": count, "dry_run": dry_run})
    else:
        write(f"{run_id}: {number(count, 'entry', 'entries')}{', nothing was written' if dry_run else ''}")
