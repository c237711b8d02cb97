"""Finding the part of a value that JSON can't hold, once the whole has failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

from .difference import field_names
from .paths import attribute, item, show


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what `value` consists of, one level down, each with its step in a path."""
    kind: Any = type(value)
    if isinstance(value, dict):
        for key, member in dict.items(value):
            yield item(key), key
            yield item(key), member
    elif (names := field_names(kind)) is not None:
        for name in names:
            if hasattr(value, name):
                yield attribute(name), getattr(value, name)
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            yield f"[{index}]", member
    elif isinstance(value, (set, frozenset)):
        for member in value:
            yield "[...]", member


def innermost(value: Any, fails: Callable[[Any], bool]) -> tuple[str, Any, bool]:
    """Follow the first part that fails, down to one whose own parts are good: its path, itself, and whether it is a cycle."""
    steps: list[str] = []
    seen: set[int] = set()
    while id(value) not in seen and len(seen) < 100:
        seen.add(id(value))
        for step, part in parts(value):
            if fails(part):
                steps.append(step)
                value = part
                break
        else:
            return show(steps, len(steps)), value, False
    return show(steps, len(steps)), value, id(value) in seen


def not_finite(value: Any, *, within: str = "$") -> tuple[str, float] | None:
    """Find the first float that JSON has no number for."""
    if isinstance(value, float):
        return None if isfinite(value) else (within, value)
    found = (not_finite(part, within=within + step) for step, part in parts(value))
    return next((each for each in found if each), None)
