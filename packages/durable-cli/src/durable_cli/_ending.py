"""How the command ends: one line for what went wrong, and an exit code that means something."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Final

import click

REFUSED: Final = 1
"""Something was refused, or failed."""
USAGE: Final = 2
NOT_FOUND: Final = 3
TIMED_OUT: Final = 4
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells say it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE
_PLAINER: Final = "durable_cli.plainer"
_PLAIN: Final = str.maketrans("█░·…", "#=.~")
"""What we draw with, and what stands for it where a terminal or a pipe takes ASCII only."""


class PipeClosed(Exception):
    """Nobody reads what the command prints any more."""


def _write_plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(letter if letter.isascii() else "?" for letter in lacking), error.end


codecs.register_error(_PLAINER, _write_plainer)


@contextmanager
def ending() -> Iterator[None]:
    """Leave the program with an exit code, whatever happens inside; nothing but a fault of our own shows a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_PLAINER)  # a terminal that lacks a letter still shows the others
    try:
        yield
        sys.stdout.flush()
    except click.exceptions.Exit as left:
        sys.exit(left.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except (PipeClosed, BrokenPipeError):
        # Python flushes stdout once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            path = error.ctx.command_path
            click.echo(f"{error.ctx.get_usage()}\nTry '{path} --help' for help.\n", err=True)
        fail(error.format_message())
        sys.exit(error.exit_code)
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        fail(str(error) or type(error).__name__, *getattr(error, "__notes__", ()))
        sys.exit(code)


def fail(*lines: str) -> None:
    """Write what went wrong to stderr, harmlessly."""
    from ._output import say

    for number, line in enumerate(lines):
        say(line if number else f"Error: {line}")


def _code_of(error: Exception) -> int | None:
    """Return the exit code of an error that a user can do something about; None for others."""
    from durable_core import DurableError, NotFound, Refused

    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, TimeoutError) and not isinstance(error, Refused):
        return TIMED_OUT
    return REFUSED if isinstance(error, DurableError | OSError | ValueError | TypeError) else None
