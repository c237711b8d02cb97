"""Ids: those that people give to runs and steps, and those that tell one append from another."""

from __future__ import annotations

import os
import re
from typing import Final

from .forks import forks

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_KEPT: Final = 4096

legal_ids: Final[set[str]] = set()
"""Printable ids that were checked lately: most ids are checked again and again."""


def check_id(what: str, value: object) -> str:
    """Return an id as a plain str; refuse one that is not 1 to 512 bytes of UTF-8 without control characters."""
    if not (type(value) is str and value.isascii() and value.isprintable() and 0 < len(value) <= 512):
        value = _plain(what, value)
        if not value.isprintable():
            return value
    if len(legal_ids) >= _KEPT:
        legal_ids.clear()
    legal_ids.add(value)
    return value


def _plain(what: str, value: object) -> str:
    """Return an unusual id as a plain str, or say what is wrong with it."""
    rule = "expected 1 to 512 bytes of UTF-8 without control characters"
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}; {rule}")
    plain = str.__str__(value)
    size = len(plain.encode(errors="surrogatepass"))
    if not 0 < size <= 512:
        fault = f"has {size} bytes"
    elif _CONTROL.search(plain):
        fault = "holds a control character"
    elif _SURROGATE.search(plain):
        fault = "holds a lone surrogate"
    else:
        return plain
    raise ValueError(f"{what} {plain if len(plain) <= 80 else plain[:60] + '…'!r} {fault}; {rule}")


def check_own_id(what: str, value: object) -> str:
    """Return an id as a plain str; refuse one that `check_id` refuses, or that is the library's."""
    if type(value) is not str or value not in legal_ids:
        value = check_id(what, value)
    if value[0] == "$":
        raise ValueError(f"{what} {value!r} starts with '$'; such ids are the library's own, choose another")
    return value


_unused: list[str] = []
_process = 0


def new_id() -> str:
    """Return 12 random bytes as text, never the same in a forked child and its parent."""
    global _unused, _process
    while True:
        if (process := forks()) != _process:
            _unused, _process = [], process
        try:
            return _unused.pop()
        except IndexError:
            _unused.extend(os.urandom(12 * 256).hex(" ", 12).split())
