"""Ids: those of runs and steps, and those that distinguish appends."""

from __future__ import annotations

import os
import re
from typing import Final

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]|(?P<surrogate>[\ud800-\udfff])")


def check_id(what: str, value: object) -> str:
    """Return an id as a plain str. Refuse one that isn't 1 to 512 bytes of UTF-8 without control characters."""
    if type(value) is str and value.isascii() and value.isprintable() and 0 < len(value) <= 512:
        return value
    rule = "expected 1 to 512 bytes of UTF-8 without control characters"
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}; {rule}")
    plain = str.__str__(value)
    size = len(plain.encode(errors="surrogatepass"))
    unfit = _UNFIT.search(plain)
    if 0 < size <= 512 and unfit is None:
        return plain
    fault = f"has {size} bytes"
    if unfit is not None:
        fault = f"contains a {'lone surrogate' if unfit['surrogate'] else 'control character'}"
    raise ValueError(f"{what} {plain if len(plain) <= 80 else plain[:60] + '…'!r} {fault}; {rule}")


def check_own_id(what: str, value: object) -> str:
    """Return an id as a plain str. Refuse one that `check_id` refuses, or that is reserved for the library."""
    value = check_id(what, value)
    if value[0] == "$":
        raise ValueError(f"{what} {value!r} starts with '$', which is reserved for the library; choose another id")
    return value


def check_name(what: str, value: object) -> str:
    """Return a name that becomes a part of other ids, as a plain str. Refuse what `check_own_id` refuses, and a slash."""
    value = check_own_id(what, value)
    if "/" in value:
        raise ValueError(f"{what} {value!r} contains a '/', which separates it from other ids; write {value.replace('/', '-')!r}")
    return value


_unused: list[str] = []
_process = 0


def new_id() -> str:
    """Return 12 random bytes as text, which differ in a forked child and its parent."""
    global _unused, _process
    while True:
        if (process := os.getpid()) != _process:
            _unused, _process = [], process
        try:
            return _unused.pop()
        except IndexError:
            _unused.extend(os.urandom(12 * 256).hex(" ", 12).split())
