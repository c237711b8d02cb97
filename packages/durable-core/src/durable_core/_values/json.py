"""JSON by msgspec, which is taught pydantic models, and subclasses of the plain types."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Final

import msgspec

from .types import is_model

# Bound here, once: libraries that freeze time replace the classes' names in modules while tests run.
_datetime, _date = datetime.combine, date.fromordinal
_BARE: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
    (datetime, lambda value: _datetime(value.date(), value.timetz())),
    (date, lambda value: _date(value.toordinal())),
)
BASES: Final = frozenset({base for base, _ in _BARE} | {list})
"""The classes whose subclasses may come back as the class itself, where that class is declared."""


def _to_json(value: Any) -> Any:
    kind: Any = type(value)
    if is_model(kind):
        return value.model_dump(mode="json", by_alias=False, round_trip=True, warnings=False)
    for base, bare in _BARE:
        if isinstance(value, base):
            return bare(value)
    raise TypeError(f"{kind.__name__} has no form in JSON")


def _from_json(type_: Any, value: Any) -> Any:
    if is_model(type_):
        # As JSON, not as objects, so that strict models take back what they wrote.
        return type_.model_validate_json(msgspec.json.encode(value), by_alias=True, by_name=True)
    return value


encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder(enc_hook=_to_json).encode


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """Return the function that decodes JSON to `type_`; raises what msgspec raises for a type it does not take."""
    return msgspec.json.Decoder(type_, dec_hook=_from_json).decode
