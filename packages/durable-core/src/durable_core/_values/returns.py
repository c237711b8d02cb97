"""Which codec records a value: by a type that is given, or by what a function says it returns."""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any, Final, TypeVar

from durable_core._system.roots import UnrecordableValue

from .annotations import NOTHING, annotation_of, called_by, depends_on_closure, name_of, return_type, unwrapped
from .codec import Codec
from .models import adapter, secret_field
from .paths import message
from .types import refusal, type_name

__all__ = ["UNTYPED", "Codec", "FunctionCodecs", "codec_for", "codec_of", "record_any"]

UNTYPED: Final[Codec[Any]] = Codec(Any)
"""The codec for values of which no type is known."""


def codec_for(type_: Any) -> Codec[Any]:
    """Return the codec of a type, made once; `Any` and `object` mean untyped.

    Raises `TypeError` for what is no type, or a type whose values JSON can't bring back.
    """
    try:
        hash(type_)
    except TypeError:
        return _make_codec(type_)
    return _codec_for(type_)


def _make_codec(type_: Any) -> Codec[Any]:
    if type_ is Any or type_ is object:
        return UNTYPED
    if type_ is None:
        return codec_for(type(None))
    if isinstance(type_, TypeVar):
        return codec_for(type_.__bound__ or Any)
    if type_ is typing.NoReturn or type_ is typing.Never:
        return UNTYPED
    if isinstance(type_, str):
        raise TypeError(f"{type_!r} is text, not a type: pass the type itself, such as `returns=list[int]`")
    if reason := secret_field(type_):
        raise _no_codec(type_, reason)
    try:
        if (reason := refusal(type_)) is None:
            return Codec(type_)
    except Exception as error:  # msgspec has no codec for it
        reason = message(error)
    try:
        codecs = adapter(type_)
    except Exception as error:
        raise _no_codec(type_, message(error).partition("\n")[0]) from error
    if codecs is None:
        raise _no_codec(type_, reason)
    return Codec(type_, codecs)


def _no_codec(type_: Any, reason: str) -> TypeError:
    return TypeError(
        f"values of {type_name(type_)} can't be recorded ({reason}): return a dataclass, a msgspec.Struct (with `tag=True` to be"
        " told apart in a union), a pydantic model or builtin types, or pass `returns=` (`returns=None` records no value)"
    )


_codec_for = lru_cache(maxsize=1024)(_make_codec)


class FunctionCodecs:
    """The codecs of what functions return, found once for all functions of one code.

    Code counts by identity: two functions alike in two modules have equal code but resolve names differently.
    """

    def __init__(self, limit: int = 4096, return_type: Callable[[Callable[..., Any]], Any] = return_type) -> None:
        self._limit: Final = limit
        self._return_type: Final = return_type
        self._known: Final[dict[int, tuple[CodeType, Any, Codec[Any]]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def codec_of(self, fn: Callable[..., Any]) -> Codec[Any]:
        """Return the codec of what `fn` returns, by its annotation; `UNTYPED` if it has none.

        Raises `TypeError` if the annotation can't be resolved or recorded, and for a generator function.
        """
        called: Any = fn
        while type(called) is partial:
            called = called.func
        try:  # a bound method has its function's code and annotations
            _, annotation, codec = self._known[id(called.__code__)]
            if annotation == called.__annotations__.get("return", NOTHING):
                return codec
        except Exception:  # no function, one that was not seen yet, or annotations that can't be evaluated
            pass
        function = unwrapped(called_by(called))
        known = self._known.get(id(getattr(function, "__code__", None)))
        if known is not None and known[1] == annotation_of(function):
            return known[2]
        return self._learn(fn, function)

    def _learn(self, fn: Callable[..., Any], function: Any) -> Codec[Any]:
        type_ = self._return_type(fn)
        try:
            codec = UNTYPED if type_ is NOTHING else codec_for(type_)
        except TypeError as error:
            raise TypeError(f"{name_of(fn)}: {error}") from error
        # Never under the code of a wrapper: all that it wraps shares that code.
        if type(function) is FunctionType and not depends_on_closure(function, annotation := annotation_of(function)):
            if len(self._known) >= self._limit:
                self._known.clear()
            self._known[id(function.__code__)] = function.__code__, annotation, codec
        return codec


codec_of: Final = FunctionCodecs().codec_of


def record_any(value: object, what: str) -> bytes:
    """Return a value that comes from outside as JSON: plain JSON as it is, anything else by its own type.

    Raises `UnrecordableValue`, a `TypeError`, for one that would not come back the same, and calls it `what`.
    """
    try:
        return UNTYPED.record(value)[0]
    except UnrecordableValue as error:
        reason = error.reason
    if type(value) not in (dict, list, tuple):
        try:
            return codec_for(type(value)).record(value)[0]
        except UnrecordableValue as error:
            reason = error.reason
        except TypeError:  # there is no codec for its type, as the first refusal says
            pass
    raise UnrecordableValue(f"{what} can't be recorded, {reason}")
