"""A value that would change in the log is refused, with the path to where it would."""

import math
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from durable_core._values.returns import codec_for
from durable_core.errors import UnrecordableValue
from tests.core.values.value_types import (
    ACCOUNT,
    BERLIN,
    ORDER,
    Account,
    BigOrder,
    Cached,
    Cat,
    Color,
    Compact,
    Counted,
    Day,
    Derived,
    Dog,
    Extra,
    Items,
    Level,
    Line,
    LonelyElement,
    Loose,
    Mood,
    Node,
    Noted,
    NotedBytes,
    NotedNumber,
    NotedTime,
    Number,
    Options,
    Order,
    Page,
    Parcel,
    Picky,
    Point,
    Positive,
    Premium,
    Private,
    Ratio,
    Reading,
    Signup,
    Slotted,
    Text,
    label,
    record,
    refused,
)


@pytest.mark.parametrize(
    "value",
    [
        Point(1, 2.0),
        Color.RED,
        Level.LOW,
        Mood.GOOD,
        Text("x"),
        Number(1),
        Ratio(1.5),
        Items([1]),
        Decimal(1),
        datetime(2024, 1, 1),
        date(2024, 1, 1),
        timedelta(1),
        uuid.UUID(int=1),
        b"x",
        bytearray(b"x"),
        {1, 2},
        frozenset(),
        ORDER,
        Cat(),
        Parcel(Decimal(1)),
        ACCOUNT,
        object(),
        1j,
        iter([1]),
        range(3),
        len,
        int,
        threading.Lock(),
        ValueError("x"),
        msgspec.Raw(b"1"),
        msgspec.Raw(b"{\n}"),
        msgspec.UNSET,
        math.nan,
        math.inf,
        "\ud800",
        10**5000,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: value, "$"),
        (lambda value: {"ok": 1, "items": [0, 1, (2, {"price": value})]}, "$.items[2][1].price"),
        (lambda value: {"ok": 1, "items": [0, {"price": value}]}, "$.items[1].price"),
        (lambda value: {"a key": value}, "$['a key']"),
    ],
    ids=["top", "nested", "plain", "quoted"],
)
def test_without_a_type_anything_else_is_refused(value: Any, wrap: Callable[[Any], Any], path: str) -> None:
    """What JSON has no form for is refused, with the path to it and what to do."""
    text = refused(Any, wrap(value))
    assert f"at `{path}`" in text
    assert "annotate" in text


def test_what_only_looks_like_bytes_is_refused() -> None:
    """A bytearray would come back as bytes."""
    assert "at `$[0]`" in refused(list[bytes], [bytearray(b"x")])
    assert "at `$.a`" in refused(dict[str, bytes | None], {"a": bytearray(b"x")})


def test_keys_without_a_type_are_text() -> None:
    """Keys that are not text would come back as text, so they are refused by name."""
    assert "the key 1 (int) came back as '1' (str)" in refused(Any, {"a": {1: "x"}})
    assert "at `$.a[1]`" in refused(Any, {"a": {1: "x"}})
    refused(Any, {1: "x", "1": "y"})
    refused(Any, {"1": "y", 1: "x"})
    refused(Any, {True: 1})
    refused(Any, {None: 1})
    refused(Any, {(1, 2): 1})
    refused(Any, {Mood.GOOD: 1})
    refused(Any, {Text("x"): 1})
    refused(Any, {b"x": 1})
    assert "\\ud800" in refused(Any, {"ok": 1, "\ud800": 1})


