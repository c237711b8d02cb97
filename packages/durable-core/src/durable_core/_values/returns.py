"""Choosing the codec of a value: by a given type, or by a function's return annotation."""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

from durable_core._system.roots import UnrecordableValue
from durable_core._system.text import message

from .annotations import NOTHING, name_of, return_type
from .codec import Codec
from .types import pydantic_codecs, refusal, secret, type_name

__all__ = ["UNTYPED", "Codec", "codec_for", "codec_of", "record_any"]

UNTYPED: Final[Codec[Any]] = Codec(Any)
"""The codec for values without a known type."""


def codec_for(type_: Any) -> Codec[Any]:
    """Return the codec of a type. It is made once. `Any` and `object` mean untyped.

    Raises `TypeError` if it isn't a type, or if JSON can't bring back its values.
    """
    try:
        hash(type_)
    except TypeError:
        return _make_codec(type_)
    return _codec_for(type_)


def _make_codec(type_: Any) -> Codec[Any]:
    if type_ in (Any, object, typing.NoReturn, typing.Never):
        return UNTYPED
    if type_ is None:
        return codec_for(type(None))
    if isinstance(type_, typing.TypeVar):
        return codec_for(type_.__bound__ or Any)
    if reason := secret(type_):
        raise _no_codec(type_, reason)
    try:
        if (reason := refusal(type_)) is None:
            return Codec(type_)
    except Exception as error:  # msgspec has no codec for it
        reason = message(error)
    try:
        codecs = pydantic_codecs(type_)
    except Exception as error:
        raise _no_codec(type_, message(error).partition("\n")[0]) from error
    if codecs is None:
        raise _no_codec(type_, reason)
    return Codec(type_, codecs)


_codec_for = lru_cache(maxsize=1024)(_make_codec)


def _no_codec(type_: Any, reason: str) -> TypeError:
    return TypeError(
        f"values of {type_name(type_)} can't be recorded ({reason}): return a dataclass, a msgspec.Struct (with `tag=True` to be"
        " told apart in a union), a pydantic model or builtin types, or pass `returns=` (`returns=None` records no value)"
    )


def codec_of(fn: Callable[..., Any]) -> Codec[Any]:
    """Return the codec for the return annotation of `fn`; `UNTYPED` if it has none.

    Raises `TypeError` if the annotation can't be resolved or recorded, and for a generator function.
    """
    type_ = return_type(fn)
    try:
        return UNTYPED if type_ is NOTHING else codec_for(type_)
    except TypeError as error:
        raise TypeError(f"{name_of(fn)}: {error}") from error


def record_any(value: object, what: str) -> bytes:
    """Return a value from outside as JSON: plain JSON as it is, anything else by its own type.

    Raises `UnrecordableValue`, a `TypeError`, for a value that would not come back the same. The error calls it `what`.
    """
    try:
        codec = UNTYPED if type(value) in (dict, list, tuple) else codec_for(type(value))
    except TypeError:  # as its refusal by the codec of no type says
        codec = UNTYPED
    try:
        return codec.record(value)[0]
    except UnrecordableValue as error:
        raise UnrecordableValue(f"{what} can't be recorded, {error.reason}") from None
