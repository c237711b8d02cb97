"""What makes two calls of one step id the same call, and the fingerprint that is recorded of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any, Final

import msgspec

from ._values import Codec
from .retry import Policy

Identity = object
_EMPTY: Final = ()


class Call(msgspec.Struct, frozen=True):
    """One call of `Runner.step`, checked and ready to run."""

    step_id: str
    name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    fingerprint: str | None
    codec: Codec[Any] | None
    """How the value is recorded; None to record none."""
    policy: Policy
    is_same: bool
    """Whether its id was used for nothing else on this runner."""


def identify(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Identity, str | None]:
    """Return what a later call of the same id has to equal, and the fingerprint of the arguments.

    The first is made of code, defaults, closure values, bound object and arguments, all read now, because a loop's variable is
    one cell that holds another value by the time the step runs. Arguments are held by their fingerprint, so that a changed
    list is noticed and nothing large is kept alive.
    """
    if type(fn) is FunctionType and fn.__closure__ is None and fn.__defaults__ is None and fn.__kwdefaults__ is None:
        known: Identity = fn.__code__  # the usual case: nothing but its code
    else:
        known = _function(fn)
    if isinstance(fn, partial):
        fingerprint = _fingerprint(fn, args)
    elif not args:
        return known, None
    else:
        fingerprint = fingerprint_of(args)
    return (known, fingerprint, _EMPTY if _SIMPLE.issuperset(map(type, args)) else _opaque(args)), fingerprint


def same(one: Identity, other: Identity) -> bool:
    """Tell whether two identities are equal; values that refuse to be compared are not."""
    try:
        return bool(one == other)
    except Exception:
        return False


def _function(fn: Callable[..., Any], within: tuple[object, ...] = ()) -> Identity:
    if type(fn) is FunctionType:
        if fn.__closure__ is None and fn.__defaults__ is None and fn.__kwdefaults__ is None:
            return fn.__code__
        if fn in within:  # a recursive function stands in its own closure
            return fn.__code__
        within = (*within, fn)
        cells = [_cell(cell, within) for cell in fn.__closure__ or _EMPTY]
        defaults = [_value(value, within) for value in fn.__defaults__ or _EMPTY]
        return (fn.__code__, cells, defaults, fn.__kwdefaults__)
    if isinstance(fn, partial):
        return (_function(fn.func, within), [_value(value, within) for value in fn.args], fn.keywords)
    if isinstance(fn, MethodType):
        return (_function(fn.__func__, within), fn.__self__)
    return fn


def _cell(cell: Any, within: tuple[object, ...]) -> Identity:
    try:
        return _value(cell.cell_contents, within)
    except ValueError:
        return _EMPTY


def _value(value: object, within: tuple[object, ...]) -> Identity:
    """A function made anew by each run of a flow is another object, and the same function."""
    return _function(value, within) if isinstance(value, FunctionType | partial | MethodType) else value


_SIMPLE: Final = frozenset({str, int, float, bool, bytes, type(None)})


def _opaque(args: tuple[Any, ...]) -> Identity:
    """Return the arguments that a fingerprint says nothing about but their type."""
    _, opaque = _canonical(args)
    return tuple([_value(value, ()) for value in opaque])


def _fingerprint(fn: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
    keywords: dict[str, Any] = {}
    while isinstance(fn, partial):
        args = (*fn.args, *args)
        keywords = {**fn.keywords, **keywords}
        fn = fn.func
    return fingerprint_of(args, keywords)


def fingerprint_of(args: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> str | None:
    """Return a short hash of arguments, equal in every process for equal arguments; None without any.

    A value that JSON can't hold counts by its type alone.
    """
    if not args and not keywords:
        return None
    call = (args, keywords) if keywords else args
    try:
        data = _encode(call)
    except Exception:
        data, _ = _canonical(call)
    return blake2b(data, digest_size=8).hexdigest()


def _canonical(value: object) -> tuple[bytes, list[object]]:
    opaque: list[object] = []

    def hook(found: object) -> object:
        dump = getattr(type(found), "model_dump", None)
        if dump is not None:
            return dump(found, mode="json")
        if isinstance(found, PurePath):
            return str(found)
        opaque.append(found)
        return f"<{type(found).__module__}.{type(found).__qualname__}>"

    try:
        return msgspec.json.Encoder(enc_hook=hook, order="deterministic").encode(value), opaque
    except Exception:  # a key, a cycle or a number that JSON can't hold
        return f"<{type(value).__qualname__}>".encode(), [value]


_encode: Final = msgspec.json.Encoder(order="deterministic").encode
