"""Collects a store's warnings and log messages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .finding import Note, Safe, Unsafe, check

if TYPE_CHECKING:
    from .scratch import Scratch


class Heard(logging.Handler):
    """Keeps warnings and log messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.logged: Final[list[str]] = []
        self.warned: Sequence[warnings.WarningMessage] = ()

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append(record.getMessage())


@contextmanager
def hearing() -> Iterator[Heard]:
    """Keep warnings and log messages of this block, instead of showing them."""
    heard, root = Heard(), logging.getLogger()
    root.addHandler(heard)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            heard.warned = warned
            yield heard
    finally:
        root.removeHandler(heard)


@check("warnings", "Warnings", danger="runs could be lost")
async def warned(scratch: Scratch) -> Safe:
    # Stores warn users by `UserWarning`. Deprecations concern only the authors of stores.
    said = [str(each.message) for each in scratch.heard.warned if issubclass(each.category, UserWarning)]
    if said:
        raise Unsafe("; ".join(dict.fromkeys(said)))
    if scratch.heard.logged:
        raise Note(f"it logged: {'; '.join(dict.fromkeys(scratch.heard.logged))}")
    return Safe("no warnings, and nothing in its log")
