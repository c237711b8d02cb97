"""The codec of one type: JSON on one line, and never a value that comes back changed."""

from __future__ import annotations

from marshal import dumps
from typing import Any, Final, Generic, TypeVar

import msgspec

from durable_core._system.roots import UnrecordableValue

from . import json
from .difference import DEEP, difference, holds_no_number, innermost
from .paths import describe, message, short
from .types import Codecs, type_name

T = TypeVar("T")

_LONG: Final = 300
_UNTYPED_ADVICE: Final = (
    "without a type only JSON's own values are recorded: annotate what the function returns, or pass `returns=`"
)
_TYPED_ADVICE: Final = "as {} it would not be the same on a replay: return a value that is, or pass another type as `returns=`"


class Codec(Generic[T]):
    """Encodes values of one type as JSON on one line, and decodes them.

    Without a type (`Any`) it takes JSON's own values, a tuple as a list and a subclass of dict as a dict.
    """

    __slots__ = ("_decode", "_encode", "_exact", "_is_json", "type")

    def __init__(self, type_: Any, codecs: Codecs | None = None, *, is_json: bool = False) -> None:
        self.type = type_
        self._exact = type_ is Any
        self._is_json = is_json
        self._encode, self._decode = codecs or (json.encode, json.decoder(type_))

    def __repr__(self) -> str:
        return f"Codec({type_name(self.type)})"

    def encode(self, value: T) -> bytes:
        """Return `value` as JSON. Raises `UnrecordableValue` if it would not come back as it is."""
        return self.record(value)[0]

    def decode(self, data: bytes) -> T:
        """Return the value that `data` holds. Raises `msgspec.DecodeError`, whatever a class's own validation raised."""
        try:
            return self._decode(data)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, MemoryError):
            raise
        except Exception as error:
            raise msgspec.ValidationError(f"{type(error).__name__}: {message(error)}") from error

    def record(self, value: T) -> tuple[bytes, T]:
        """Return `value` as JSON, and as that JSON decodes. Raises `UnrecordableValue` if the two values differ."""
        try:
            data = self._encode(value)
        except Exception as error:
            raise self._unencodable(value, error) from error
        try:
            back = self._decode(data)
        except Exception as error:
            raise self._undecodable(value, error) from error
        try:
            same = self._is_json and type(value) is type(back) and _same_bytes(value, back, data)
            found = None if same else difference(value, back, self._exact)
        except RecursionError as error:
            raise self._too_deep(value) from error
        except Exception as error:
            problem = f"{short(value)} could not be compared with what came back ({type(error).__name__}: {message(error)})"
            raise self._refused("", problem) from error
        if found is not None:
            raise self._refused(*found)
        return data, back

    def _refused(self, path: str, problem: str) -> UnrecordableValue:
        advice = _UNTYPED_ADVICE if self._exact else _TYPED_ADVICE.format(type_name(self.type))
        reason = f"at `${path if len(path) < _LONG else f'{path[:_LONG]}…'}`: {problem}"
        refusal = UnrecordableValue(f"the value can't be recorded, {reason}; {advice} (`returns=None` records no value)")
        refusal.reason = reason
        return refusal

    def _too_deep(self, value: Any) -> UnrecordableValue:
        return self._refused("", f"the {type(value).__name__} contains itself, or is nested too deeply")

    def _unencodable(self, value: Any, error: Exception) -> UnrecordableValue:
        if isinstance(error, RecursionError):
            return self._too_deep(value)
        try:
            path, part = innermost(value, lambda part: self._error_of(part) is not None)
        except Exception:  # a class's own attributes may raise
            path, part = "", value
        return self._refused(path, f"{describe(part)} can't be written as JSON ({message(self._error_of(part) or error)})")

    def _error_of(self, part: Any) -> Exception | None:
        try:
            self._encode(part)
        except Exception as error:
            return error
        return None

    def _undecodable(self, value: Any, error: Exception) -> UnrecordableValue:
        try:
            path, part = innermost(value, holds_no_number)
        except Exception:  # a class's own attributes may raise
            path, part = "", value
        if isinstance(part, float) and holds_no_number(part):
            return self._refused(path, f"{describe(part)} came back as null, since JSON has no such number")
        problem, _, place = message(error).partition(" - at ")
        return self._refused(place.partition("$")[2].partition("`")[0], f"{describe(value)} does not come back ({problem})")


def _same_bytes(value: Any, back: Any, data: bytes) -> bool:
    """Return True for JSON's own values that are the same, down to every type; False where that takes a closer look."""
    if len(data) > 2 * DEEP and data.count(b"[") + data.count(b"{") > DEEP:  # it may be nested too deeply
        return False
    try:
        return dumps(value, 2) == dumps(back, 2)
    except ValueError:  # `marshal` knows builtin types alone
        return False
