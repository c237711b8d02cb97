"""JSON by msgspec, which is taught pydantic models, and subclasses of the plain types."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Any, Final

import msgspec

from .models import is_model, takes_names


def _bare_datetime(value: datetime, *, new: type[datetime] = datetime) -> datetime:
    clock = value.hour, value.minute, value.second, value.microsecond
    return new(value.year, value.month, value.day, *clock, tzinfo=value.tzinfo, fold=value.fold)


def _bare_date(value: date, *, new: type[date] = date) -> date:
    return new(value.year, value.month, value.day)


# The classes are bound here, once: libraries that freeze time replace the names in modules while tests run.
_BARE: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
    (datetime, _bare_datetime),
    (date, _bare_date),
)

BASES: Final = frozenset({base for base, _ in _BARE} | {list})
"""The classes whose subclasses may come back as the class itself, where that class is declared."""


def _to_json(value: Any) -> Any:
    kind: Any = type(value)
    if is_model(kind):
        return value.model_dump(mode="json", by_alias=not takes_names(kind.model_validate_json), round_trip=True, warnings=False)
    for base, bare in _BARE:
        if isinstance(value, base):
            return bare(value)
    raise TypeError(f"{kind.__name__} has no form in JSON")


def _from_json(type_: Any, value: Any) -> Any:
    if is_model(type_):
        # As JSON, not as objects, so that strict models take back what they wrote.
        options = {"by_alias": True, "by_name": True} if takes_names(type_.model_validate_json) else {}
        return type_.model_validate_json(msgspec.json.encode(value), **options)
    return value


encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder(enc_hook=_to_json).encode
encode_untyped: Final[Callable[[Any], bytes]] = msgspec.json.Encoder().encode


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """Return the function that decodes JSON to `type_`; raises what msgspec raises for a type it does not take."""
    return msgspec.json.Decoder(type_, dec_hook=_from_json).decode
