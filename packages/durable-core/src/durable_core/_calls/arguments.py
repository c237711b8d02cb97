"""What makes two calls of one step id the same call, and the fingerprint that is recorded of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from pathlib import PurePath
from typing import Any, Final

import msgspec

from durable_core._system.class_names import class_name
from durable_core._values.json import is_model

from .functions import Identity, value_of
from .untold import TOLD, untold

_EMPTY: Final[tuple[Any, ...]] = ()
_PYDANTIC: Final = ("pydantic", "pydantic_core", "pydantic_extra_types")  # whose other values are told by their text


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


def _canonical(arguments: object) -> tuple[bytes, tuple[Identity, ...]]:
    """Return arguments as JSON, and those of which that tells nothing but the type."""
    opaque: list[object] = []

    def hook(found: Any) -> object:
        kind: Any = type(found)
        if is_model(kind):  # by its fields: what it dumps may be masked, rounded, or in the order of a set
            extra = getattr(found, "__pydantic_extra__", None) or {}
            return {**{name: getattr(found, name, None) for name in kind.model_fields}, **extra}
        if isinstance(found, PurePath) or kind.__module__.partition(".")[0] in _PYDANTIC:
            return str(found)
        opaque.append(found)
        return f"<{class_name(kind)}>"

    encode = msgspec.json.Encoder(enc_hook=hook, order="deterministic").encode
    try:
        data = encode(arguments)
    except Exception:  # a key, a text or a number that JSON can't hold
        opaque.clear()
        try:
            data = encode(_spelled(arguments))
        except Exception:  # a cycle, or a class whose attributes raise
            data, opaque = f"<{type(arguments).__qualname__}>".encode(), [arguments]
    return data, tuple([value_of(value, {}) for value in opaque])


def _spelled(value: Any) -> Any:
    """Return builtin values as lists and plain text, whatever their keys, characters and numbers are."""
    kind = type(value)
    if kind is str:
        return ascii(value)
    if kind is int:
        return f"{value:x}"
    if kind is dict:
        return sorted(([_spelled(key), _spelled(member)] for key, member in value.items()), key=repr)
    if kind in (list, tuple):
        return [*map(_spelled, value)]
    return sorted(map(_spelled, value), key=repr) if kind in (set, frozenset) else value


_encode: Final = msgspec.json.Encoder(order="deterministic").encode
