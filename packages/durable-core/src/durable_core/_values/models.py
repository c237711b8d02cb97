"""What pydantic adds: its models, and codecs for types that msgspec has none for. It is imported only where one is needed."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Final
from uuid import UUID

_ADDRESSES: Final = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
_TEXTS: Final = (str, bytes, UUID, Decimal, date, time, timedelta, PurePath, Fraction, *_ADDRESSES)
_LISTS: Final = (list, tuple, set, frozenset, deque)
_OTHERS: Final = (int, float, NoneType, dict, Enum)
_PYDANTIC_ALONE: Final = (PurePath, Fraction, deque, *_ADDRESSES)
_UNIONS: Final = (typing.Union, UnionType)
_BYTES: Final = {"ser_json_bytes": "base64", "val_json_bytes": "base64"}

Codecs = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]


@lru_cache(maxsize=1024)
def is_model(type_: Any) -> bool:
    """Return True for a pydantic model; we look at its attributes, so that pydantic need not be imported."""
    return isinstance(type_, type) and hasattr(type_, "__pydantic_validator__") and hasattr(type_, "model_validate_json")


@lru_cache(maxsize=1024)
def takes_names(validate: Any) -> bool:
    """Return True if pydantic can read fields by their names: since 2.11. Before, a field needs one alias for both ways."""
    return "by_name" in inspect.signature(validate).parameters


def secret_field(type_: Any, place: str = "", seen: dict[int, Any] | None = None) -> str | None:
    """Say which field of a model in `type_` can't come back, because JSON hides it; None if there is none."""
    if hasattr(type_, "get_secret_value"):
        return f"JSON has asterisks for a {type_.__name__}{place}"
    seen = {} if seen is None else seen
    if id(type_) in seen:
        return None
    seen[id(type_)] = type_
    for name, child, field in _children(type_):
        within = f", in the field `{name}` of {getattr(type_, '__name__', type_)}" if name else place
        if field is not None and field.exclude:
            return f"JSON leaves it out (exclude=True){within}"
        if reason := secret_field(child, within, seen):
            return reason
    return None


def adapter(type_: Any) -> Codecs | None:
    """Return how pydantic encodes and decodes values of `type_`; None for a type that is not left to pydantic.

    Raises `ImportError` where pydantic is needed and not installed, and what pydantic raises for what it doesn't know.
    """
    types = [*_all_in(type_, {})]
    if not any(map(_needs_pydantic, types)) or not all(map(_comes_back, types)):
        return None
    try:
        from pydantic import PydanticUserError, TypeAdapter
    except ImportError as error:
        raise ImportError("msgspec has no codec for it, and pydantic is not installed") from error
    made: TypeAdapter[Any]
    try:
        made = TypeAdapter(type_, config=_BYTES)  # type: ignore[arg-type]  # mypy wants a literal
    except PydanticUserError:  # a class that has a config of its own
        made = TypeAdapter(type_)
    names = takes_names(TypeAdapter.validate_json)
    options: dict[str, Any] = {"by_alias": True, "by_name": True} if names else {}
    return (
        partial(made.dump_json, by_alias=not names, round_trip=True, warnings=False),
        partial(made.validate_json, **options),
    )


def _all_in(type_: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Yield `type_` and all types that it consists of, but for the fields of models, which are pydantic's affair."""
    type_ = _bare(type_)
    if id(type_) not in seen:
        seen[id(type_)] = type_
        yield type_
        for _, child, _ in () if is_model(type_) else _children(type_):
            yield from _all_in(child, seen)


def _needs_pydantic(type_: Any) -> bool:
    if typing.get_origin(type_) in _UNIONS:
        return any(map(_is_object, typing.get_args(type_)))
    return issubclass(_class_of(type_), _PYDANTIC_ALONE)


def _comes_back(type_: Any) -> bool:
    """Return True if values of the type come back, and the members of a union can be told apart in JSON."""
    args = typing.get_args(type_)
    if typing.get_origin(type_) in _UNIONS:
        classes = [*map(_class_of, args)]
        return all(sum(issubclass(each, alike) for each in classes) < 2 for alike in (_TEXTS, _LISTS))
    class_ = _class_of(type_)
    if issubclass(class_, dict) and args:
        return issubclass(_class_of(args[0]), (*_TEXTS, int, float, Enum)) and _class_of(args[0]) is not bool
    known = issubclass(class_, (*_TEXTS, *_LISTS, *_OTHERS)) or _is_object(type_)
    return known or type_ in (Any, ...) or isinstance(type_, typing.TypeVar)


def _is_object(type_: Any) -> bool:
    class_ = _class_of(type_)
    return is_model(class_) or dataclasses.is_dataclass(class_) or typing.is_typeddict(class_)


def _bare(type_: Any) -> Any:
    """Take off `Annotated`, and the names that `NewType` and `type` give."""
    while True:
        if typing.get_origin(type_) is typing.Annotated:
            type_ = typing.get_args(type_)[0]
        elif (inner := getattr(type_, "__supertype__", None) or getattr(type_, "__value__", None)) is not None:
            type_ = inner
        else:
            return type_


def _class_of(type_: Any) -> type:
    """Return the class whose instances the type means; `object` where it means no class."""
    type_ = _bare(type_)
    origin = typing.get_origin(type_) or type_
    if origin is typing.Literal:
        return type(typing.get_args(type_)[0])
    return NoneType if origin is None else origin if isinstance(origin, type) else object


def _children(type_: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the types that `type_` consists of; of a field with its name, and of a model's with pydantic's account of it."""
    type_ = _bare(type_)
    origin = typing.get_origin(type_)
    if origin is not typing.Literal:
        yield from (("", child, None) for child in typing.get_args(type_))
    class_ = _class_of(type_)
    if is_model(class_):
        decorators = class_.__pydantic_decorators__  # type: ignore[attr-defined]
        written = {name for each in decorators.field_serializers.values() for name in each.info.fields}
        for name, field in class_.model_fields.items():  # type: ignore[attr-defined]
            serializers = [each for each in field.metadata if type(each).__name__.endswith("Serializer")]
            if not (name in written or "*" in written or serializers or decorators.model_serializers):
                yield name, field.annotation, field
    elif class_.__module__ != "builtins":
        try:
            hints = typing.get_type_hints(class_, include_extras=True)
        except Exception:  # msgspec or pydantic says what is wrong with them
            hints = {}
        yield from ((name, hint, None) for name, hint in hints.items())
