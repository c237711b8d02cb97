"""The types that msgspec records and brings back. What it would refuse or change later is refused before anything runs."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Final

from msgspec import inspect

from .models import is_model

# What msgspec would only refuse once a value is there: keys that are no JSON text.
_NO_KEYS: Final = (
    inspect.BoolType,
    inspect.NoneType,
    inspect.TupleType,
    inspect.VarTupleType,
    inspect.ListType,
    inspect.SetType,
    inspect.FrozenSetType,
    inspect.DictType,
    inspect.DataclassType,
    inspect.StructType,
    inspect.NamedTupleType,
    inspect.TypedDictType,
)


# Types whose values come back as the builtin ones that `json` knows.
_BUILTIN: Final = (
    inspect.AnyType,
    inspect.NoneType,
    inspect.BoolType,
    inspect.IntType,
    inspect.FloatType,
    inspect.StrType,
    inspect.ListType,
    inspect.DictType,
    inspect.UnionType,
)


def is_builtin(node: inspect.Type) -> bool:
    """Return True if values of the type come back as nothing but dicts, lists, text, numbers, booleans and None."""
    return isinstance(node, _BUILTIN) and all(is_builtin(child) for child in _children(node) if isinstance(child, inspect.Type))


def refusal(type_: Any) -> str | None:
    """Say why values of `type_` would not come back from JSON, or None if they may."""
    return _refusal(inspect.type_info(type_), "", set())


def _refusal(node: Any, where: str, seen: set[int]) -> str | None:
    if id(node) in seen:
        return None
    seen.add(id(node))
    if reason := _own_refusal(node):
        return reason + where
    for child in _children(node):
        if isinstance(child, inspect.Field):
            reason = _refusal(child.type, f", in the field `{child.name}` of {type_name(node.cls)}", seen)
        elif isinstance(child, inspect.Type):
            reason = _refusal(child, where, seen)
        else:
            reason = None
        if reason:
            return reason
    return None


def _children(node: Any) -> Iterator[Any]:
    for name in node.__struct_fields__:
        children = getattr(node, name)
        yield from children if isinstance(children, tuple) else (children,)


def _own_refusal(node: inspect.Type) -> str | None:
    if isinstance(node, inspect.CustomType) and node.cls is not object and not is_model(node.cls):
        return f"{type_name(node.cls)} can't be decoded from JSON"
    if isinstance(node, (inspect.RawType, inspect.ExtType)):
        return "msgspec.Raw and Ext hold what is already encoded; use Any"
    if isinstance(node, inspect.DictType) and isinstance(node.key_type, _NO_KEYS):
        return "the keys of a JSON object are text, and these have no form as text"
    if isinstance(node, inspect.DataclassType):
        for field in getattr(typing.get_origin(node.cls) or node.cls, "__attrs_attrs__", ()):
            if field.name.startswith("_"):
                return f"attrs fields that begin with an underscore are left out of JSON, as `{field.name}` would be"
    return None


def type_name(type_: Any) -> str:
    """Return the name that people know a type by: `int`, `list[int]`, `Order | None`."""
    if type_ is type(None):
        return "None"
    return type_.__qualname__ if isinstance(type_, type) and not typing.get_args(type_) else repr(type_).replace("typing.", "")
