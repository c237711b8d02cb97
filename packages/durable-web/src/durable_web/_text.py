"""Text from logs, made harmless in a page. Characters that hide or reverse text are shown as escapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from markupsafe import Markup, escape

from ._showing import Shown

_HIDDEN: Final = re.compile(
    # Control characters except newline and tab, characters that reverse text or are invisible, and lone surrogates.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    "\ud800-\udfff]"
)


def visible(value: Any) -> Any:
    """Escape characters that would reverse or hide text. Markup is returned as it is."""
    return _HIDDEN.sub(_escape, value) if type(value) is str else value


def exact(text: str) -> Markup:
    """Return a string that is only HTML-escaped, for fields that are posted back."""
    return escape(text)


def span(seconds: float | timedelta) -> str:
    """Write a duration as people say it: `340 ms`, `2.1 s`, `4 min`, `40 h`, `12 d`."""
    seconds = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    for limit, unit, name in ((60, 1.0, "s"), (3600, 60.0, "min"), (172_800, 3600.0, "h")):
        if seconds < 1:
            return f"{max(seconds, 0) * 1000:.0f} ms"
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}" if seconds / unit < 9.95 else f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def moment(at: datetime) -> Markup:
    """Return a time in UTC, also readable by programs."""
    return Markup('<time datetime="{}">{:%Y-%m-%d %H:%M:%S} UTC</time>').format(at.isoformat(), at.astimezone(UTC))


def ago(at: datetime) -> Markup:
    """Return how long ago or how far ahead a time is, with the time itself as its title."""
    seconds = (datetime.now(UTC) - at).total_seconds()
    words = "just now" if -2 < seconds < 60 else f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"
    html = Markup('<time datetime="{}" title="{:%Y-%m-%d %H:%M:%S} UTC">{}</time>')
    return html.format(at.isoformat(), at.astimezone(UTC), words)


def clock(at: datetime, day_of: datetime | None = None) -> str:
    """Return a time in UTC, without its day if that is the day of another time."""
    at = at.astimezone(UTC)
    return f"{at:%H:%M:%S}" if day_of is not None and at.date() == day_of.astimezone(UTC).date() else f"{at:%Y-%m-%d %H:%M:%S}"


def cut(text: str, most: int = 160) -> str:
    """Return the beginning of a string on one line."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most and len(text) <= 4 * most else f"{line[:most]}…"


def brief(shown: Shown) -> str:
    """Return the beginning of a value on one line."""
    return cut(_plain(shown, [40]))


def _plain(shown: Shown, left: list[int]) -> str:
    left[0] -= 1
    if shown.kind not in ("table", "list"):
        return shown.text[:400]
    members = [(name, _plain(each, left)) for name, each in shown.rows if left[0] > 0]
    if shown.kind == "list":
        return f"[{', '.join(text for _, text in members)}]"
    return f"{{{', '.join(f'{name}: {text}' for name, text in members)}}}"


def as_json(value: Any) -> str:
    """Return a value as JSON that people can edit, without characters that hide or reverse text."""
    return _HIDDEN.sub(_escape_json, msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def columns(shown: Shown) -> list[str]:
    """Return the columns of a list that is a table, because each of its members has the same few short ones."""
    names = [[name for name, _ in row.rows] for _, row in shown.rows if row.kind == "table" and not row.left_out]
    cells = [cell for _, row in shown.rows for _, cell in row.rows]
    is_plain = all(cell.kind not in ("table", "list") and len(cell.text) <= 100 for cell in cells)
    alike = len(names) == len(shown.rows) > 0 and all(each == names[0] for each in names)
    return names[0] if alike and is_plain and len(names[0]) <= 6 else []


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "exact": exact,
    "as_json": as_json,
    "span": span,
    "moment": moment,
    "ago": ago,
    "clock": clock,
    "cut": cut,
    "brief": brief,
    "columns": columns,
}


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escape_json(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
