"""Text that is safe to store and to show: no NUL, no lone surrogates, no terminal escapes, and not too long."""

from __future__ import annotations

import re
from typing import Final

UNSAFE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Lone surrogates, and control characters other than newline and tab."""


def safe(text: str) -> str:
    """Write what is unsafe as an escape."""
    return UNSAFE.sub(_escape, text)


def clip(text: str, limit: int, *, end: bool = False) -> str:
    """Return safe text of at most `limit` bytes of UTF-8: the beginning, or the `end`."""
    data = safe(text).encode()
    if len(data) <= limit:
        return data.decode()
    kept = data[-limit + 3 :] if end else data[: limit - 3]
    clipped = kept.decode(errors="ignore")
    return f"…{clipped}" if end else f"{clipped}…"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
