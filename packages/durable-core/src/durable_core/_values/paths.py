"""Paths into values, `$.items[3].price`, and values short enough for a message."""

from __future__ import annotations

import reprlib
from typing import Any, Final

_LENGTH: Final = 60

_short: Final = reprlib.Repr()
_short.maxother = _short.maxstring = _short.maxlong = _LENGTH


def step(value: object, key: Any) -> str:
    """Return the step in a path from `value` to its part: into a dict, to an attribute, or to a member."""
    if isinstance(value, dict):
        return f".{key}" if type(key) is str and key.isidentifier() and len(key) <= _LENGTH else f"[{short(key)}]"
    if isinstance(value, (set, frozenset)):
        return "[...]"
    return f".{key}" if isinstance(key, str) else f"[{key}]"


def short(value: object) -> str:
    """Return a short repr. It never raises, whatever a class's own `__repr__` does."""
    try:
        return _short.repr(value)
    except Exception:  # a long int raises ValueError here
        return f"<{type(value).__name__}>"


def describe(value: object) -> str:
    """Return the value and its type, as `nan (float)`."""
    return f"{short(value)} ({type(value).__qualname__})" if value is not None else "None"


def message(error: BaseException) -> str:
    """Return the text of an exception; where making it raises, the name of what was raised."""
    try:
        return str(error) or type(error).__name__
    except Exception as unprintable:
        return f"its message raised {type(unprintable).__name__}"
