"""Commands for stores as a whole, and for moving runs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import IO, Any, Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import RunId, Span

from .deciding import YES

_DRY_RUN: Final = click.option("--dry-run", is_flag=True, help="Change nothing; show what would happen.")


def _on_runs(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the runs that it is about."""
    return click.option("--prefix", metavar="TEXT", help="All runs whose ids begin with this; '' for all.")(fn)


def _check_named(run_ids: Sequence[str], prefix: str | None) -> None:
    if bool(run_ids) == (prefix is not None):
        raise click.UsageError("name runs, or select them with --prefix ('' selects all)")


@click.command()
@click.argument("run_ids", metavar="[RUN]...", nargs=-1, type=RunId())
@click.argument("to", metavar="TO")
@_on_runs
@_DRY_RUN
@on_store
def copy(asked: Asked, run_ids: Sequence[str], to: str, prefix: str | None, dry_run: bool) -> None:
    """Copy runs to another store, entry for entry.

    Each run's lock is held meanwhile. The original stays: clear it, or make sure that nothing runs it any more. Safe to repeat;
    refused if the other store has other entries of a run. Children of a run are separate runs.

    \b
    Example:
      durable copy booking-7 sqlite:archive.db
      durable copy --prefix booking- postgresql://app@db/app
    """
    from durable_cli._move import copy

    _check_named(run_ids, prefix)
    asked.run(lambda store: copy(store, run_ids, prefix, to, dry_run=dry_run, as_json=asked.as_json))


@click.command()
@click.argument("run_ids", metavar="[RUN]...", nargs=-1, type=RunId())
@_on_runs
@on_store
def export(asked: Asked, run_ids: Sequence[str], prefix: str | None) -> None:
    """Write the logs of runs to stdout as JSON, one entry on each line.

    The lines are those of StepRecord.to_json(), which import reads. A run may continue meanwhile.

    \b
    Example:
      durable export booking-7 > booking-7.jsonl
    """
    from durable_cli._move import export

    _check_named(run_ids, prefix)
    asked.run(lambda store: export(store, run_ids, prefix))


@click.command("import")
@click.argument("file", type=click.File("rb"), default="-")
@_DRY_RUN
@on_store
def import_(asked: Asked, file: IO[bytes], dry_run: bool) -> None:
    """Append runs that export wrote, from FILE or standard input.

    Each line is read and checked before anything is appended, and no entry may be missing. Safe to repeat; refused if the store
    has other entries of a run.

    \b
    Example:
      durable import booking-7.jsonl --store sqlite:archive.db
    """
    from durable_cli._move import read, restore

    entries = read(file, getattr(file, "name", "<stdin>"))
    asked.run(lambda store: restore(store, entries, dry_run=dry_run, as_json=asked.as_json), makes_store=True)


@click.command()
@click.argument("prefix", metavar="[PREFIX]", default="")
@click.option("--older", type=Span(), default="30d", show_default=True, help="Runs that ended longer ago than this.")
@_DRY_RUN
@YES
@on_store
def clean(asked: Asked, prefix: str, older: timedelta, dry_run: bool, yes: bool) -> None:
    """Delete runs that ended long ago, with their children.

    Lists them and asks for confirmation first. Skips runs that a process holds, and runs without a flow, whose end is not
    recorded. If the id of a deleted run is used again, that is a new run.

    \b
    Example:
      durable clean --older 90d --dry-run
    """
    from durable_cli._clean import clean

    clean(asked, prefix, older, dry_run=dry_run, yes=yes)


COMMANDS: Final[Mapping[str, click.Command]] = {"copy": copy, "export": export, "import": import_, "clean": clean}
