"""What the JSON of arguments does not tell: their types, and what their classes leave out of it."""

from __future__ import annotations

from math import isfinite
from typing import Any, Final

from durable_core._values.difference import field_names

TOLD: Final = frozenset({str, int, bool, type(None)})
"""Types whose values JSON tells from those of all others."""
_TEXT: Final = frozenset({str})


def untold(value: Any) -> object:
    """Return what has to be equal besides the JSON of `value`, for it to be an equal value; None if nothing has to.

    Never what JSON does tell: of a large argument this keeps next to nothing.
    """
    kind: Any = type(value)
    if kind in TOLD:
        return None
    if kind is float:
        return None if isfinite(value) else repr(value)
    if isinstance(value, (list, tuple)):
        parts = None if TOLD.issuperset(map(type, value)) else [*map(untold, value)]
        return None if kind is list and (parts is None or parts.count(None) == len(parts)) else (kind, parts)
    if isinstance(value, dict):
        if kind is dict and _TEXT.issuperset(map(type, value)) and TOLD.issuperset(map(type, value.values())):
            return None
        parts_by_key = {key: untold(member) for key, member in dict.items(value)}
        members = {key: part for key, part in parts_by_key.items() if part is not None or type(key) is not str}
        return None if kind is dict and not members else (kind, members)
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(value)
    if hasattr(kind, "get_secret_value"):  # pydantic's secrets, which are written as asterisks
        return kind, value
    names = field_names(kind)
    if names is None:
        return kind
    return kind, {name: part for name in names if (part := _field(value, name)) is not None}


def _field(value: Any, name: str) -> object:
    part = getattr(value, name, None)
    return (type(part), part) if name.startswith("_") else untold(part)
