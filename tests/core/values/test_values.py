"""What comes back from the log is what was recorded."""

import collections
import math
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest

from durable_core._values.returns import codec_for
from tests.core.values.value_types import (
    ACCOUNT,
    BERLIN,
    ORDER,
    Account,
    Aliased,
    Blob,
    Box,
    Cat,
    Checked,
    Color,
    Compact,
    CustomerId,
    Derived,
    Dog,
    Extra,
    Frozen,
    Incomparable,
    Items,
    LateDatetime,
    Level,
    LonelyElement,
    Mood,
    Node,
    Number,
    Numbers,
    Options,
    Order,
    Parcel,
    Point,
    Private,
    Ratio,
    Rights,
    Signup,
    Strict,
    Text,
    label,
    record,
    refused,
)

KEPT: list[tuple[Any, Any]] = [
    (Any, None),
    (Any, True),
    (Any, 0),
    (Any, -(2**63)),
    (Any, 2**64),
    (Any, -(10**300)),
    (Any, 1.5),
    (Any, -0.0),
    (Any, 5e-324),
    (Any, 1e308),
    (Any, ""),
    (Any, "é\x00\n\u2028🎉"),
    (Any, {"a": [1, 2.0, None, {"b": {}}], "": "", "a b": [[]]}),
    (object, {"a": 1}),
    (None, None),
    (bool, False),
    (int, 10**4000),
    (float, 1.0),
    (str, "x"),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"ab")),
    (uuid.UUID, uuid.UUID(int=7)),
    (Decimal, Decimal("1.50")),
    (Decimal, Decimal("-0E+5")),
    (Decimal, Decimal("Infinity")),
    (date, date(1, 1, 1)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (time, time(1, 2, 3, 4)),
    (time, time(1, tzinfo=UTC)),
    (datetime, datetime.max),
    (datetime, datetime(2024, 1, 1, 12, tzinfo=UTC)),
    (datetime, datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=-5, minutes=-30)))),
    (Color, Color.BLUE),
    (Level, Level.HIGH),
    (Mood, Mood.GOOD),
    (Rights, Rights.READ | Rights.WRITE),
    (dict[Color, Level], {Color.RED: Level.LOW}),
    (dict[int, str], {1: "a", -(2**40): "b"}),
    (dict[uuid.UUID, int], {uuid.UUID(int=1): 1}),
    (dict[date, float], {date(2024, 1, 1): 1.0}),
    (set[int], {1, 2, 3}),
    (frozenset[tuple[int, str]], frozenset({(1, "a"), (2, "b")})),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2)),
    (tuple[()], ()),
    (list[list[int] | None], [[1], None]),
    (Order | None, None),
    (int | str | None, "1"),
    (int | float, 1),
    (int | float, 1.0),
    (Literal[1, "a", None], "a"),
    (CustomerId, CustomerId(5)),
    (Annotated[int, msgspec.Meta(ge=1)], 1),
    (Annotated[int, ["unhashable"]], 1),
    (Order, ORDER),
    (list[Order], [ORDER, ORDER]),
    (Frozen, Frozen(1, datetime(2024, 1, 1, tzinfo=UTC))),
    (Derived, Derived(3)),
    (Box[datetime], Box(datetime(2024, 1, 1))),
    (Box[Box[int]], Box(Box(1))),
    (Box, Box("x")),
    (Node, Node("a", [Node("b", [Node("c")])], {"x": [1]})),
    (Options, {"name": "x"}),
    (Options, {"size": 1, "name": "x"}),
    (Point, Point(1, 2.5)),
    (Cat | Dog, Dog("rex")),
    (list[Cat | Dog], [Cat(), Dog("rex")]),
    (Compact, Compact()),
    (Compact, Compact("Bob", 3)),
    (Parcel, Parcel(Decimal("2.0"))),
    (Account, ACCOUNT),
    (Account | None, None),
    (list[Account | None], [ACCOUNT, None]),
    (Signup, Signup(ACCOUNT, {"x": ACCOUNT}, ACCOUNT)),
    (Strict, Strict(id=uuid.UUID(int=1), at=datetime(2024, 1, 1, tzinfo=UTC), tags=frozenset("ab"), pair=(1, "x"))),
    (Aliased, Aliased.model_validate({"plain": 1, "BOTH": 2, "read": 3, "writing": 4})),
    (Extra, Extra.model_validate({"number": 1, "other": [1, 2]})),
    (Numbers, Numbers([1, 2])),
    (Private, Private(number=1)),
    (Box[Account], Box(ACCOUNT)),
    (Checked, Checked(1, ACCOUNT)),
]


