"""Values as people see them: redacted, and limited in size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

Path = tuple[str | int, ...]
Redact = Callable[[Path, Any], Any]
"""Returns what is shown in place of a value, which is the value itself unless it is a secret.

It is called with a path and the value there, first for the whole and then for each part of what it returned: `("input",)`,
`("input", "card")`, `("input", "card", "number")`. A path begins with `input`, `result`, `show`, `value`, `note`, `reason`,
`progress` or `error`.
"""

_DEEPEST: Final = 50
_MOST_NODES: Final = 2000
_MOST_CHARACTERS: Final = 300_000
_LONGEST: Final = 20_000
_LONGEST_NAME: Final = 200
_HIDDEN: Final = "(can't be shown: redact= raised)"
_logger: Final = logging.getLogger("durable_web")


class Shown(msgspec.Struct, frozen=True):
    """A value to show: a table, a list, a string or something short."""

    kind: Literal["table", "list", "text", "plain"]
    text: str = ""
    """The string, or the JSON of something short, such as a number."""
    rows: tuple[tuple[str, Shown], ...] = ()
    """The members of a table or a list, by name or number."""
    left_out: int = 0
    """The number of characters or members that are not shown."""


class Showing:
    """Prepares values for showing."""

    def __init__(self, redact: Redact | None) -> None:
        self._redact: Final = redact

    @property
    def redacts(self) -> bool:
        """True if values may be redacted. Then what would reveal them, such as fingerprints of arguments, is hidden too."""
        return self._redact is not None

    def shown(self, what: str, value: Any) -> Shown:
        """Return a JSON value as it is shown. `what` is the first part of the path that `redact=` gets."""
        return _Cut(self.redacted).shown((what,), value)

    def text(self, what: str, text: str | None) -> str:
        """Return a string as it is shown, such as an error's message or a reason, shortened; empty if there is none."""
        seen = "" if text is None else str(self.redacted((what,), text))
        return seen if len(seen) <= _LONGEST else f"{seen[:_LONGEST]}… and {len(seen) - _LONGEST:,} more"

    def is_editable(self, show: Mapping[str, Any], proposed: Any) -> bool:
        """Return True if nothing is redacted in the member `edit` of what an approval shows, so that people may change it.

        `proposed` is that value, or the value to which somebody changed it.
        """
        if self._redact is None:
            return True
        seen = self.redacted(("show",), show)
        is_whole = isinstance(seen, dict) and seen.get("edit") == show["edit"] and self._is_whole(("show", "edit"), show["edit"])
        return is_whole and self._is_whole(("show", "edit"), proposed) and self._is_whole(("value",), proposed)

    def redacted(self, path: Path, value: Any) -> Any:
        """Return what is shown in place of a value, without looking at its parts."""
        if self._redact is None:
            return value
        try:
            return self._redact(path, value)
        except Exception:
            _logger.exception("redact= raised at %s; the value is not shown", ".".join(map(str, path)))
            return _HIDDEN

    def _is_whole(self, path: Path, value: Any) -> bool:
        if len(path) > _DEEPEST or self.redacted(path, value) != value:
            return False
        return all(self._is_whole((*path, name), member) for name, member in _members(value))


class _Cut:
    """One value for a page, as much of it as a page may contain."""

    def __init__(self, redacted: Callable[[Path, Any], Any]) -> None:
        self._redacted: Final = redacted
        self._nodes = _MOST_NODES
        self._characters = _MOST_CHARACTERS

    def shown(self, path: Path, value: Any) -> Shown:
        self._nodes -= 1
        value = self._redacted(path, value)
        if isinstance(value, str):
            text = value[: min(_LONGEST, self._characters)]
            self._characters -= len(text)
            return Shown("text", text, left_out=len(value) - len(text))
        if not isinstance(value, dict | list):
            return Shown("plain", msgspec.json.encode(value, enc_hook=str).decode())
        rows: list[tuple[str, Shown]] = []
        for name, member in _members(value):
            if self._nodes <= 0 or self._characters <= 0 or len(path) > _DEEPEST:
                break
            label = str(name) if len(str(name)) <= _LONGEST_NAME else f"{str(name)[:_LONGEST_NAME]}…"
            self._characters -= len(label)
            rows.append((label, self.shown((*path, name), member)))
        return Shown("table" if isinstance(value, dict) else "list", rows=tuple(rows), left_out=len(value) - len(rows))


def _members(value: Any) -> Iterable[tuple[str | int, Any]]:
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