@pytest.mark.parametrize(
    ("type_", "value", "path"),
    [
        (float, math.nan, "$"),
        (Order, Order(1, [Line("a", 1.0), Line("b", math.nan)]), "$.items[1].price"),
        (Order, Order(1, [Line("a", -math.inf)]), "$.items[0].price"),
        (dict[str, float | None], {"a": 1.0, "b": math.nan}, "$.b"),
        (float | None, math.inf, "$"),
        (Reading, Reading(value=math.nan), "$.value"),
        (Counted, Counted.model_construct(number=True), "$.number"),
        (Positive, Positive.model_construct(value=-0.0), "$.value"),
        (Day, Day.model_construct(day=datetime(2024, 1, 1)), "$.day"),
        (Decimal, Decimal("NaN"), "$"),
        (list[Decimal], [Decimal(1), Decimal("sNaN")], "$[1]"),
        (Order, Order(1, [Line("\udfff", 1.0)]), "$.items[0].sku"),
        (dict[str, int], {"\udfff": 1}, "$['\\udfff']"),
        (int, 10**5000, "$"),
        (Node, Node("a", data=10**5000), "$.data"),
        (Order, BigOrder(1, [], None, 5), "$"),
        (list[Order], [ORDER, BigOrder(1, [])], "$[1]"),
        (Account, Premium(email="x"), "$"),
        (Signup, Signup(ACCOUNT, {}, Premium(email="x", perks=["a"])), "$.referrer"),
        (Node, Node("a", data=Color.RED), "$.data"),
        (Node, Node("a", data=Level.LOW), "$.data"),
        (Node, Node("a", data={1: "x"}), "$.data[1]"),
        (Node, Node("a", data={1: "x", "1": "y"}), "$.data[1]"),
        (Node, Node("a", data=[Decimal(1)]), "$.data[0]"),
        (Node, Node("a", data=datetime(2024, 1, 1)), "$.data"),
        (Node, Node("a", data=ACCOUNT), "$.data"),
        (Node, Node("a", data=ORDER), "$.data"),
        (Node, Node("a", data={1}), "$.data"),
        (Node, Node("a", data=[object()]), "$.data[0]"),
        (Node, Node("a", data=msgspec.Raw(b"1")), "$.data"),
        (str, Mood.GOOD, "$"),
        (int, Level.LOW, "$"),
        (dict[str, int], {Mood.GOOD: 1}, "$[<Mood.GOOD: 'good'>]"),
        (float, True, "$"),
        (int, True, "$"),
        (int, 1.0, "$"),
        (float, 2**53 + 1, "$"),
        (str, 1, "$"),
        (None, 1, "$"),
        (None, {"response": object()}, "$.response"),
        (list[int], {1, 2}, "$"),
        (tuple[int, ...], [1, 2], "$"),
        (tuple[int, float], Point(1, 2.0), "$"),
        (set[int], [1], "$"),
        (set[float], {True}, "$[0]"),
        (date, datetime(2024, 1, 1), "$"),
        (datetime, date(2024, 1, 1), "$"),
        (datetime, datetime(2024, 10, 27, 2, 30, fold=1), "$"),
        (time, time(2, 30, fold=1), "$"),
        (time, time(2, 30, tzinfo=BERLIN), "$"),
        (datetime, datetime(1800, 1, 1, tzinfo=BERLIN), "$"),
        (datetime, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1, seconds=30))), "$"),
        (Options, {"name": "x", "colour": 1}, "$.colour"),
        (Private, Private(number=1), None),
        (Compact, Dog("rex"), "$"),
        (Cat | Dog, Compact(), "$"),
    ],
    ids=label,
)
def test_a_value_that_would_change_is_refused(type_: Any, value: Any, path: str | None) -> None:
    """A value that would not come back as it was is an error with the path to the first bad field."""
    if isinstance(value, Private):
        value._token = "changed"
        path = "$.__pydantic_private__._token"
    text = refused(type_, value)
    assert f"at `{path}`" in text


def test_a_key_with_more_digits_than_python_writes_is_refused() -> None:
    """Its place is told without its digits, which Python 3.14 counts in the text."""
    assert "at `$[<int" in refused(dict[int, int], {10**5000: 1})


def test_two_keys_that_become_one_are_refused() -> None:
    """The keys 1 and "1" are one key in JSON."""
    assert "key" in refused(dict[int | str, str], {1: "a", "1": "b"})
    assert "key" in refused(dict[str, Any], {"1": "a", 1: "b"})


def test_an_error_says_what_was_there_and_how_it_came_back() -> None:
    """The message shows the value, its type, what became of it, the declared type and the way out."""
    text = refused(Node, Node("a", data=Color.RED))
    assert "<Color.RED: 'red'> (Color) came back as 'red' (str)" in text
    assert "as Node it would not be the same" in text
    assert "1.5 (float) came back" not in text


def test_fields_left_out_of_equality_count_too() -> None:
    """A field that `__post_init__` computes anew is refused when it had been changed."""
    derived = Derived(3)
    derived.double = 7
    assert "at `$.double`: 7 (int) came back as 6 (int)" in refused(Derived, derived)


def test_attributes_beside_the_fields_are_not_lost_silently() -> None:
    """An attribute that no field declares would vanish; a cached property is computed again and may."""
    order = Order(1, [])
    order.extra = 1
    assert "at `$.extra`: 1 (int) did not come back" in refused(Order, order)
    loose = Loose(1)
    loose.extra = 1
    assert "$.extra" in refused(Loose, loose)
    cached = Cached(2)
    assert cached.double == 4
    assert record(Cached, cached) == Cached(2)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (str, Noted("x")),
        (int, NotedNumber(1)),
        (list[int], Page([1])),
        (datetime, NotedTime(2024, 1, 1)),
        (bytes, NotedBytes(b"x")),
    ],
    ids=label,
)
def test_attributes_of_a_plain_types_subclass_are_not_lost_silently(type_: Any, value: Any) -> None:
    """A page that knows the next one would come back as a list that does not; without attributes it may."""
    assert record(type_, value) == value
    value.note = "next"
    assert "the attributes of" in refused(type_, value)
    assert "at `$[0]`" in refused(list[type_], [value])


def test_slots_beside_the_fields_are_not_lost_silently() -> None:
    """They are attributes, too."""
    slotted = Slotted(1)
    assert record(Slotted, slotted) == slotted
    slotted.extra = 2
    assert "at `$.extra`: 2 (int) did not come back" in refused(Slotted, slotted)


