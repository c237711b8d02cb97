"""The recorded fingerprint of arguments, and a hash of what their JSON hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec

from durable_core._system.text import class_name
from durable_core._values.difference import parts
from durable_core._values.types import is_model, stems_from

SCALARS: Final = frozenset({str, int, bool, type(None)})
"""Types whose values JSON distinguishes from those of all others."""
_PYDANTIC: Final = ("pydantic", "pydantic_core", "pydantic_extra_types")  # whose other values are distinguished by their text


def fingerprint_of(args: tuple[Any, ...], keywords: Mapping[str, Any] | None = None) -> str | None:
    """Return a short hash of arguments, which is equal in every process for equal arguments; None without arguments.

    A value that has no JSON form counts only by its type.
    """
    arguments = (args, keywords) if keywords else args
    return content_of(arguments)[0] if arguments else None


def content_of(arguments: tuple[Any, ...]) -> tuple[str, int, Sequence[object]]:
    """Return the fingerprint of arguments, a hash of what their JSON hides, and the parts without a JSON form.

    We keep a hash of the arguments and their types, not the arguments.
    """
    opaque: Sequence[object] = ()
    try:
        data = _encode(arguments)
    except Exception:  # a part has no JSON
        data, opaque = _described(arguments)
    hidden = 0
    if not SCALARS.issuperset(map(type, arguments)):
        try:
            hidden = hidden_by_json(arguments)
        except Exception:  # a cycle, or a class whose attributes raise
            opaque = arguments
    return blake2b(data, digest_size=8).hexdigest(), hidden, opaque


def hidden_by_json(value: Any) -> int:
    """Return a hash of what JSON hides of `value`: its types, and what its classes leave out."""
    kind: Any = type(value)
    if kind in SCALARS or (kind in (list, tuple) and SCALARS.issuperset(map(type, value))):
        return hash(kind)
    if kind is float:  # some have no number in JSON
        return hash((kind, repr(value)))
    if hasattr(kind, "get_secret_value"):  # pydantic's secrets, which are written as asterisks
        return hash((kind, fingerprint_of((value.get_secret_value(),))))
    found: set[object] = set()
    for key, part in parts(value).items():
        name = ... if key is part else key  # a member of a set is its own key
        is_private = isinstance(key, str) and key.startswith("_")  # attrs and pydantic leave them out
        found.add((name, type(name), hidden_by_json(part), is_private and fingerprint_of((part,))))
    return hash((kind, frozenset(found)))


def _described(arguments: object) -> tuple[bytes, list[object]]:
    """Return arguments as JSON that names the type of each part without a JSON form, and those parts."""
    opaque: list[object] = []

    def hook(found: Any) -> object:
        kind: Any = type(found)
        if is_model(kind):  # by its fields, because its dump may be masked, rounded, or in the order of a set
            extra = getattr(found, "__pydantic_extra__", None) or {}
            return {**{name: getattr(found, name, None) for name in kind.model_fields}, **extra}
        if stems_from(kind, "pathlib") or kind.__module__.partition(".")[0] in _PYDANTIC:
            return str(found)
        opaque.append(found)
        return f"<{class_name(kind)}>"

    encode = msgspec.json.Encoder(enc_hook=hook, order="deterministic").encode
    try:
        return encode(arguments), opaque
    except Exception:  # a key, a text or a number that JSON can't hold
        opaque.clear()
    try:
        return encode(_spelled(arguments)), opaque
    except Exception:  # a cycle, or a class whose attributes raise
        return f"<{type(arguments).__qualname__}>".encode(), [arguments]


def _spelled(value: Any) -> Any:
    """Return builtin values as lists and plain text, with any keys, characters and numbers."""
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
