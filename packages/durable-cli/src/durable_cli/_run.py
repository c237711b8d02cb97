"""Starting a run, and running it here."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from ._asked import Asked
from ._ending import REFUSED, fail
from ._load import printing_to_stderr
from ._output import say, write, write_json
from ._progress import Progress, how_to_help
from ._text import moment
from ._traceback import show

if TYPE_CHECKING:
    from durable_core import DurableError, Flow, RunSuspended, Store

Input = Mapping[str, Any]
_PATIENCE: Final = 0.5  # seconds before we say what we wait for


async def start(store: Store, asked: Asked, flow: Flow[..., Any], run_id: str, input: Input, at: datetime | None) -> None:
    """Start a run, and show its state."""
    from durable_core import control
    from durable_core.engine import check_input

    check_input(flow, input)
    await flow.start(store, run_id, at, **input)
    run = await control.status(store, run_id)
    if asked.as_json:
        write_json(run)
    elif run.status == "waiting" and not run.waiting_for:
        when = f" from {moment(run.until)} on" if run.until is not None else ""
        write(f"{run_id} waits for its turn: a worker with the flow {flow.name} takes it{when}")
    else:
        write(f"{run_id} was asked for before: it is {run.status}")


async def run(store: Store, asked: Asked, flow: Flow[..., Any], run_id: str, input: Input | None, again: str) -> None:
    """Run the flow as far as it can; write its result to stdout, and what happens meanwhile to stderr.

    `again` is the command that continues it.
    """
    from durable_core import ChildStopped, DurableError, RunSuspended, StepDrift, StepFailed, StepInterrupted, control
    from durable_core.engine import check_input, with_handler

    if input is not None:
        check_input(flow, input)
    progress = Progress(run_id, asked)
    task = asyncio.ensure_future(with_handler(flow, progress.tell).run(store, run_id, **(input or {})))
    try:
        with progress.shown(), printing_to_stderr():
            await asyncio.wait([task])
    except asyncio.CancelledError:
        await _stop(task, again)
        raise
    error = progress.crash if task.cancelled() else task.exception()
    says_how_it_stands = isinstance(error, RunSuspended | StepFailed | StepInterrupted | StepDrift | ChildStopped)
    if error is not None and error is not progress.crash and not says_how_it_stands:
        raise error
    status = await control.status(store, run_id)
    if asked.as_json:
        write_json(status)
    if isinstance(error, RunSuspended):
        await _say_what_it_waits_for(store, asked, error, again)
    elif error is not None:
        if isinstance(error, DurableError) and error is not progress.crash:
            fail(str(error), *_mending(asked, error))
        else:
            show(error.error if isinstance(error, ChildStopped) else error)
        if not isinstance(error, StepInterrupted):
            say(f"Why, and what helps:\n  {asked.command('why', run_id)}")
        raise click.exceptions.Exit(REFUSED)
    elif not asked.as_json:
        write_json(status.result)


async def _stop(task: asyncio.Task[Any], again: str) -> None:
    """Release the run after Ctrl-C. A second Ctrl-C doesn't wait for a function that can't be interrupted."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    task.cancel()
    _, running = await asyncio.wait([task], timeout=_PATIENCE)
    if running:
        say("A step is running that can't be interrupted; its outcome will be recorded. Ctrl-C again does not wait for it.")
        await asyncio.wait([task])
    say(f"Stopped. What is recorded stays; continue with:\n  {again}")


async def _say_what_it_waits_for(store: Store, asked: Asked, suspended: RunSuspended, again: str) -> None:
    from durable_core.engine import newest

    say(f"{suspended.run_id} is suspended. It waits for:")
    for (run_id, step_id), record in (await newest(store, suspended.pairs)).items():
        step = step_id if run_id == suspended.run_id else f"{run_id}: {step_id}"
        say(f"  {step}  {how_to_help(record, asked)}")
    say(f"Then a worker continues it, or:\n  {again}")


def _mending(asked: Asked, error: DurableError) -> Sequence[str]:
    """Return the commands that help if a step was interrupted."""
    from durable_core import StepInterrupted

    if not isinstance(error, StepInterrupted):
        return ()
    step = error.run_id, error.step_id
    resolve = asked.command("resolve", *step, options=["--value", "JSON", "--reason", "TEXT"])
    return f"It happened: {resolve}", f"It did not: {asked.command('retry', *step)}"
