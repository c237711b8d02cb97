"""Walking through a value: to the first place where what came back from JSON differs, or to a part that JSON can't hold."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache, partial
from itertools import zip_longest
from marshal import dumps
from typing import Any, Final
from uuid import UUID

from .json import BASES, encode
from .models import is_model
from .paths import attribute, describe, item, show

PLAIN: Final = frozenset({str, int, bool, type(None), bytes, UUID, date, timedelta})
"""Types whose `==`, between two values of the same type, says all."""

_DEEP: Final = 400
_TEXT: Final = frozenset({str})
_SETS: Final = (set, frozenset)
_MISSING: Final = object()

_Pair = tuple[Any, Any, Any]
"""A key, the part of the value, and the part of what came back."""


class Difference:
    """The first place at which a value and what came back differ."""

    __slots__ = ("_steps", "problem")

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self._steps: list[str] = []

    def within(self, step: str) -> Difference:
        """Return this as seen from one level further out."""
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        return show(reversed(self._steps), len(self._steps))


def difference(value: Any, back: Any, exact: bool, depth: int = 0) -> Difference | None:
    """Compare by types and parts; None if `back` is what `value` was. Raises `RecursionError` for what is nested too deeply.

    A tuple may come back as a list and a subclass of dict as a dict. Unless `exact`, values may also take the declared type that
    holds them without loss: an int an equal float, a set a frozenset, a subclass of a plain type that type.
    """
    kind: Any = type(back)
    if type(value) is not kind:
        if not _may_become(value, kind, exact):
            return _changed(value, back)
        if kind in BASES and object.__getstate__(value) is not None:
            return Difference(f"the attributes of {describe(value)} did not come back")
    if kind in PLAIN:
        same = value == back if type(value) is kind else kind.__eq__(back, value) is True
        return None if same else _changed(value, back)
    if (is_same := _IS_SAME.get(kind)) is not None:
        return None if is_same(value, back) else _changed(value, back)
    if (pairs := _pairs_of(kind)) is None:  # `is True`: arrays answer `==` with an array
        return None if value is back or (value == back) is True else _changed(value, back)
    if depth == _DEEP:  # a replay, whose stack may be higher, has to decode it too
        raise RecursionError
    if pairs is _items and (found := _keys(value, back, exact)):
        return found
    for key, left, right in pairs(value, back):
        one = type(left)
        if left is right or (one in PLAIN and one is type(right) and left == right):
            continue
        if found := difference(left, right, exact, depth + 1):
            return found.within(step(value, key))
    return None


def same_bytes(value: Any, back: Any, data: bytes) -> bool:
    """Return True for dicts and lists that are the same, down to every type; False where that takes a closer look.

    `back` must hold no bytes, since `marshal` writes whatever has a buffer as bytes; other than that it knows builtin types
    alone. What may be nested too deeply is left to the closer look.
    """
    if len(data) > 2 * _DEEP and data.count(b"[") + data.count(b"{") > _DEEP:
        return False
    try:
        return dumps(value, 2) == dumps(back, 2)
    except ValueError:
        return False


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what `value` consists of, one level down: each part with its key, its index or the name of its field."""
    kind: Any = type(value)
    if isinstance(value, dict):
        yield from dict.items(value)
    elif (names := _field_names(kind)) is not None:
        for name in (*names, *_beside(value, names)):
            if (part := getattr(value, name, _MISSING)) is not _MISSING:
                yield name, part
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)
        if isinstance(value, deque):
            yield "maxlen", value.maxlen
    elif isinstance(value, _SETS):
        yield from ((..., part) for part in value)


def step(value: object, key: Any) -> str:
    """Return the step in a path from `value` to its part."""
    if isinstance(value, dict):
        return item(key)
    return attribute(key) if isinstance(key, str) else "[...]" if key is ... else f"[{key}]"


def innermost(value: Any, fails: Callable[[Any], bool]) -> tuple[str, Any, bool]:
    """Follow the first part that fails, down to one whose own parts are good: its path, itself, and whether it is a cycle."""
    steps: list[str] = []
    seen: set[int] = set()
    while id(value) not in seen and len(seen) < 100:
        seen.add(id(value))
        both = ((key, each) for key, part in parts(value) for each in ((key, part) if isinstance(value, dict) else (part,)))
        found = next((each for each in both if fails(each[1])), None)
        if found is None:
            return show(steps, len(steps)), value, False
        steps.append(step(value, found[0]))
        value = found[1]
    return show(steps, len(steps)), value, id(value) in seen


