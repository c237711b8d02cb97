"""What tells one function from another, so that a loop which forgot to number its steps is not taken for a replay."""

from __future__ import annotations

import dis
from collections.abc import Mapping
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

Identity = object
_FUNCTIONS: Final = (FunctionType, partial, MethodType)
_REMEMBERED: Final = 4096


def function_of(fn: Any, seen: dict[int, int] | None = None) -> Identity:
    """Return what tells `fn` from other functions: its code, defaults, closure values and bound object, all read now.

    Now, because a loop's variable is one cell, which holds another value by the time the step runs. The variable of a loop that
    stands in no function is a global: those that a lambda names count too. What a function assigns itself doesn't: it counts.
    """
    seen = {} if seen is None else seen
    if type(fn) is FunctionType:
        code, closure, defaults, keywords = fn.__code__, fn.__closure__, fn.__defaults__, fn.__kwdefaults__
        itself = code, id(fn.__globals__)  # two modules may hold the same text
        if is_bare(fn):
            return itself
        if id(fn) in seen:
            return itself, seen[id(fn)]  # functions may stand in each other's closures
        seen[id(fn)] = len(seen)
        assigned = _assigned(code) if closure else ()
        free = zip(code.co_freevars, closure or (), strict=True)
        cells = [_cell(cell, seen) for name, cell in free if name not in assigned]
        named = {name: fn.__globals__[name] for name in _globals_of(code) if name in fn.__globals__}
        return (
            itself,
            cells,
            values_of(named, seen),
            [value_of(value, seen) for value in defaults or ()],
            values_of(keywords, seen),
        )
    if isinstance(fn, partial):
        return function_of(fn.func, seen), [value_of(value, seen) for value in fn.args], values_of(fn.keywords, seen)
    if isinstance(fn, MethodType):
        return function_of(fn.__func__, seen), fn.__self__
    return fn


def as_it_is(fn: Any) -> Any:
    """Return a lambda with the values that its variables have now: when it runs, a loop over them may have gone on.

    Not those that a function inside it has too, which may be there to watch them change.
    """
    if type(fn) is not FunctionType or not fn.__closure__ or not _is_lambda(fn.__code__):
        return fn
    code = fn.__code__
    watched = {name for inner in code.co_consts if isinstance(inner, CodeType) for name in inner.co_freevars}
    named = zip(code.co_freevars, fn.__closure__, strict=True)
    cells = tuple(cell if name in watched else _as_it_is(cell) for name, cell in named)
    fixed = FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__, cells)
    fixed.__kwdefaults__ = fn.__kwdefaults__
    return fixed


def _as_it_is(cell: CellType) -> CellType:
    try:
        return CellType(cell.cell_contents)
    except ValueError:  # it gets its value later
        return cell


def is_bare(fn: FunctionType) -> bool:
    """Tell whether the function is nothing but its code and its module, as most are."""
    return fn.__closure__ is None and fn.__defaults__ is None and fn.__kwdefaults__ is None and not _globals_of(fn.__code__)


def _globals_of(code: CodeType) -> tuple[str, ...]:
    """Return the globals that count: a lambda's, and with them, at no harm, the attributes that it asks for."""
    return code.co_names if _is_lambda(code) else ()


def _is_lambda(code: CodeType) -> bool:
    return code.co_name == "<lambda>"


_assignments: Final[dict[int, tuple[CodeType, frozenset[str]]]] = {}


def _assigned(code: CodeType) -> frozenset[str]:
    """Return the variables of others that a function assigns, or a function within it."""
    known = _assignments.get(id(code))
    if known is None or known[0] is not code:
        names = {each.argval for each in dis.get_instructions(code) if each.opname in ("STORE_DEREF", "DELETE_DEREF")}
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                names |= _assigned(inner)
        if len(_assignments) >= _REMEMBERED:
            _assignments.clear()
        known = _assignments[id(code)] = code, frozenset(names.intersection(code.co_freevars))
    return known[1]


def _cell(cell: Any, seen: dict[int, int]) -> Identity:
    try:
        return value_of(cell.cell_contents, seen)
    except ValueError:
        return ()


def value_of(value: object, seen: dict[int, int]) -> Identity:
    """A function made anew by each run of a flow is another object, and the same function; `1` is equal to `True`."""
    if isinstance(value, _FUNCTIONS):
        return function_of(value, seen)
    return (type(value), value) if isinstance(value, (int, float)) else value


def values_of(named: Mapping[str, object] | None, seen: dict[int, int]) -> Identity:
    return {name: value_of(value, seen) for name, value in named.items()} if named else None
