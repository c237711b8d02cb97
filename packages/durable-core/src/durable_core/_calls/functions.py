"""The identity of a call: code, closure, defaults, bound object and arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, MethodWrapperType
from typing import Any, Final
from weakref import ref

from durable_core._values.annotations import Closure, closure_of

from .arguments import SCALARS, content_of

Identity = object

_BUILTIN: Final = (BuiltinMethodType, MethodWrapperType)
_FUNCTIONS: Final = (FunctionType, partial, MethodType, *_BUILTIN)
_LONG: Final = 100


def identity_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Identity, str | None]:
    """Return the identity that a later call of the same id must equal, and the fingerprint of the arguments, which is recorded.

    Everything is read now. The identity holds code, hashes and weak references, so that it keeps no value alive.
    """
    keywords: dict[str, Any] = {}
    while isinstance(fn, partial):
        args, keywords, fn = (*fn.args, *args), {**fn.keywords, **keywords}, fn.func
    return with_arguments(_function(fn, {}), (args, keywords) if keywords else args)


def with_arguments(function: Identity, arguments: tuple[Any, ...]) -> tuple[Identity, str | None]:
    """Return the identity and the fingerprint of a call, given the identity of its function."""
    if not arguments:
        return function, None
    fingerprint, hidden, opaque = content_of(arguments)
    return (function, fingerprint, hidden, _opaque(opaque, {}) if opaque else None), fingerprint


def is_bare(fn: FunctionType) -> bool:
    """Return True if the function consists only of its code and its module, so that its identity never changes."""
    return fn.__closure__ is None and fn.__defaults__ is None and fn.__kwdefaults__ is None


def changed_variable(closure: Closure) -> str | None:
    """Return the name of the first variable whose object differs from when `closure` was read."""
    for name, cell, content in closure:
        try:
            if cell.cell_contents is not content:
                return name
        except ValueError:  # deleted
            return name
    return None


class _Object:
    """Stands for an object. It is equal for the same object, or for one that had the same content when it was read."""

    __slots__ = ("_content", "_object")

    def __init__(self, value: object, content: Identity = None) -> None:
        self._content = content
        self._object: Callable[[], object]
        kept = value if content is None else None  # so that no other object gets its address
        try:
            self._object = ref(value)
        except TypeError:
            self._object = lambda: kept

    def __eq__(self, other: object) -> bool:
        if type(other) is not _Object:
            return False
        found = self._object()
        return (found is not None and found is other._object()) or (self._content is not None and self._content == other._content)

    __hash__ = None  # type: ignore[assignment]


def _function(fn: Any, seen: dict[int, int]) -> Identity:
    kind: Any = type(fn)  # `isinstance` believes a mock
    if kind is FunctionType:
        code = fn.__code__, id(fn.__globals__)  # two modules may contain the same text
        if is_bare(fn):
            return code
        if id(fn) in seen:
            return code, seen[id(fn)]  # functions may be in each other's closures
        seen[id(fn)] = len(seen)
        closure = [(name, _value(content, seen)) for name, _, content in closure_of(fn)]
        defaults = [_value(value, seen) for value in fn.__defaults__ or ()]
        return code, closure, defaults, {name: _value(value, seen) for name, value in (fn.__kwdefaults__ or {}).items()}
    if issubclass(kind, partial):
        keywords = {name: _value(value, seen) for name, value in fn.keywords.items()}
        return _function(fn.func, seen), [_value(value, seen) for value in fn.args], keywords
    if kind is MethodType:
        return _function(fn.__func__, seen), _value(fn.__self__, seen)
    if kind in _BUILTIN:
        return fn.__qualname__, _value(fn.__self__, seen)
    return _value(fn, seen)


def _value(value: Any, seen: dict[int, int]) -> Identity:
    """Return what stands for a value. A function that each run of a flow creates is another object, but the same function."""
    kind: Any = type(value)
    if kind in SCALARS and (kind is not str or len(value) <= _LONG):
        return kind, value
    if issubclass(kind, _FUNCTIONS):
        return _function(value, seen)
    fingerprint, hidden, opaque = content_of((value,))
    return _Object(value, (fingerprint, hidden, _opaque(opaque, seen)))


def _opaque(parts: Sequence[object], seen: dict[int, int]) -> list[Identity]:
    """Return what stands for the parts of a value without a JSON form."""
    return [_function(part, seen) if issubclass(type(part), _FUNCTIONS) else _Object(part) for part in parts]
