"""What a person reads on a terminal of eighty columns."""

from __future__ import annotations

from collections.abc import Callable

import click
import pytest

from durable_cli import main
from tests.cli.conftest import Durable
from tests.cli.terminal import Terminal

Start = Callable[..., Terminal]
COMMANDS = [name for modules in main.SECTIONS.values() for names in modules.values() for name in names]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_into_eighty_columns(name: str) -> None:
    """No line of it is broken by the terminal."""
    with click.Context(main.durable, info_name="durable", terminal_width=78) as above:
        command = main.durable.get_command(above, name) if name else main.durable
        assert command is not None
        with click.Context(command, info_name=name, parent=above, terminal_width=78) as ctx:
            lines = command.get_help(ctx).splitlines()
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize(("typed", "near"), [("aprove", "; did you mean approve?\n"), ("shw", "; did you mean show?\n")])
def test_a_command_that_is_misspelled_is_guessed(durable: Durable, typed: str, near: str) -> None:
    """Where one is near."""
    done = durable(typed)
    assert done.code == 2
    assert done.err.endswith(f"Error: there is no command '{typed}'{near}")


def test_messages_are_broken_between_words_on_a_terminal(durable: Durable, terminal: Start, seeded: str) -> None:
    """A command in them stays on one line, and in a pipe every message does."""
    wrong = ("runs", "--status", "fialed", "--store", seeded)
    screen = terminal(*wrong)
    assert screen.end() == 2
    message = screen.plain[screen.plain.index("Error:") :].rstrip("\n").split("\n")
    assert len(message) > 1
    assert all(len(line) <= 80 for line in message)
    assert f"{' '.join(message)}\n" == durable(*wrong).err.partition("\n\n")[2]
    waits = terminal("wait", "asked", "--timeout", "0.1s", "--store", seeded)
    assert waits.end() == 4
    assert waits.plain.endswith(f"Why, and what helps:\n  durable why asked --store {seeded}\n")
