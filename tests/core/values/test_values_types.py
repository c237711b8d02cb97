"""The types that values are recorded as: made into codecs once, and refused at once where JSON can't bring them back."""

import collections
import dataclasses
import enum
import re
import threading
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec
import pytest

from durable_core._values.returns import UNTYPED, codec_for
from durable_core.errors import UnrecordableValue
from tests.core.values.value_types import (
    Account,
    Box,
    Node,
    Order,
    Parcel,
    Picky,
    Point,
    T,
    Underscored,
    label,
)


@pytest.mark.parametrize(
    "type_",
    [
        Order | Parcel,
        datetime | str,
        bytes | str,
        list[int] | set[int],
        complex,
        list[complex],
        type,
        threading.Lock,
        Exception,
        re.Pattern[str],
        collections.abc.Iterator[int],
        collections.abc.Iterable[int],
        collections.abc.Callable[[], int],
        collections.abc.AsyncIterator[int],
        collections.OrderedDict[str, int],
        collections.defaultdict[str, int],
        dict[tuple[int, int], str],
        dict[Point, str],
        dict[bool, str],
        dict[None, str],
        dict[complex, str],
        msgspec.Raw,
        list[msgspec.Raw],
        msgspec.msgpack.Ext,
        msgspec.UnsetType,
        Underscored,
        Box[complex],
        Box[Box[complex]],
        list["Order"],
        "list[int]",
        "Unheard",
        5,
        1.5,
        (int, str),
        [int],
        lambda: int,
        len,
        ...,
        enum.Enum,
        Literal[b"x"],
    ],
    ids=label,
)
def test_a_type_that_json_cannot_bring_back_is_refused_at_once(type_: Any) -> None:
    """The type is refused before anything runs, with its name and what to do."""
    for _ in range(2):
        with pytest.raises(TypeError, match="returns=") as caught:
            codec_for(type_)
        assert not isinstance(caught.value, UnrecordableValue)


def test_a_refused_type_is_found_in_its_depth() -> None:
    """The message names the field that holds the bad type, also in classes that refer to themselves."""

    @dataclasses.dataclass
    class Inner:
        angle: list[complex]
        others: "list[Node]"

    @dataclasses.dataclass
    class Outer:
        node: Node
        inner: dict[str, Inner | None]

    with pytest.raises(TypeError, match=r"complex can't be decoded from JSON, in the field `angle` of .*Inner"):
        codec_for(Outer)


def test_a_class_whose_fields_cannot_be_resolved_is_refused() -> None:
    """A field's annotation that names nothing is a TypeError with the name."""

    @dataclasses.dataclass
    class Lost:
        field: "Unheard"  # noqa: F821

    with pytest.raises(TypeError, match="Unheard"):
        codec_for(Lost)


def test_codecs_are_made_once() -> None:
    """The same type gives the same codec, and no type at all the untyped one."""
    assert codec_for(list[int]) is codec_for(list[int])
    assert codec_for(Literal[1]) is not codec_for(Literal[True])
    assert codec_for(Any) is codec_for(object) is codec_for(T) is UNTYPED
    assert codec_for(TypeVar("Bound", bound=Order)) is codec_for(Order)
    assert "Order" in repr(codec_for(Order))


@pytest.mark.parametrize(
    ("type_", "data"),
    [
        (int, b'"x"'),
        (Order, b'{"id": 1}'),
        (Account, b"{}"),
        (Picky, b'{"number": 2}'),
        (Any, b"{"),
        (Any, b'"\xff"'),
        (Any, b'"\\ud800"'),
        (int, b"1" * 5000),
        (Any, b"[" * 100_000),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_decoding_raises_one_kind_of_error(type_: Any, data: bytes) -> None:
    """Whatever is wrong with the bytes, and whatever a class's own validation raises, is a DecodeError."""
    with pytest.raises(msgspec.DecodeError):
        codec_for(type_).decode(data)
