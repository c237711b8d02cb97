"""Asking for confirmation before something that can't be undone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import click

from ._ending import REFUSED
from ._output import say
from ._text import harmless

_NOTHING: Final = "Nothing was done."


def agree(question: str, *, shown: Sequence[str] = ()) -> None:
    """Show what will be done, and ask, on stderr; exit unless the answer is yes.

    This runs outside any event loop, so that Ctrl-C ends the program at once, and no lock is held while a person thinks.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("this command asks for confirmation, and there is no terminal to ask on: pass --yes")
    for line in shown:
        say(line)
    try:
        agreed = click.confirm(harmless(question), err=True)
    except click.Abort:
        click.echo(err=True)
        say(_NOTHING)
        raise
    if not agreed:
        say(_NOTHING)
        raise click.exceptions.Exit(REFUSED)


def system_user() -> str:
    """Return the name of the logged-in user. Raises `UsageError` if the system has none."""
    from getpass import getuser

    try:
        return getuser()
    except (OSError, KeyError, ImportError):
        raise click.UsageError("the system doesn't say who you are: give your name with --by") from None
