"""Trying today's code on recorded runs."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

import click

from ._bar import bar
from ._each import Chosen, find
from ._ending import NOT_FOUND, REFUSED, fail
from ._load import printing_to_stderr
from ._move import read
from ._output import say, write, write_json
from ._text import moment, number

if TYPE_CHECKING:
    from durable_core import Flow, Store
    from durable_core.control import RunState
    from durable_core.testing import ReplayedRun

_NEWEST: Final = 1000


class Checked(NamedTuple):
    """The check: a flow, the named runs or those with a status that began since a time, and the expected differences."""

    flow: Flow[..., Any]
    run_ids: Sequence[str]
    states: Collection[RunState]
    since: datetime | None
    expected: Sequence[str]


def check_files(checked: Checked, files: Sequence[IO[bytes]], *, as_json: bool) -> None:
    """Replay the runs that `export` wrote to files; exit with code 3 if there is no run of the flow."""
    from durable_core import MemoryStore

    entries = [record for file in files for record in read(file, getattr(file, "name", "<stdin>"))]

    async def work() -> None:
        store = MemoryStore()
        for record in entries:
            await store.append(record)
        where = ", ".join(file.name for file in files)
        if not await check_store(store, checked, where, as_json=as_json) and not (checked.states or checked.since):
            raise click.exceptions.Exit(NOT_FOUND)

    asyncio.run(work())


async def check_store(store: Store, checked: Checked, where: str, *, as_json: bool) -> int:
    """Replay runs, report the results, and return the number of runs; exit with code 1 if the code doesn't fit one.

    `where` is the place of the runs for messages.
    """
    from durable_core.testing import replay_check

    run_ids, damage = checked.run_ids, None
    if not run_ids:
        runs, damage = await find(store, Chosen(checked.flow.name, checked.states, checked.since))
        run_ids = [run.run_id for run in runs]
    with bar("replaying", len(run_ids)) as advance, printing_to_stderr():
        report = await replay_check(checked.flow, store, run_ids, expected=checked.expected, on_run=lambda _: advance())
    for run in report.runs:
        _tell(run, as_json=as_json)
    if not run_ids:
        say(f"There is no run of {_wanted(checked)} in {where}{await _others(store, checked.flow.name)}: nothing was checked.")
    elif not as_json:
        fitting = len(report.runs) - len(report.misfits)
        write(f"{fitting:,} of {number(len(run_ids), 'run')} of flow {checked.flow.name} fit.")
    if damage is not None:
        fail(str(damage))
    if damage is not None or report.misfits:
        raise click.exceptions.Exit(REFUSED)
    return len(run_ids)


def _wanted(checked: Checked) -> str:
    """Return what was looked for."""
    states = f" with status {' or '.join(checked.states)}" if checked.states else ""
    since = f" that began since {moment(checked.since)}" if checked.since is not None else ""
    return f"flow {checked.flow.name}{states}{since}"


async def _others(store: Store, name: str) -> str:
    """Return the flows of the newest runs if none is of this name, because the flow may have been renamed."""
    from durable_core import CorruptLog, control

    names: set[str] = set()
    with suppress(CorruptLog):  # of one log: the others were read
        async for run in control.runs(store, only_flows=True, limit=_NEWEST):
            names.add(run.flow or "")
    return f", which has runs of {', '.join(sorted(names))}" if names and name not in names else ""


def _tell(run: ReplayedRun, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        write_json({**msgspec.structs.asdict(run), "fits": run.fits})
    elif not run.fits:
        write(f"{run.run_id} does not fit:")
        for each in run.differences:
            write(f"  {each.what:<9}  {each.why}")
