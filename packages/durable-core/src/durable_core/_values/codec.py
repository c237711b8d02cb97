"""The codec of one type: JSON on one line, from which values never come back changed."""

from __future__ import annotations

from contextlib import suppress
from marshal import dumps
from typing import Any, Final, Generic, TypeVar

import msgspec

from durable_core._system.roots import UnrecordableValue
from durable_core._system.text import describe, message

from .difference import DEEP, difference, holds_no_number, innermost
from .types import Codecs, decoder, encode, is_json, type_name

T = TypeVar("T")

_LONG: Final = 300
_UNTYPED_ADVICE: Final = (
    "without a type only JSON's own values are recorded: annotate what the function returns, or pass `returns=`"
)
_TYPED_ADVICE: Final = "as {} it would not be the same on a replay: return a value that is, or pass another type as `returns=`"


class Codec(Generic[T]):
    """Encodes values of one type as JSON on one line, and decodes them.

    Without a type (`Any`), it accepts plain JSON values, a tuple as a list, and a subclass of dict as a dict.
    """

    __slots__ = ("_decode", "_encode", "_exact", "_is_json", "type")

    def __init__(self, type_: Any, codecs: Codecs | None = None) -> None:
        self.type = type_
        self._exact = type_ is Any
        self._is_json = is_json(type_)
        self._encode, self._decode = codecs or (encode, decoder(type_))

    def __repr__(self) -> str:
        return f"Codec({type_name(self.type)})"

    def decode(self, data: bytes) -> T:
        """Decode `data`. Raises `msgspec.DecodeError`, also for errors of a class's own validation."""
        try:
            return self._decode(data)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, MemoryError):
            raise
        except Exception as error:
            raise msgspec.ValidationError(f"{type(error).__name__}: {message(error)}") from error

    def record(self, value: T) -> tuple[bytes, T]:
        """Return `value` as JSON, and decoded from that JSON. Raises `UnrecordableValue` if the two values differ."""
        try:
            data = self._encode(value)
            back = self._decode(data)
            same = self._is_json and _same_bytes(value, back, data)
            found = None if same else difference(value, back, self._exact)
        except RecursionError as error:
            raise self._refused("", f"the {type(value).__name__} contains itself, or is nested too deeply") from error
        except Exception as error:
            raise self._refused(*self._place(value, error)) from error
        if found is not None:
            raise self._refused(*found)
        return data, back

    def _refused(self, path: str, problem: str) -> UnrecordableValue:
        advice = _UNTYPED_ADVICE if self._exact else _TYPED_ADVICE.format(type_name(self.type))
        reason = f"at `${path if len(path) < _LONG else f'{path[:_LONG]}…'}`: {problem}"
        refusal = UnrecordableValue(f"the value can't be recorded, {reason}; {advice} (`returns=None` records no value)")
        refusal.reason = reason
        return refusal

    def _place(self, value: Any, error: Exception) -> tuple[str, str]:
        """Return the path to the part of `value` that caused `error`, and what is wrong with it."""
        with suppress(Exception):  # a class's own attributes may raise
            if self._error_of(value):
                path, part = innermost(value, self._error_of)
                return path, f"{describe(part)} can't be written as JSON ({message(self._error_of(part) or error)})"
            path, part = innermost(value, holds_no_number)
            if isinstance(part, float) and holds_no_number(part):
                return path, f"{describe(part)} came back as null, since JSON has no such number"
        problem, _, place = message(error).partition(" - at ")
        return place.partition("$")[2].partition("`")[0], f"{describe(value)} is refused ({problem})"

    def _error_of(self, part: Any) -> Exception | None:
        try:
            self._encode(part)
        except Exception as error:
            return error
        return None


def _same_bytes(value: Any, back: Any, data: bytes) -> bool:
    """Return True for plain JSON values that are the same, including all types; False if that needs a closer look."""
    if len(data) > 2 * DEEP and data.count(b"[") + data.count(b"{") > DEEP:  # it may be nested too deeply
        return False
    try:
        return dumps(value, 2) == dumps(back, 2)
    except ValueError:  # `marshal` knows builtin types alone
        return False