class _Shortened(pydantic.BaseModel):
    """Writes less, or more, than it holds."""

    amount: Annotated[Decimal, pydantic.PlainSerializer(lambda amount: str(amount.normalize()))] = Decimal(1)
    at: Annotated[datetime, pydantic.PlainSerializer(lambda at: at.replace(microsecond=0).isoformat())] = datetime(2024, 1, 1)
    items: Annotated[list[int], pydantic.PlainSerializer(lambda items: items[:1])] = []
    names: Annotated[set[str], pydantic.PlainSerializer(lambda names: sorted(names)[:1])] = set()
    prices: Annotated[dict[str, int], pydantic.PlainSerializer(lambda prices: {**prices, "more": 1})] = {"more": 1}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"amount": Decimal("1.50")}, "$.amount"),
        ({"at": datetime(2024, 1, 1, microsecond=7)}, "$.at"),
        ({"items": [1, 2]}, "$.items[1]"),
        ({"names": {"a", "b"}}, "$.names[...]"),
        ({"prices": {}}, "$.prices.more"),
    ],
)
def test_what_a_class_writes_shorter_or_longer_is_refused(fields: dict[str, Any], path: str) -> None:
    """A decimal's zeros, a part of a second, and members that came or went count, however equal the rest is."""
    assert record(_Shortened, _Shortened()) == _Shortened()
    assert f"at `{path}`" in refused(_Shortened, _Shortened(**fields))


@attrs.define
class _Priced:
    net: int
    gross: int = attrs.field(init=False, eq=False)

    def __attrs_post_init__(self) -> None:
        self.gross = self.net * 2


@attrs.define(eq=False)
class _Unequal:
    number: int


def test_attrs_classes_are_compared_by_their_fields() -> None:
    """By those that their own equality leaves out, too, and where they have none."""
    priced = _Priced(3)
    assert record(_Priced, priced) == priced
    priced.gross = 7
    assert "at `$.gross`: 7 (int) came back as 6 (int)" in refused(_Priced, priced)
    assert codec_for(_Unequal).record(_Unequal(1))[1].number == 1


def test_what_a_model_takes_beyond_its_fields_counts() -> None:
    """An extra value that JSON has no form for would come back as text."""
    extra = Extra.model_validate({"number": 1, "when": datetime(2024, 1, 1)})
    assert "at `$.__pydantic_extra__.when`" in refused(Extra, extra)


def test_what_is_equal_to_nothing_else_is_looked_into_in_a_set() -> None:
    """Such elements are paired by their JSON."""
    element = LonelyElement(1)
    object.__setattr__(element, "extra", 1)
    assert "at `$[...].extra`" in refused(frozenset[LonelyElement], frozenset({element}))


def test_a_value_that_contains_itself_is_refused() -> None:
    """Cycles and very deep nesting are errors of the value, not of the interpreter."""
    cycle: list[Any] = [1]
    cycle.append({"self": cycle})
    assert "contains itself" in refused(Any, cycle)
    node = Node("a")
    node.children.append(node)
    assert "contains itself" in refused(Node, node)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert "nested too deeply" in refused(Any, deep)
    deep = {}
    for _ in range(700):
        deep = {"x": deep}
    assert "nested too deeply" in refused(dict[str, Any], deep)


class _Array:
    def __eq__(self, other: object) -> "list[bool]":
        return [True, False]

    __hash__ = None


class _Hostile:
    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("in ==")

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        raise ZeroDivisionError("in repr")


class _Unwilling(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("in str")


def _holding(kind: Any) -> Any:
    class Holder(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        content: Annotated[Any, pydantic.PlainSerializer(lambda content: "x"), pydantic.PlainValidator(lambda content: kind())]

    return Holder


def test_hostile_objects_are_refused() -> None:
    """Arrays for an answer to `==`, exceptions in `==`, `repr` and `model_dump`: an error with its cause, never a crash."""
    for kind in (_Array, _Hostile, object):
        holder = _holding(kind)
        text = refused(holder, holder(content=kind()))
        assert "Holder" in text
    holder = _holding(_Hostile)
    with pytest.raises(UnrecordableValue) as caught:
        codec_for(holder).record(holder(content=1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    class Broken(pydantic.BaseModel):
        number: int

        def model_dump(self, **options: Any) -> dict[str, Any]:
            raise _Unwilling

    with pytest.raises(UnrecordableValue) as caught:
        codec_for(list[Broken]).record([Broken(number=1)])
    assert isinstance(caught.value.__cause__, _Unwilling)
    assert "at `$[0]`" in str(caught.value)
    refused(Any, [_Hostile()])


def test_a_validator_that_refuses_what_was_recorded_is_an_error_of_the_value() -> None:
    """A model built past its validator does not come back."""
    assert "2 is even" in refused(list[Picky], [Picky.model_construct(number=2)])


def test_a_raised_limit_on_long_integers_changes_nothing_silently() -> None:
    """Where the interpreter writes longer integers, they come back or are refused."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        for type_ in (Any, int):
            refused(type_, 10**5000)
    finally:
        sys.set_int_max_str_digits(limit)
