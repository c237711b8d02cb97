"""Checks and their findings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from .scratch import Scratch

Verdict = Literal["safe", "unsafe", "note"]


class Safe(NamedTuple):
    """A check found no fault. Says so in words, and in figures if it measured something."""

    says: str
    figures: Mapping[str, float] | None = None


class Unsafe(Exception):
    """A check found a fault."""


class Note(Exception):
    """A check could not look, or found something harmless that is good to know."""


Look: TypeAlias = Callable[["Scratch"], Awaitable[Safe]]


class Check(NamedTuple):
    """One check of a store."""

    key: str
    """Its name in JSON."""
    title: str
    """What it checks, in a few words."""
    promise: str
    """What users may count on if the check finds no fault. Empty if that needs no saying."""
    danger: str
    """What may happen if it finds one."""
    look: Look
    """Returns `Safe`, or raises `Unsafe` or `Note`. Any other exception is a failure of the store."""


def check(key: str, title: str, *, promise: str = "", danger: str) -> Callable[[Look], Check]:
    """Make a check from a function that looks."""
    return lambda look: Check(key, title, promise, danger, look)


class Finding(msgspec.Struct, frozen=True):
    """The result of a check, as `--json` shows it."""

    check: str
    verdict: Verdict
    says: str
    seconds: float
    figures: Mapping[str, float] | None = None


_LEAST: Final = 3


def rounds(most: int, *, seconds: float) -> Iterator[int]:
    """Yield up to `most` numbers, and at least three. Stop after `seconds`."""
    begun = monotonic()
    for number in range(most):
        if number >= _LEAST and monotonic() - begun > seconds:
            return
        yield number
