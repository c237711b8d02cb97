"""A check, and what it found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from .scratch import Scratch

Verdict = Literal["safe", "unsafe", "note"]


class Safe(NamedTuple):
    """What a check saw that is as it should be, in words, and in numbers where it measured something."""

    says: str
    figures: Mapping[str, float] | None = None


class Unsafe(Exception):
    """What a check saw that is not as it should be."""


class Note(Exception):
    """What a check could not look at, or what is good to know and does no harm."""


Look: TypeAlias = Callable[["Scratch"], Awaitable[Safe]]


class Check(NamedTuple):
    """One question to a store."""

    key: str
    """Its name in JSON."""
    title: str
    """What it looks at, in a few words."""
    promise: str
    """What a user may count on where it is safe; empty where that goes without saying."""
    danger: str
    """What may happen where it is not."""
    look: Look
    """Returns `Safe`, or raises `Unsafe` or `Note`; anything else that it raises is the store's failure."""


def check(key: str, title: str, *, promise: str = "", danger: str) -> Callable[[Look], Check]:
    """Make a check of the function that looks."""
    return lambda look: Check(key, title, promise, danger, look)


class Finding(msgspec.Struct, frozen=True):
    """What came of a check, as `--json` shows it."""

    check: str
    verdict: Verdict
    says: str
    seconds: float
    figures: Mapping[str, float] | None = None


_LEAST: Final = 3


def rounds(most: int, *, seconds: float) -> Iterator[int]:
    """Count to `most`, or for so long as there is time, but to three at least."""
    begun = monotonic()
    for number in range(most):
        if number >= _LEAST and monotonic() - begun > seconds:
            return
        yield number
