"""Commands that look at stores as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from durable_cli._asked import Asked, on_store


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def stores(as_json: bool) -> None:
    """List the kinds of stores that are installed, and which distribution serves them.

    Those of our own family that are not installed are listed with what installs them.

    As JSON, one object a scheme: scheme, distribution, version (null where it is not installed), install (the command that
    installs it, else null).

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
    """Check for real that a store keeps what it promises.

    It writes runs of its own, whose ids begin with doctor-, from this process and eight others, and removes them at the end.
    No other run is touched. It takes ten to thirty seconds, on a store that is slow or hangs two minutes at most.

    Each process has connections of its own: take fewer --processes where a server allows few.

    The exit code is 0 where all is safe, and 1 where something is not. URL goes before --store.

    As JSON, one object a check: check, verdict (safe, unsafe or note), says, seconds (how long the check took), figures (numbers
    that were measured, times in seconds, or null).

    \b
    Example:
      durable doctor sqlite:durable.db
    """
    from durable_cli._doctor.report import doctor

    doctor(asked if url is None else Asked(url, as_json=asked.as_json), processes=processes)


COMMANDS: Final[Mapping[str, click.Command]] = {"stores": stores, "doctor": doctor}
