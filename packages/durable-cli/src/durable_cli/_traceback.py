"""The traceback of a user's own error, from the user's code on."""

from __future__ import annotations

import asyncio
import importlib
import traceback
from pathlib import Path

import click

from ._text import harmless


def show(error: BaseException) -> None:
    """Write the traceback to stderr, without what the command, the library and the event loop did before the user's code."""
    import durable_core

    machinery = (__file__, durable_core.__file__, asyncio.__file__, importlib.__file__)
    described = traceback.TracebackException.from_exception(error)
    _shorten(described, ("<frozen ", *(str(Path(file).parent) for file in machinery)))
    click.echo(harmless("".join(described.format()), keep_lines=True).rstrip("\n"), err=True)


def _shorten(described: traceback.TracebackException | None, machinery: tuple[str, ...]) -> None:
    while described is not None:
        frames = [*described.stack]
        while frames and frames[0].filename.startswith(machinery):
            del frames[0]
        described.stack = traceback.StackSummary.from_list(frames)
        for inner in described.exceptions or ():
            _shorten(inner, machinery)
        described = described.__cause__ or described.__context__
