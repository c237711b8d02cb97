"""The end of the command: one line for an error, and a meaningful exit code."""

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
"""The characters for drawing, and their replacements if a terminal or a pipe takes only ASCII."""


class PipeClosed(Exception):
    """The reader of the command's output has gone."""


def _write_plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_PLAIN)
    return "".join(letter if letter.isascii() else "?" for letter in lacking), error.end


codecs.register_error(_PLAINER, _write_plainer)


@contextmanager
def ending() -> Iterator[None]:
    """Exit with a code, whatever happens inside. Only an error of the command itself shows a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=_PLAINER)  # a terminal without a character still shows the others
    try:
        yield
        sys.stdout.flush()
    except click.exceptions.Exit as left:
        sys.exit(left.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except (PipeClosed, BrokenPipeError):
        # Python flushes stdout again at its end, and would report an error.
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
    """Write an error to stderr, with escapes."""
    from ._output import say

    for number, line in enumerate(lines):
        say(line if number else f"Error: {line}")


def _code_of(error: Exception) -> int | None:
    """Return the exit code of an error that a user can fix; None for others."""
    from durable_core import DurableError, NotFound, Refused

    if isinstance(error, NotFound):
        return NOT_FOUND
    if isinstance(error, TimeoutError) and not isinstance(error, Refused):
        return TIMED_OUT
    return REFUSED if isinstance(error, DurableError | OSError | ValueError | TypeError) else None
