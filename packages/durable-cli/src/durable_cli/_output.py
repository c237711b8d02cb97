"""The output of commands: JSON for programs, tables and text for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from durable_core import StepRecord

_WIDE = 10_000  # columns in a pipe, whose reader may cut lines


def write_json(value: Any) -> None:
    """Write a JSON value on its own line, in ASCII, so that it can't control a terminal."""
    import json

    import msgspec

    from durable_core import StepRecord

    plain = record_json(value) if isinstance(value, StepRecord) else value
    click.echo(json.dumps(msgspec.to_builtins(plain), ensure_ascii=True))


def record_json(record: StepRecord) -> dict[str, Any]:
    """Return an entry with its result as a JSON value."""
    import msgspec

    return {**msgspec.structs.asdict(record), "result": record.value()}


def write(line: str = "") -> None:
    """Write a line of plain text, made harmless."""
    _echo(line, sys.stdout)


def say(line: str) -> None:
    """Write a line for people to stderr, with escapes: anything besides the result."""
    _echo(line, sys.stderr)


def _echo(text: str, stream: TextIO) -> None:
    """Write text. On a terminal, wrap its lines between words, except indented ones, such as commands."""
    from ._text import harmless

    lines = harmless(text, keep_lines=True).split("\n")
    if stream.isatty():
        from shutil import get_terminal_size
        from textwrap import wrap

        width = get_terminal_size().columns
        lines = [
            part
            for line in lines
            for part in (
                [line] if line.startswith(" ") else wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
            )
        ]
    click.echo("\n".join(lines), file=stream)


def console() -> Console:
    """Return the console for tables: with colours on a terminal; plain, and as wide as necessary, in a pipe."""
    from rich.console import Console

    class Screen(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this where it has caught it, and would end the program by itself

    is_terminal = sys.stdout.isatty()
    return Screen(width=None if is_terminal else _WIDE, highlight=False, markup=False, emoji=False)


def draw(lines: Iterable[Text], screen: Console) -> None:
    """Print lines as they are: where one is wider than the terminal, that wraps it."""
    for line in lines:
        if screen.is_terminal:
            screen.print(line, soft_wrap=True)
        else:
            sys.stdout.write(f"{line.plain}\n")


def error_console() -> Console:
    """Return what draws on stderr, where that is a terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def pretty(value: Any) -> str:
    """Return a JSON value over several lines, harmless."""
    import json

    from ._text import harmless_json

    return harmless_json(json.dumps(value, ensure_ascii=False, indent=2))
