"""What tells one function from another, so that a loop which forgot to number its steps is not taken for a replay."""

from __future__ import annotations

import dis
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

import msgspec

Identity = object
_FUNCTIONS: Final = (FunctionType, partial, MethodType)
_COMPREHENSIONS: Final = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
_REMEMBERED: Final = 4096


def function_of(fn: Any, seen: dict[int, int] | None = None) -> Identity:
    """Return what tells `fn` from other functions: its code, defaults, closure values and bound object, all read now.

    Now, because a loop's variable is one cell, which holds another value by the time the step runs. The variable of a loop that
    stands in no function is a global: those that a lambda names count too. A variable that the function assigns is left out.
    """
    seen = {} if seen is None else seen
    if type(fn) is FunctionType:
        code, closure, defaults, keywords = fn.__code__, fn.__closure__, fn.__defaults__, fn.__kwdefaults__
        itself = _bare(fn)
        if is_bare(fn):
            return itself
        if id(fn) in seen:
            return itself, seen[id(fn)]  # functions may stand in each other's closures
        seen[id(fn)] = len(seen)
        parts: list[Identity] = [*itself]
        if closure is not None:
            assigned = _names_in(code).assigned
            parts += [_cell(cell, seen) for name, cell in zip(code.co_freevars, closure, strict=True) if name not in assigned]
        if _is_lambda(code):
            parts += [_global(fn.__globals__.get(name), seen) for name in _names_in(code).globals]
        if defaults is not None:
            parts.append([value_of(value, seen) for value in defaults])
        if keywords:
            parts.append({name: value_of(value, seen) for name, value in keywords.items()})
        return tuple(parts)
    if isinstance(fn, partial):
        keywords = {name: value_of(value, seen) for name, value in fn.keywords.items()}
        return function_of(fn.func, seen), [value_of(value, seen) for value in fn.args], keywords
    if isinstance(fn, MethodType):
        return function_of(fn.__func__, seen), fn.__self__
    return fn


def as_it_is(fn: Any) -> Any:
    """Return a lambda with the values that its variables have now: when it runs, a loop over them may have gone on.

    Not those that a function inside it has too, which may be there to watch them change.
    """
    if type(fn) is partial:
        fixed = as_it_is(fn.func)
        return fn if fixed is fn.func else partial(fixed, *fn.args, **fn.keywords)
    if type(fn) is not FunctionType or not fn.__closure__ or not _is_lambda(fn.__code__):
        return fn
    code, watched = fn.__code__, _names_in(fn.__code__).watched
    named = zip(code.co_freevars, fn.__closure__, strict=True)
    cells = tuple(cell if name in watched else _as_it_is(cell) for name, cell in named)
    function = FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__, cells)
    function.__kwdefaults__ = fn.__kwdefaults__
    return function


def _as_it_is(cell: CellType) -> CellType:
    try:
        return CellType(cell.cell_contents)
    except ValueError:  # it gets its value later
        return cell


def _bare(fn: FunctionType) -> tuple[CodeType, int]:
    return fn.__code__, id(fn.__globals__)  # two modules may hold the same text


def is_bare(fn: FunctionType) -> bool:
    """Tell whether the function is nothing but its code and its module, as most are."""
    if fn.__closure__ is not None or fn.__defaults__ is not None or fn.__kwdefaults__ is not None:
        return False
    return not (_is_lambda(fn.__code__) and _names_in(fn.__code__).globals)


def _is_lambda(code: CodeType) -> bool:
    return code.co_name == "<lambda>"


class _Names(msgspec.Struct, frozen=True, gc=False):
    """How code uses the names of others."""

    code: CodeType
    assigned: frozenset[str]
    """Variables of an enclosing function that it assigns, or a function within it."""
    globals: tuple[str, ...]
    """Globals that it reads, or a function within it."""
    watched: frozenset[str]
    """Variables of an enclosing function that a function within it reads whenever that is called."""


_names: Final[dict[int, _Names]] = {}


def _names_in(code: CodeType) -> _Names:
    known = _names.get(id(code))
    if known is None or known.code is not code:
        assigned, read, watched = set[str](), dict[str, None](), set[str]()
        for each in dis.get_instructions(code):
            if each.opname in ("STORE_DEREF", "DELETE_DEREF"):
                assigned.add(each.argval)
            elif each.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read[each.argval] = None
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                names = _names_in(inner)
                assigned |= names.assigned
                read.update(dict.fromkeys(names.globals))
                watched |= names.watched if inner.co_name in _COMPREHENSIONS else {*inner.co_freevars}
        if len(_names) >= _REMEMBERED:
            _names.clear()
        # A comprehension may have a variable of its own by the name of an enclosing function's.
        theirs = assigned.intersection(code.co_freevars).difference(code.co_cellvars)
        known = _names[id(code)] = _Names(code, frozenset(theirs), tuple(read), frozenset(watched))
    return known


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


def _global(value: object, seen: dict[int, int]) -> Identity:
    """Return what a global is, a function without what it closes over: that is a matter of its own module."""
    return _bare(value) if type(value) is FunctionType else value_of(value, seen)