@pytest.mark.parametrize(("type_", "value"), KEPT, ids=label)
def test_values_come_back_equal(type_: Any, value: Any) -> None:
    """A value of a type that JSON can hold comes back as what it was: same types, same text, equal."""
    back = record(type_, value)
    assert back == value
    assert type(back) is type(value)
    if isinstance(value, (bool, int, float, Decimal, tuple)):
        assert repr(back) == repr(value)


def test_a_tuple_becomes_a_list_and_a_subclass_of_dict_a_dict() -> None:
    """Without a type, tuples and dict subclasses take JSON's own form, at any depth."""
    value = (1, (2,), collections.OrderedDict(a=(3,)), collections.Counter("aa"), collections.defaultdict(list, x=[()]))
    back = record(Any, value)
    assert back == [1, [2], {"a": [3]}, {"a": 2}, {"x": [[]]}]
    assert [type(each) for each in back] == [int, list, dict, dict, dict]


def test_any_inside_a_type_follows_the_same_rule() -> None:
    """A field declared Any takes a tuple as a list."""
    assert record(Node, Node("a", data=(1, {"x": (2,)}))) == Node("a", data=[1, {"x": [2]}])


def test_the_declared_type_takes_what_it_holds_without_loss() -> None:
    """An int under float, a subclass of a plain type under that type, a set under frozenset: equal, and of the declared type."""
    assert repr(record(float, 3)) == "3.0"
    for type_, value in [(str, Text("x")), (int, Number(3)), (float, Ratio(1.5)), (bytes, Blob(b"x"))]:
        back = record(type_, value)
        assert (type(back), back) == (type_, value)
    assert record(list[int], Items([1, 2])) == [1, 2]
    assert record(Sequence[int], (1, 2)) == [1, 2]
    assert record(dict[str, int], collections.Counter("aab")) == {"a": 2, "b": 1}
    assert record(dict[str, str], {Text("k"): Text("v")}) == {"k": "v"}
    assert type(record(frozenset[int], {1, 2})) is frozenset
    assert type(record(collections.abc.Set[int], frozenset({1, 2}))) is set
    late = LateDatetime(2024, 1, 1, tzinfo=UTC)
    assert (type(record(datetime, late)), record(datetime, late)) == (datetime, late)
    refused(date, late)


def test_negative_zero_keeps_its_sign() -> None:
    """-0.0 equals 0.0, and still has to stay what it is."""
    assert math.copysign(1, record(float, -0.0)) == -1
    assert math.copysign(1, record(Any, [-0.0])[0]) == -1


def test_the_repeated_hour_keeps_its_instant() -> None:
    """In the hour that clocks repeat, a zone comes back as its offset then: same wall clock, same instant."""
    for fold in (0, 1):
        value = datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=BERLIN)
        back = record(datetime, value)
        assert back.utcoffset() == value.utcoffset() == timedelta(hours=2 - fold)
        assert back.astimezone(UTC) == value.astimezone(UTC)
        assert record(datetime, LateDatetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=BERLIN)) == back
        assert record(set[datetime], {value}) == {back}
        assert record(dict[datetime, int], {value: 1}) == {back: 1}


def test_classes_without_equality_are_compared_by_their_fields() -> None:
    """`eq=False` says nothing about a round trip: fields decide, also inside sets."""
    assert record(Incomparable, Incomparable(3)).number == 3
    _, back = codec_for(frozenset[LonelyElement]).record(frozenset(LonelyElement(number) for number in range(20)))
    assert {each.number for each in back} == set(range(20))
