"""Commands that look at runs, and change nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import FlowName, Moment, RunId, RunState, Span, StepId

_STATES: Final = (
    "One of waiting, running, interrupted, crashed, parked, cancelling, succeeded, failed, cancelled, open;"
    " may be given several times."
)
_RUN: Final = click.argument("run_id", metavar="RUN", type=RunId())


@click.command()
@click.argument("prefix", default="", type=RunId())
@click.option("--status", "states", multiple=True, type=RunState(), help=_STATES)
@click.option("--flow", type=FlowName(), help="The name of its flow.")
@click.option("--since", type=Moment(), help="Runs that began since: 2026-03-29T09:00, or a span ago, such as 2h.")
@click.option("--before", metavar="RUN", type=RunId(), help="Runs that began before this one, the last of a page.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="The number of runs on a page.")
@on_store
def runs(asked: Asked, states: Sequence[Any], **given: Any) -> None:
    """List runs, newest first: flow, state, and what each waits for or failed at.

    PREFIX is the beginning of their ids. Runs without a flow are in no index: they are listed with `--status open`, or if there
    is no run with a flow. The last line is the command for the next page.

    \b
    Example:
      durable runs refund- --status failed --since 1d
    """
    from durable_cli._runs import Filter, list_runs

    asked.run(lambda store: list_runs(store, asked, Filter(states=states, **given)))


@click.command()
@_RUN
@click.option(
    "--step", "step_id", metavar="STEP", type=StepId(), help="One step in full: entries, who decided, result, traceback."
)
@click.option("--all", "all_steps", is_flag=True, help="Every step of a long run.")
@on_store
def show(asked: Asked, run_id: str, step_id: str | None, all_steps: bool) -> None:
    """Show a run: its state, and the timeline of its steps.

    If a run has more than sixty steps, this shows the first and the last twenty, and between them those that did not succeed.

    \b
    Example:
      durable show refund-1004
      durable show refund-1004 --step charge
    """
    from durable_cli import _show

    if step_id is None:
        asked.run(lambda store: _show.show(store, asked, run_id, all_steps=all_steps))
    else:
        asked.run(lambda store: _show.show_step(store, asked, run_id, step_id))


@click.command()
@_RUN
@on_store
def watch(asked: Asked, run_id: str) -> None:
    """Show a run live, until it ends.

    In a pipe, one line for each entry of its log. Exit code 0 if it succeeded, 1 if it failed or was cancelled. A run without
    a flow has no end.

    \b
    Example:
      durable watch refund-1004
    """
    from durable_cli._ending import REFUSED
    from durable_cli._watch import watch

    with _going_on(run_id):
        succeeded = asked.run(lambda store: watch(store, asked, run_id))
    if not succeeded:
        raise click.exceptions.Exit(REFUSED)


@click.command()
@_RUN
@click.option("--timeout", type=Span(), help="Give up after this long, such as 30s or 5m, with exit code 4.")
@on_store
def wait(asked: Asked, run_id: str, timeout: timedelta | None) -> None:
    """Wait for a run to end, and print its value as JSON.

    Exit code 0 if it succeeded, 1 if it failed or was cancelled, 3 if there is no such run, 4 if it did not end in time. With
    --json, the run's status is printed in all of these cases except 3.

    \b
    Example:
      durable wait refund-1004 --timeout 5m
    """
    from durable_cli._watch import wait

    with _going_on(run_id):
        asked.run(lambda store: wait(store, asked, run_id, timeout))


@click.command()
@_RUN
@on_store
def why(asked: Asked, run_id: str) -> None:
    """Explain why a run is stuck, since when, and what would help.

    \b
    Example:
      durable why refund-1004
    """
    from durable_cli._why import why

    asked.run(lambda store: why(store, asked, run_id))


@click.command()
@click.argument("prefix", default="", type=RunId())
@on_store
def pending(asked: Asked, prefix: str) -> None:
    """List what waits for people, oldest first, and how to decide it.

    \b
    Example:
      durable pending
    """
    from durable_cli._pending import list_pending

    asked.run(lambda store: list_pending(store, asked, prefix))


@contextmanager
def _going_on(run_id: str) -> Iterator[None]:
    """Say after Ctrl-C that the run itself continues."""
    try:
        yield
    except KeyboardInterrupt:
        from durable_cli._text import harmless

        click.echo(f"Run {harmless(run_id)} continues as before.", err=True)
        raise


COMMANDS: Final[Mapping[str, click.Command]] = {
    "runs": runs,
    "show": show,
    "watch": watch,
    "wait": wait,
    "why": why,
    "pending": pending,
}
