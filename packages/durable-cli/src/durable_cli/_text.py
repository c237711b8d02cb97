"""Text from logs, made harmless for a terminal, and shortened."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

_HARMFUL: Final = re.compile(
    # Control characters, characters that reverse text or are invisible, line ends of Unicode, and lone surrogates.
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_HARMFUL_BUT_LINES: Final = re.compile(f"(?![\n\t]){_HARMFUL.pattern}")


def harmless(text: str, *, keep_lines: bool = False) -> str:
    """Escape characters that could control a terminal or are invisible. `keep_lines` keeps newlines and tabs."""
    return (_HARMFUL_BUT_LINES if keep_lines else _HARMFUL).sub(_escape, text)


def harmless_json(text: str) -> str:
    """Do the same in JSON, without changing its meaning."""
    return _HARMFUL_BUT_LINES.sub(_escape_in_json, text)


def cut(text: str, limit: int) -> str:
    """Return harmless text on one line of at most `limit` characters, with an ellipsis if something is left out."""
    shown = harmless(text[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def brief(json: bytes | None, limit: int = 200) -> str:
    """Return the beginning of encoded JSON on one line; empty if there is none. The rest is not read."""
    return "" if json is None else cut(json[: 4 * limit + 4].decode(errors="ignore"), limit)


def quoted(word: str) -> str:
    """Quote a word for a shell. Characters that could control a terminal become escapes, which bash and zsh understand."""
    import shlex

    if harmless(word) == word:
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _HARMFUL.sub(lambda found: f"\\U{ord(found[0]):08x}", plain) + "'"


def span(seconds: float | timedelta) -> str:
    """Format a duration: `340 ms`, `2.1 s`, `4 min`, `3 h`, `12 d`."""
    seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    for limit, unit, name in ((60, 1.0, "s"), (3600, 60.0, "min"), (86_400, 3600.0, "h")):
        if seconds < 0.01:
            return f"{seconds * 1000:.2g} ms"
        if seconds < 1:
            return f"{seconds * 1000:.0f} ms"
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds / unit < 10 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def moment(at: datetime) -> str:
    """Format a time in the machine's time zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def soon(at: datetime, now: datetime) -> str:
    """Format a time in the machine's time zone, with the day if it isn't today, and the year if it isn't near."""
    local, today = at.astimezone(), now.astimezone()
    if local.date() == today.date():
        return local.strftime("%H:%M:%S")
    return local.strftime("%d %b %H:%M" if abs(at - now) < timedelta(days=150) else "%Y-%m-%d %H:%M")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape_in_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def number(count: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: `1 run`, `2 runs`, `1,200 entries`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
