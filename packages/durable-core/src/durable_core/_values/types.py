"""The types that come back from JSON, by msgspec or pydantic. Other types are refused before anything runs."""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache, partial
from types import NoneType, UnionType
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import inspect

_BY_PYDANTIC: Final = ("fractions", "ipaddress", "pathlib")
"""Modules whose classes only pydantic has codecs for. We import none of them."""
_TEXTS: Final = (str, bytes, UUID, Decimal, date, time, timedelta)
_LISTS: Final = (list, tuple, set, frozenset, deque)
_JSON: Final = {Any, object, dict, list, str, int, float, bool, NoneType}  # `object` is the class of unions

# Bound here once, because libraries that freeze time replace the names of these classes while tests run.
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
"""Classes whose subclasses may come back as the class itself, if that class is declared."""

Codecs = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]


@lru_cache(maxsize=1024)
def is_model(type_: Any) -> bool:
    """Return True for a pydantic model. We look at its attributes, so that pydantic is imported only if it is needed."""
    return isinstance(type_, type) and hasattr(type_, "__pydantic_validator__") and hasattr(type_, "model_validate_json")


def stems_from(class_: type, *modules: str) -> bool:
    """Return True if one of the modules defines the class or one of its bases."""
    return any(base.__module__.partition(".")[0] in modules for base in class_.__mro__)


def parts_of(
    type_: Any, place: str = "", seen: dict[int, Any] | None = None, *, models: bool = False
) -> Iterator[tuple[Any, str]]:
    """Yield a type and all its parts, each with its field. `models` says whether to look into models."""
    seen = {} if seen is None else seen
    type_ = _bare(type_)
    if id(type_) in seen:
        return
    seen[id(type_)] = type_
    yield type_, place
    if typing.get_origin(type_) is not typing.Literal:
        for child in typing.get_args(type_):
            yield from parts_of(child, place, seen, models=models)
    class_ = _class_of(type_)
    if is_model(class_):
        fields = {name: field.annotation for name, field in _written_fields(class_).items()} if models else {}
    else:
        try:
            fields = {} if class_.__module__ == "builtins" else typing.get_type_hints(class_, include_extras=True)
        except Exception:  # msgspec or pydantic says what is wrong with them
            return
    for name, child in fields.items():
        yield from parts_of(child, f", in the field `{name}` of {type_name(type_)}", seen, models=models)


def _bare(type_: Any) -> Any:
    """Unwrap `Annotated`, `NewType` and `type` aliases."""
    while typing.get_origin(type_) is typing.Annotated or hasattr(type_, "__supertype__") or hasattr(type_, "__value__"):
        type_ = getattr(type_, "__origin__", None) or getattr(type_, "__supertype__", None) or type_.__value__
    return type_


def _class_of(type_: Any) -> type:
    """Return the class of the type's instances; `object` if there is none."""
    type_ = _bare(type_)
    origin = typing.get_origin(type_) or type_
    if origin is typing.Literal:
        return type(typing.get_args(type_)[0])
    return NoneType if origin is None else origin if isinstance(origin, type) and origin is not UnionType else object


def _written_fields(model: Any) -> dict[str, Any]:
    """Return the fields of a model that pydantic writes, without those that the model's own serializers write."""
    decorators = model.__pydantic_decorators__
    own = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    if decorators.model_serializers or "*" in own:
        return {}
    own |= {name for name, field in model.model_fields.items() if "Serializer" in repr([*map(type, field.metadata)])}
    return {name: field for name, field in model.model_fields.items() if name not in own}


def secret(type_: Any) -> str | None:
    """Return which part of `type_` JSON hides; None if there is none."""
    for part, place in parts_of(type_, models=True):
        class_ = _class_of(part)
        if hasattr(class_, "get_secret_value"):
            return f"JSON has asterisks for a {class_.__name__}{place}"
        for name, field in _written_fields(class_).items() if is_model(class_) else ():
            if field.exclude:
                return f"JSON leaves it out (exclude=True), in the field `{name}` of {class_.__name__}"
    return None


def refusal(type_: Any) -> str | None:
    """Return why values of `type_` would not come back through msgspec; None if they may."""
    return next((reason + place for part, place in parts_of(type_) if (reason := _refusal(part, place))), None)


