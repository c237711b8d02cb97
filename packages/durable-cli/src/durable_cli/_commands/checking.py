"""Commands that check stores, and code against what stores hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any, Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import Moment, RunId, RunState


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on each line.")
def stores(as_json: bool) -> None:
    """List the kinds of stores that are installed, and which distributions serve them.

    Stores of durable that are not installed are listed with the command that installs them.

    As JSON, one object for each scheme: scheme, distribution, version (null if it is not installed), install (the command
    that installs it, or null).

    \b
    Example:
      durable stores
    """
    from durable_cli._stores import stores

    stores(as_json=as_json)


@click.command()
@click.argument("url", metavar="[URL]", required=False)
@click.option("--processes", type=click.IntRange(2, 64), default=8, show_default=True, help="How many other processes race.")
@on_store
def doctor(asked: Asked, url: str | None, processes: int) -> None:
    """Test whether a store keeps its promises.

    It writes runs of its own, whose ids begin with doctor-, from this process and eight others, and removes them at the end.
    No other run is touched. It takes ten to thirty seconds, and at most two minutes if the store is slow or hangs.

    Each process has its own connections. Use fewer --processes if the server allows few.

    The exit code is 0 if everything is safe, and 1 if something is not. URL overrides --store.

    As JSON, one object for each check: check, verdict (safe, unsafe or note), says, seconds (how long the check took), figures
    (measured numbers, times in seconds, or null).

    \b
    Example:
      durable doctor sqlite:durable.db
    """
    from durable_cli._doctor.report import doctor

    doctor(asked if url is None else Asked(url, as_json=asked.as_json), processes=processes)


@click.command()
@click.argument("flow", metavar="MODULE:FLOW")
@click.argument("run_ids", metavar="[RUN]...", nargs=-1, type=RunId())
@click.option("--from", "files", metavar="FILE", multiple=True, type=click.File("rb"), help="Runs as export wrote them.")
@click.option("--status", "states", multiple=True, type=RunState(), help="Runs with this status; may be repeated.")
@click.option("--since", type=Moment(), help="Runs that began since: 2026-03-29T09:00, or a span ago, such as 2h.")
@click.option("--expect", "expected", metavar="STEP", multiple=True, help="A step that is meant to be new or removed.")
@on_store
def check(
    asked: Asked,
    flow: str,
    run_ids: Sequence[str],
    files: Sequence[IO[bytes]],
    states: Sequence[Any],
    since: datetime | None,
    expected: Sequence[str],
) -> None:
    """Replay recorded runs with today's code before you deploy it, and say where the code doesn't match.

    All runs of the flow are replayed, unless you name some. No step's function is called and nothing is written, but the flow's
    own code between its steps runs. A run that has not ended may stop at a step without an outcome, such as an approval. A run
    that has ended must come to the same end.

    Exit code 0: all runs fit, or there are none; 1: a run doesn't fit; 3: there is no such run or store, or no run of this flow
    in FILE.

    As JSON, one object for each run: run_id, flow, ended, fits, replayed (how many steps), stops_at (steps without an outcome),
    differences (each with what, step_id and why).

    \b
    Example:
      durable check refund:refund --status waiting
      durable check refund:refund --from tests/runs.jsonl
    """
    from durable_cli._check import Checked, check_files, check_store
    from durable_cli._load import load_flow, not_leaving

    if run_ids and (states or since):
        raise click.UsageError("name runs, or select them with --status and --since, not both")
    found = load_flow(flow)
    checked = Checked(found, run_ids, states, since, expected)
    with not_leaving():
        if files:
            check_files(checked, files, as_json=asked.as_json)
        else:
            asked.run(lambda store: check_store(store, checked, asked.shown_url, as_json=asked.as_json))


COMMANDS: Final[Mapping[str, click.Command]] = {"stores": stores, "doctor": doctor, "check": check}
