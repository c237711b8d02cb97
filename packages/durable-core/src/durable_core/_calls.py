"""What makes two calls of one step id the same call, and the fingerprint that is recorded of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any, Final

import msgspec

from ._untold import TOLD, untold
from ._values import Codec
from .retry import Policy

Identity = object
_EMPTY: Final[tuple[Any, ...]] = ()
_FUNCTIONS: Final = (FunctionType, partial, MethodType)


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
    is_coroutine: bool
    """Whether `fn` is a plain async function, which is called on the loop as it is."""


def function_of(fn: Any, within: tuple[object, ...] = _EMPTY) -> Identity:
    """Return what tells `fn` from other functions: its code, defaults, closure values and bound object, all read now.

    Now, because a loop's variable is one cell, which holds another value by the time the step runs. For a function that is
    nothing but its code, as most are, it is that code.
    """
    if type(fn) is FunctionType:
        closure, defaults, keywords = fn.__closure__, fn.__defaults__, fn.__kwdefaults__
        if (closure is None and defaults is None and keywords is None) or fn in within:
            return fn.__code__  # a recursive function stands in its own closure
        within = (*within, fn)
        cells = [_cell(cell, within) for cell in closure or _EMPTY]
        return (fn.__code__, cells, [_value(value, within) for value in defaults or _EMPTY], keywords)
    if isinstance(fn, partial):
        return (function_of(fn.func, within), [_value(value, within) for value in fn.args], fn.keywords)
    if isinstance(fn, MethodType):
        return (function_of(fn.__func__, within), fn.__self__)
    return fn


def arguments_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `args` with those that a partial adds."""
    keywords: dict[str, Any] = {}
    while isinstance(fn, partial):
        args, keywords, fn = (*fn.args, *args), {**fn.keywords, **keywords}, fn.func
    return (args, keywords) if keywords else args


def with_arguments(function: Identity, arguments: tuple[Any, ...]) -> tuple[Identity, str]:
    """Return what a later call of the same id has to equal, and the fingerprint of the arguments, which is recorded.

    Arguments are held by their fingerprint, so that a changed list is noticed and nothing large is kept alive, and by what that
    doesn't tell, such as their types.
    """
    try:
        data, held = _encode(arguments), _EMPTY
    except Exception:
        data, held = _canonical(arguments)
    fingerprint = blake2b(data, digest_size=8).hexdigest()
    for argument in arguments:
        if type(argument) not in TOLD:
            try:
                held = (held, [*map(untold, arguments)])
            except Exception:  # a cycle, or a class whose attributes raise
                held = arguments
            break
    return (function, fingerprint, held), fingerprint


def fingerprint_of(args: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> str | None:
    """Return a short hash of arguments, equal in every process for equal arguments; None without any.

    A value that JSON can't hold counts by its type alone.
    """
    arguments = (args, keywords) if keywords else args
    return with_arguments(None, arguments)[1] if arguments else None


def same(one: Identity, other: Identity) -> bool:
    """Tell whether two identities are equal; values that refuse to be compared are not."""
    try:
        return bool(one == other)
    except Exception:
        return False


def _cell(cell: Any, within: tuple[object, ...]) -> Identity:
    try:
        return _value(cell.cell_contents, within)
    except ValueError:
        return _EMPTY


def _value(value: object, within: tuple[object, ...]) -> Identity:
    """A function made anew by each run of a flow is another object, and the same function."""
    return function_of(value, within) if isinstance(value, _FUNCTIONS) else value


def _canonical(arguments: object) -> tuple[bytes, tuple[Identity, ...]]:
    """Return arguments as JSON, and those of which that tells nothing but the type."""
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
        data = msgspec.json.Encoder(enc_hook=hook, order="deterministic").encode(arguments)
    except Exception:  # a key, a cycle or a number that JSON can't hold
        data, opaque = f"<{type(arguments).__qualname__}>".encode(), [arguments]
    return data, tuple([_value(value, _EMPTY) for value in opaque])


_encode: Final = msgspec.json.Encoder(order="deterministic").encode
