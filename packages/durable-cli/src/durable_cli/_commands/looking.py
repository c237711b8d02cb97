"""Commands that look at runs, and change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from durable_cli._asked import Asked, on_store
from durable_cli._kinds import RunId


@click.command()
@click.argument("run_id", metavar="RUN", type=RunId())
@on_store
def why(asked: Asked, run_id: str) -> None:
    """Say in words why a run does not go on, since when, and what would help.

    \b
    Example:
      durable why refund-1004
    """
    from durable_cli._why import why

    asked.run(lambda store: why(store, run_id, as_json=asked.as_json))


COMMANDS: Final[Mapping[str, click.Command]] = {"why": why}
