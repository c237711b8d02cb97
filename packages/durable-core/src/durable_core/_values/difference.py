"""Walking through a value: to the first place that came back from JSON changed, or to a part that JSON can't represent."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from itertools import zip_longest
from operator import eq
from typing import Any, Final
from uuid import UUID

from durable_core._system.text import describe, short

from .types import BASES, encode, is_model

DEEP: Final = 400
"""Deeper nesting is refused, because a replay, whose stack may be higher, must decode it too."""

_LONG: Final = 60
_SETS: Final = (set, frozenset)
_TEXT: Final = frozenset({str})
_MISSING: Final = object()


def difference(value: Any, back: Any, exact: bool, depth: int = 0) -> tuple[str, str] | None:
    """Return the path to the first difference, and what differs; None if `back` equals `value`.

    A tuple may come back as a list, and a subclass of dict as a dict. Unless `exact`, values may also get the declared type if
    nothing is lost: an int may become an equal float, a set a frozenset, and a subclass of a plain type that type. Raises
    `RecursionError` for values that are nested too deeply.
    """
    kind: Any = type(back)
    if value is back:
        return None
    if type(value) is not kind:
        if not _may_become(value, kind, exact):
            return "", _changed(value, back)
        if kind in BASES and object.__getstate__(value) is not None:
            return "", f"the attributes of {describe(value)} did not come back"
    if (is_same := _IS_SAME.get(kind)) is not None:
        return None if is_same(value, back) else ("", _changed(value, back))
    if (names := _field_names(kind)) is not None:
        names = _with_attributes(value, names)
        pairs = [(name, getattr(value, name, _MISSING), getattr(back, name, _MISSING)) for name in names]
    elif not issubclass(kind, _CONTAINERS):
        return None if (value == back) is True else ("", _changed(value, back))  # for arrays, `==` returns an array
    else:
        left, right = parts(value), parts(back)
        if issubclass(kind, (dict, *_SETS)) and not _TEXT.issuperset(map(type, (*left, *right))):
            what = "the key " if issubclass(kind, dict) else ""
            twins = _twins(left, right)
            for key, twin in twins:
                if found := difference(key, twin, exact, depth + 1):
                    return step(value, twin if key is _MISSING else key) + found[0], what + found[1]
            right = {key: right[twin] for key, twin in twins} if what else left
        pairs = [(key, part, right.get(key, _MISSING)) for key, part in left.items()]
        pairs += [(key, _MISSING, part) for key, part in right.items() if key not in left]
    if depth == DEEP:
        raise RecursionError
    for key, part, twin in pairs:
        kind = type(part)
        if kind is type(twin) and (is_same := _IS_SAME.get(kind)) is not None and is_same(part, twin):
            continue
        if found := difference(part, twin, exact, depth + 1):
            return step(value, key) + found[0], found[1]
    return None


def parts(value: Any) -> dict[Any, Any]:
    """Return the parts of `value`, one level down, by key, index or name; the members of a set by themselves."""
    if isinstance(value, dict):
        return dict(dict.items(value))
    kind: Any = type(value)
    if (names := _field_names(kind)) is not None:
        found = ((name, getattr(value, name, _MISSING)) for name in _with_attributes(value, names))
        return {name: part for name, part in found if part is not _MISSING}
    if isinstance(value, deque):
        return {**dict(enumerate(value)), "maxlen": value.maxlen}
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return {part: part for part in value} if isinstance(value, _SETS) else {}


def step(value: object, key: Any) -> str:
    """Return the step in a path such as `$.items[3].price`, from `value` to its part: an entry, an attribute, or a member."""
    if isinstance(value, dict):
        return f".{key}" if type(key) is str and key.isidentifier() and len(key) <= _LONG else f"[{short(key)}]"
    if isinstance(value, _SETS):
        return "[...]"
    return f".{key}" if isinstance(key, str) else f"[{key}]"


def innermost(value: Any, fails: Callable[[Any], object], path: str = "") -> tuple[str, Any]:
    """Follow the first part that fails, down to one whose own parts are good; return its path and that part."""
    keys = [(key, key) for key in value] if isinstance(value, dict) else []
    for key, part in (*keys, *parts(value).items()):
        if fails(part):
            return innermost(part, fails, path + step(value, key))
    return path, value


def holds_no_number(value: Any) -> bool:
    """Return True if `value` contains a float that JSON can't represent."""
    return not math.isfinite(value) if isinstance(value, float) else any(map(holds_no_number, parts(value).values()))


