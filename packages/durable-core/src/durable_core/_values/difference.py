"""Comparing a value with what came back from JSON, strictly, down to the first field that is not the same."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache, partial
from itertools import chain, repeat
from marshal import dumps
from typing import Any, Final
from uuid import UUID

from .json import BASES, encode
from .models import is_model
from .paths import attribute, describe, item, show

PLAIN: Final = frozenset({str, int, bool, type(None), bytes, UUID, date, timedelta})
"""Types whose `==`, between two values of the same type, says all."""

_DEEP: Final = 300
_SETS: Final = frozenset({set, frozenset})
_MISSING: Final = object()

_Comparer = Callable[[Any, Any, bool], "Difference | None"]


class Difference:
    """The first place at which a value and what came back differ."""

    __slots__ = ("_steps", "problem")

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self._steps: list[str] = []

    def within(self, step: str) -> Difference:
        self._steps.append(step)
        return self

    @property
    def path(self) -> str:
        return show(reversed(self._steps), len(self._steps))


def difference(value: Any, back: Any, exact: bool) -> Difference | None:
    """Compare by types and fields; None if `back` is what `value` was.

    A tuple may come back as a list and a subclass of dict as a dict. Unless `exact`, values may also take the declared type that
    holds them without loss: an int an equal float, a set a frozenset, a subclass of a plain type that type.
    """
    kind: Any = type(value)
    if kind is not type(back):
        return _across_types(value, back, exact)
    if kind in PLAIN:
        return None if value == back else _changed(value, back)
    return _comparer(kind)(value, back, exact)


def same_bytes(value: Any, back: Any, data: bytes) -> bool:
    """Tell quickly of dicts and lists that they are the same, down to every type; False where that takes a closer look.

    `back` must hold no bytes, as which `marshal` writes whatever has a buffer; other than that it knows builtin types alone.
    What is nested so deeply in `data` that a replay, with a higher stack, may fail to decode it, is left to the closer look.
    """
    if len(data) > 2 * _DEEP and data.count(b"[") + data.count(b"{") > _DEEP:
        return False
    try:
        return dumps(value, 2) == dumps(back, 2)
    except ValueError:
        return False


def _changed(value: Any, back: Any) -> Difference:
    if back is _MISSING:
        return Difference(f"{describe(value)} did not come back")
    if value is _MISSING:
        return Difference(f"nothing came back as {describe(back)}")
    return Difference(f"{describe(value)} came back as {describe(back)}")


def _across_types(value: Any, back: Any, exact: bool) -> Difference | None:
    kind: Any = type(value)
    came: Any = type(back)
    same: _Comparer | None = None
    if kind is bool or isinstance(value, Enum):
        return _changed(value, back)
    if kind is tuple and came is list:
        same = _sequences
    elif came is dict and issubclass(kind, dict):
        same = _dicts
    elif exact:
        return _changed(value, back)
    elif (kind is int and came is float) or (kind in _SETS and came in _SETS):
        same = _equal if came is float else _sets
    elif came in BASES and issubclass(kind, came) and not (came is date and issubclass(kind, datetime)):
        if object.__getstate__(value) is not None:  # attributes of its own, for which the plain type has no place
            return Difference(f"the attributes of {describe(value)} did not come back")
        same = _comparer(came) if came in _COMPARERS else partial(_equal_as, came)
    return same(value, back, exact) if same is not None else _changed(value, back)


def _choose(kind: Any) -> _Comparer:
    if kind in _COMPARERS:
        return _COMPARERS[kind]
    if issubclass(kind, Enum):
        return _equal
    names = field_names(kind)
    if names is None:
        return _equal
    if dataclasses.is_dataclass(kind):
        names = (*names, *_slots_beside(names, kind))
    return partial(_fields, names, frozenset(names))


def _slots_beside(names: tuple[str, ...], kind: Any) -> Iterator[str]:
    """Name the slots of a class that are not among `names`, but for those that Python makes."""
    for base in kind.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in names and not slot.startswith("__"):
                yield slot


_comparer: Final[Callable[[Any], _Comparer]] = lru_cache(maxsize=1024)(_choose)


@lru_cache(maxsize=1024)
def field_names(kind: Any) -> tuple[str, ...] | None:
    """Name the fields of a dataclass, struct, attrs class, named tuple or pydantic model; None for any other class."""
    if is_model(kind):
        return (*kind.model_fields, "__pydantic_extra__", "__pydantic_private__")
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if hasattr(kind, "__attrs_attrs__"):
        return tuple(field.name for field in kind.__attrs_attrs__)
    names = getattr(kind, "_fields" if issubclass(kind, tuple) else "__struct_fields__", None)
    return None if names is None else tuple(names)


def _fields(names: tuple[str, ...], known: frozenset[str], value: Any, back: Any, exact: bool) -> Difference | None:
    for name in names:
        left, right = getattr(value, name, _MISSING), getattr(back, name, _MISSING)
        if left is not right and (found := difference(left, right, exact)):
            return found.within(attribute(name))
    left, right = getattr(value, "__dict__", {}), getattr(back, "__dict__", {})
    if known.issuperset(left):
        return None
    for name in left.keys() - known:
        if not isinstance(getattr(type(value), name, None), cached_property) and (
            found := difference(left[name], right.get(name, _MISSING), exact)
        ):
            return found.within(attribute(name))
    return None


def _sequences(value: Any, back: Any, exact: bool) -> Difference | None:
    for index, (left, right) in enumerate(zip(value, back, strict=False)):
        kind = type(left)
        if kind is type(right) and kind in PLAIN and left == right:
            continue
        if found := difference(left, right, exact):
            return found.within(f"[{index}]")
    return None if len(value) == len(back) else Difference(f"{len(value)} items came back as {len(back)}")


def _dicts(value: dict[Any, Any], back: dict[Any, Any], exact: bool) -> Difference | None:
    if len(value) != len(back):
        return _dicts_by_key(value, back, exact)
    for (key, left), (back_key, right) in zip(dict.items(value), back.items(), strict=True):
        if not (type(key) is str and key == back_key) and difference(key, back_key, exact):
            return _dicts_by_key(value, back, exact)
        kind = type(left)
        if kind is type(right) and kind in PLAIN and left == right:
            continue
        if found := difference(left, right, exact):
            return found.within(item(key))
    return None


def _dicts_by_key(value: dict[Any, Any], back: dict[Any, Any], exact: bool) -> Difference | None:
    """Compare dicts whose keys changed, or whose order did, which changes nothing."""
    twins = {key: key for key in back}
    pairs = []
    for key, came in zip(value, chain(back, repeat(_MISSING)), strict=False):
        twin = twins.pop(key, _MISSING)
        if twin is _MISSING or difference(key, twin, exact):
            became = twin if came in value or twin is not _MISSING else came
            lost = f"the key {describe(key)} did not come back"
            return Difference(lost if became is _MISSING else f"{lost} but became {describe(became)}").within(item(key))
        pairs.append((key, twin))
    for key, twin in pairs:
        if found := difference(value[key], back[twin], exact):
            return found.within(item(key))
    for key in twins:
        return _changed(_MISSING, back[key]).within(item(key))
    return None


def _sets(value: Any, back: Any, exact: bool) -> Difference | None:
    if len(value) != len(back):
        return Difference(f"{len(value)} items came back as {len(back)}")
    twins = {element: element for element in back}
    pairs = [(element, twins.pop(element, _MISSING)) for element in value]
    # What is equal to nothing but itself is paired by its JSON.
    strays = sorted((element for element, twin in pairs if twin is _MISSING), key=encode)
    pairs = [pair for pair in pairs if pair[1] is not _MISSING]
    pairs += zip(strays, sorted(twins.values(), key=encode), strict=True)
    for element, twin in pairs:
        if found := difference(element, twin, exact):
            return found.within("[...]")
    return None


def _equal(value: Any, back: Any, exact: bool) -> Difference | None:
    # `is True`: arrays answer `==` with an array.
    return None if value is back or (value == back) is True else _changed(value, back)


def _equal_as(base: Any, value: Any, back: Any, exact: bool) -> Difference | None:
    return None if base.__eq__(value, back) is True else _changed(value, back)


def _floats(value: float, back: float, exact: bool) -> Difference | None:
    return None if value == back and math.copysign(1, value) == math.copysign(1, back) else _changed(value, back)


def _decimals(value: Decimal, back: Decimal, exact: bool) -> Difference | None:
    # Never `==`: it raises for a signalling NaN.
    return None if not value.is_nan() and value.as_tuple() == back.as_tuple() else _changed(value, back)


def _times(value: Any, back: Any, exact: bool) -> Difference | None:
    # Never `==` on the whole: across zones it is always False in the hour that clocks repeat.
    if value.tzinfo is None or back.tzinfo is None:
        same = value.tzinfo is back.tzinfo and value.fold == back.fold
    else:
        same = value.utcoffset() == back.utcoffset()
    if same and value.replace(tzinfo=None, fold=0) == back.replace(tzinfo=None, fold=0):
        return None
    return _changed(value, back)


_COMPARERS: Final[dict[type, _Comparer]] = {
    dict: _dicts,
    list: _sequences,
    tuple: _sequences,
    set: _sets,
    frozenset: _sets,
    float: _floats,
    Decimal: _decimals,
    datetime: _times,
    time: _times,
}