def _refusal(type_: Any, place: str) -> str | None:
    class_ = _class_of(type_)
    for field in getattr(class_, "__attrs_attrs__", ()):
        if field.name.startswith("_"):
            return f"attrs fields that begin with an underscore are left out of JSON, as `{field.name}` would be"
    if not _has_keys(type_):
        return "the keys of a JSON object are text, and these have no form as text"
    if _is_object(class_) or class_ is object or (class_ is msgspec.UnsetType and place):
        return None
    try:
        unknown = isinstance(inspect.type_info(class_), (inspect.CustomType, inspect.RawType, inspect.ExtType))
    except Exception:  # msgspec raises for it when the codec is made
        unknown = False
    return f"{type_name(class_)} can't be decoded from JSON" if unknown else None


def _has_keys(type_: Any) -> bool:
    """Return True unless `type_` is a dict whose keys aren't JSON strings."""
    keys = [*map(_class_of, typing.get_args(type_)[:1])] if issubclass(_class_of(type_), dict) else []
    return all(key is object or _is_text(key) or (issubclass(key, (int, float, Enum)) and key is not bool) for key in keys)


def _is_object(class_: Any) -> bool:
    return is_model(class_) or hasattr(class_, "__dataclass_fields__") or typing.is_typeddict(class_)


def _is_text(class_: Any) -> bool:
    return issubclass(class_, _TEXTS) or stems_from(class_, *_BY_PYDANTIC)


def _is_list(class_: Any) -> bool:
    return issubclass(class_, _LISTS)


def is_json(type_: Any) -> bool:
    """Return True if values of `type_` come back only as dicts, lists, strings, numbers, booleans and None."""
    return _JSON.issuperset(_class_of(part) for part, _ in parts_of(type_))


def pydantic_codecs(type_: Any) -> Codecs | None:
    """Return pydantic's encoder and decoder for `type_`; None for a type that isn't left to pydantic.

    Raises `ImportError` if pydantic is needed and not installed, and what pydantic raises for an unknown type.
    """
    parts = [part for part, _ in parts_of(type_)]
    if not any(map(_needs_pydantic, parts)) or not all(map(_suits_pydantic, parts)):
        return None
    try:
        from pydantic import PydanticUserError, TypeAdapter
    except ImportError as error:
        raise ImportError("msgspec has no codec for it, and pydantic is not installed") from error
    made: TypeAdapter[Any]
    try:
        made = TypeAdapter(type_, config={"ser_json_bytes": "base64", "val_json_bytes": "base64"})
    except PydanticUserError:  # a class with its own config
        made = TypeAdapter(type_)
    encode = partial(made.dump_json, by_alias=False, round_trip=True, warnings=False)
    return encode, partial(made.validate_json, by_alias=True, by_name=True)


def _members(type_: Any) -> list[type]:
    return [*map(_class_of, typing.get_args(type_))] if typing.get_origin(type_) in (typing.Union, UnionType) else []


def _needs_pydantic(type_: Any) -> bool:
    class_ = _class_of(type_)
    return any(map(_is_object, _members(type_))) or issubclass(class_, deque) or stems_from(class_, *_BY_PYDANTIC)


def _suits_pydantic(type_: Any) -> bool:
    """Return True if values of the type come back, and JSON distinguishes the members of a union."""
    members, class_ = _members(type_), _class_of(type_)
    if any(sum(map(alike, members)) > 1 for alike in (_is_text, _is_list)):
        return False
    known = issubclass(class_, (*_LISTS, dict, int, float, Enum, NoneType)) or _is_text(class_) or _is_object(class_)
    return _has_keys(type_) and (known or bool(members) or type_ in (Any, ...) or isinstance(type_, typing.TypeVar))


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
        # As JSON, not as objects, so that strict models accept what they wrote.
        return type_.model_validate_json(msgspec.json.encode(value), by_alias=True, by_name=True)
    return value


encode: Final[Callable[[Any], bytes]] = msgspec.json.Encoder(enc_hook=_to_json).encode


def decoder(type_: Any) -> Callable[[bytes], Any]:
    """Return the function that decodes JSON to `type_`. Raises what msgspec raises for a type that it doesn't accept."""
    return msgspec.json.Decoder(type_, dec_hook=_from_json).decode


def type_name(type_: Any) -> str:
    """Return the usual name of a type: `int`, `list[int]`, `Order | None`."""
    if type_ is NoneType:
        return "None"
    return type_.__qualname__ if isinstance(type_, type) and not typing.get_args(type_) else repr(type_).replace("typing.", "")