def _changed(value: Any, back: Any) -> str:
    if back is _MISSING:
        return f"{describe(value)} did not come back"
    return f"{'nothing' if value is _MISSING else describe(value)} came back as {describe(back)}"


def _may_become(value: Any, came: Any, exact: bool) -> bool:
    kind: Any = type(value)
    if (kind is tuple and came is list) or (came is dict and issubclass(kind, dict)):
        return True
    if exact or kind is bool or isinstance(value, Enum):
        return False
    if (kind is int and came is float) or (kind in _SETS and came in _SETS):
        return True
    return came in BASES and issubclass(kind, came) and not (came is date and issubclass(kind, datetime))


@lru_cache(maxsize=1024)
def _field_names(kind: Any) -> dict[str, None] | None:
    """Return the fields of a dataclass, struct, attrs class, named tuple or pydantic model; None for other classes."""
    names: Iterable[str] | None
    if is_model(kind):
        names = (*kind.model_fields, "__pydantic_extra__", "__pydantic_private__")
    elif hasattr(kind, "__dataclass_fields__"):
        from dataclasses import fields  # if there is a dataclass, the module was imported

        names = (*(field.name for field in fields(kind)), *_slots(kind))
    elif hasattr(kind, "__attrs_attrs__"):
        names = (field.name for field in kind.__attrs_attrs__)
    else:
        names = getattr(kind, "_fields" if issubclass(kind, tuple) else "__struct_fields__", None)
    return None if names is None else dict.fromkeys(names)


def _slots(kind: Any) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        yield from (name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__"))


def _with_attributes(value: Any, names: dict[str, None]) -> dict[str, None]:
    """Add the attributes that aren't fields, except cached properties, which are computed again."""
    attributes = getattr(value, "__dict__", {})
    if attributes.keys() <= names.keys():
        return names
    computed = {name for name in attributes if isinstance(getattr(type(value), name, None), cached_property)}
    return names | dict.fromkeys(name for name in attributes if name not in computed)


def _twins(value: Iterable[Any], back: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Pair members of sets, or keys of dicts. Those without an equal partner are paired by their JSON."""
    twins = {part: part for part in back}
    pairs = [(part, twins.pop(part, _MISSING)) for part in value]
    strays = sorted((part for part, twin in pairs if twin is _MISSING), key=encode)
    pairs = [pair for pair in pairs if pair[1] is not _MISSING]
    return [*pairs, *zip_longest(strays, sorted(twins.values(), key=encode), fillvalue=_MISSING)]


def _is_same_time(value: Any, back: Any) -> bool:
    # Never `==` on the whole: across time zones it is always False in the hour that clocks repeat.
    if value.tzinfo is None or back.tzinfo is None:
        same = value.tzinfo is back.tzinfo and value.fold == back.fold
    else:
        same = value.utcoffset() == back.utcoffset()
    return bool(same and value.replace(tzinfo=None, fold=0) == back.replace(tzinfo=None, fold=0))


_CONTAINERS: Final = (dict, list, tuple, deque, *_SETS)
_IS_SAME: Final[dict[Any, Callable[[Any, Any], bool]]] = {
    **dict.fromkeys((str, int, bool, type(None), bytes, UUID, date, timedelta), eq),
    float: lambda value, back: value == back and (value != 0 or math.copysign(1, value) == math.copysign(1, back)),
    Decimal: lambda value, back: not value.is_nan() and value.as_tuple() == back.as_tuple(),  # `==` raises for a signalling NaN
    datetime: _is_same_time,
    time: _is_same_time,
}
