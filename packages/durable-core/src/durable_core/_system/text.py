"""Text for logs and messages: safe to store and to show, and not too long."""

from __future__ import annotations

import re
import reprlib
import sys
from typing import Final

UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Lone surrogates, and control characters other than newline and tab."""

_short: Final = reprlib.Repr()
_short.maxother = _short.maxstring = _short.maxlong = 60


def safe(text: str) -> str:
    """Escape unsafe characters."""
    return UNSAFE.sub(_escape, text)


def clip(text: str, limit: int, *, end: bool = False) -> str:
    """Return safe text of at most `limit` bytes of UTF-8: the beginning, or the `end`."""
    data = safe(text).encode()
    if len(data) <= limit:
        return data.decode()
    kept = data[-limit + 3 :] if end else data[: limit - 3]
    clipped = kept.decode(errors="ignore")
    return f"…{clipped}" if end else f"{clipped}…"


def class_name(type_: type) -> str:
    """Return the class's name with its module, or without it for a builtin."""
    module = type_.__module__
    if module in ("__main__", "__mp_main__"):  # the latter in a child of multiprocessing
        module = _program()
    return type_.__qualname__ if module == "builtins" else f"{module}.{type_.__qualname__}"


def _program() -> str:
    """Return the name under which others import the module with which the program was started."""
    from pathlib import Path  # imported here, because few programs need it

    main = sys.modules.get("__main__")
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name if spec is not None else Path(path).stem if path else "__main__"


def short(value: object) -> str:
    """Return a short repr. It never raises, even if the class's own `__repr__` does."""
    try:
        return _short.repr(value)
    except Exception:  # a long int raises ValueError here
        return f"<{type(value).__name__}>"


def describe(value: object) -> str:
    """Return the value and its type, as `nan (float)`."""
    return f"{short(value)} ({type(value).__qualname__})" if value is not None else "None"


def message(error: BaseException) -> str:
    """Return the text of an exception; if that raises, the name of the raised class."""
    try:
        return str(error) or type(error).__name__
    except Exception as unprintable:
        return f"its message raised {type(unprintable).__name__}"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