def not_finite(value: Any, *, within: str = "$") -> tuple[str, float] | None:
    """Find the first float that JSON has no number for."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (within, value)
    found = (not_finite(part, within=within + step(value, key)) for key, part in parts(value))
    return next((each for each in found if each), None)


def _changed(value: Any, back: Any) -> Difference:
    if back is _MISSING:
        return Difference(f"{describe(value)} did not come back")
    if value is _MISSING:
        return Difference(f"nothing came back as {describe(back)}")
    return Difference(f"{describe(value)} came back as {describe(back)}")


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
def _pairs_of(kind: Any) -> Callable[[Any, Any], Iterable[_Pair]] | None:
    """Return how the parts of two values are paired, one level down; None for a class without parts."""
    if issubclass(kind, Enum):
        return None
    if issubclass(kind, dict):
        return _items
    if issubclass(kind, _SETS):
        return _twins
    if (names := _field_names(kind)) is not None:
        return partial(_fields, names)
    return _members if issubclass(kind, (list, tuple, deque)) else None


@lru_cache(maxsize=1024)
def _field_names(kind: Any) -> dict[str, None] | None:
    """Name the fields of a dataclass, struct, attrs class, named tuple or pydantic model; None for any other class."""
    names: Iterable[str] | None
    if is_model(kind):
        names = (*kind.model_fields, "__pydantic_extra__", "__pydantic_private__")
    elif dataclasses.is_dataclass(kind):
        names = (*(field.name for field in dataclasses.fields(kind)), *_slots(kind))
    elif hasattr(kind, "__attrs_attrs__"):
        names = (field.name for field in kind.__attrs_attrs__)
    else:
        names = getattr(kind, "_fields" if issubclass(kind, tuple) else "__struct_fields__", None)
    return None if names is None else dict.fromkeys(names)


def _slots(kind: Any) -> Iterator[str]:
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        yield from (name for name in ((slots,) if isinstance(slots, str) else slots) if not name.startswith("__"))


def _beside(value: Any, names: dict[str, None]) -> list[str]:
    """Name the attributes that are no fields, but for cached properties, which are computed again."""
    attributes = getattr(value, "__dict__", {})
    if attributes.keys() <= names.keys():
        return []
    others = (name for name in attributes if name not in names)
    return [name for name in others if not isinstance(getattr(type(value), name, None), cached_property)]


def _fields(names: dict[str, None], value: Any, back: Any) -> list[_Pair]:
    pairs = [(name, getattr(value, name, _MISSING), getattr(back, name, _MISSING)) for name in names]
    for name in _beside(value, names):
        pairs.append((name, getattr(value, name), getattr(back, name, _MISSING)))  # noqa: PERF401
    return pairs


def _members(value: Any, back: Any) -> Iterator[_Pair]:
    for index, (part, twin) in enumerate(zip_longest(value, back, fillvalue=_MISSING)):
        yield index, part, twin
    if isinstance(value, deque):
        yield "maxlen", value.maxlen, back.maxlen


def _twins(value: Any, back: Any) -> Iterator[_Pair]:
    twins = {part: part for part in back}
    pairs = [(part, twins.pop(part, _MISSING)) for part in value]
    # What is equal to nothing but itself is paired by its JSON.
    strays = sorted((part for part, twin in pairs if twin is _MISSING), key=encode)
    pairs = [pair for pair in pairs if pair[1] is not _MISSING]
    pairs += zip_longest(strays, sorted(twins.values(), key=encode), fillvalue=_MISSING)
    return ((..., part, twin) for part, twin in pairs)


def _items(value: dict[Any, Any], back: dict[Any, Any]) -> Iterator[_Pair]:
    if not _TEXT.issuperset(map(type, back)):  # `_keys` found them the same in their order
        back = dict(zip(value, back.values(), strict=True))
    for key, part in dict.items(value):
        yield key, part, back.get(key, _MISSING)
    if len(value) < len(back):
        yield from ((key, _MISSING, back[key]) for key in back if key not in value)


def _keys(value: dict[Any, Any], back: dict[Any, Any], exact: bool) -> Difference | None:
    """Compare keys that are not text in their order, which JSON keeps: several may become one."""
    if _TEXT.issuperset(map(type, value)) and _TEXT.issuperset(map(type, back)):
        return None
    for key, came in zip_longest(value, back, fillvalue=_MISSING):
        if found := difference(key, came, exact):
            found.problem = f"the key {found.problem}"
            return found.within(item(key))
    return None


def _is_same_time(value: Any, back: Any) -> bool:
    # Never `==` on the whole: across zones it is always False in the hour that clocks repeat.
    if value.tzinfo is None or back.tzinfo is None:
        same = value.tzinfo is back.tzinfo and value.fold == back.fold
    else:
        same = value.utcoffset() == back.utcoffset()
    return bool(same and value.replace(tzinfo=None, fold=0) == back.replace(tzinfo=None, fold=0))


_IS_SAME: Final[dict[type, Callable[[Any, Any], bool]]] = {
    float: lambda value, back: value == back and math.copysign(1, value) == math.copysign(1, back),
    Decimal: lambda value, back: not value.is_nan() and value.as_tuple() == back.as_tuple(),  # `==` raises for a signalling NaN
    datetime: _is_same_time,
    time: _is_same_time,
}
