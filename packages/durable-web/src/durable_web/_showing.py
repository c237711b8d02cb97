"""Values as people are shown them: redacted, and bounded however large they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

Path = tuple[str | int, ...]
Redact = Callable[[Path, Any], Any]
"""Returns what is shown in place of a value, which is the value itself unless it is a secret.

It is called with a path and the value there, first for the whole and then for each part of what it returned: `("input",)`,
`("input", "card")`, `("input", "card", "number")`. A path begins with `input`, `result`, `show`, `edit`, `value`, `error`,
`note`, `reason` or `progress`.
"""

_DEEPEST: Final = 50
_MOST_NODES: Final = 2000
_LONGEST: Final = 20_000
_HIDDEN: Final = "(can't be shown: redact= raised)"
_logger: Final = logging.getLogger("durable_web")


class Shown(msgspec.Struct, frozen=True):
    """A value to show: a table, a list, a text or something short."""

    kind: Literal["table", "list", "text", "plain"]
    text: str = ""
    """Of a text, or the JSON of something short, such as a number."""
    rows: tuple[tuple[str, Shown], ...] = ()
    """The members of a table or a list, by name or number."""
    left_out: int = 0
    """How many characters or members are not shown."""


class Showing:
    """Makes values fit to be shown."""

    def __init__(self, redact: Redact | None) -> None:
        self._redact: Final = redact

    def shown(self, what: str, value: Any) -> Shown:
        """Return a JSON value as it is shown; `what` begins the path that `redact=` gets."""
        return self._shown((what,), value, [_MOST_NODES])

    def text(self, what: str, text: str | None) -> str:
        """Return a text as it is shown, such as the message of an error; empty where there is none."""
        return "" if text is None else str(self._redacted((what,), text))

    def is_whole(self, what: str, value: Any) -> bool:
        """Tell whether nothing in a value is redacted, so that it may be shown for editing."""
        return self._redact is None or self._whole((what,), value)

    def _shown(self, path: Path, value: Any, left: list[int]) -> Shown:
        left[0] -= 1
        value = self._redacted(path, value)
        if isinstance(value, dict | list):
            if len(path) > _DEEPEST:
                return Shown("text", "", left_out=len(value))
            members = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
            rows: list[tuple[str, Shown]] = []
            for name, member in members:
                if left[0] <= 0:
                    break
                rows.append((str(name), self._shown((*path, name), member, left)))
            return Shown("table" if isinstance(value, dict) else "list", rows=tuple(rows), left_out=len(members) - len(rows))
        if isinstance(value, str):
            return Shown("text", value[:_LONGEST], left_out=max(0, len(value) - _LONGEST))
        return Shown("plain", msgspec.json.encode(value).decode())

    def _whole(self, path: Path, value: Any) -> bool:
        if len(path) > _DEEPEST or self._redacted(path, value) != value:
            return False
        members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return all(self._whole((*path, name), member) for name, member in members)

    def _redacted(self, path: Path, value: Any) -> Any:
        if self._redact is None:
            return value
        try:
            return self._redact(path, value)
        except Exception:
            _logger.exception("redact= raised at %s; the value is not shown", ".".join(map(str, path)))
            return _HIDDEN
