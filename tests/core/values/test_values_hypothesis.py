"""Whatever the type and the value: it comes back the same, or it is refused with a path, or the type is refused before."""

import dataclasses
import datetime as dt
import enum
import json
import math
import typing
import uuid
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_core._values.returns import UNTYPED, codec_for
from durable_core.errors import UnrecordableValue

BOUNDED = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = ("first", "second", "third")

BASE64 = pydantic.ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

Typed = tuple[Any, st.SearchStrategy[Any]]
"""A type, and values of it."""


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


def without_fold(moment: Any) -> Any:
    return moment.replace(fold=0)


ZONES = st.sampled_from(
    [None, dt.UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/St_Johns"), dt.timezone(dt.timedelta(hours=14))]
)
REPEATED_HOUR = st.builds(
    lambda minute, fold: dt.datetime(2024, 10, 27, 2, minute, fold=fold, tzinfo=ZoneInfo("Europe/Berlin")),
    st.integers(0, 59),
    st.integers(0, 1),
)
ODD_OFFSETS = st.just(dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(seconds=3601))))

# Made when drawn: the interpreter refuses to print them.
TOO_LONG = st.integers(4300, 5000).map(lambda digits: -(10**digits))

# Of each kind: values that have to come back, and values that need not.
PLAIN: list[tuple[Any, st.SearchStrategy[Any], st.SearchStrategy[Any]]] = [
    (bool, st.booleans(), st.nothing()),
    (int, st.integers() | st.integers(-(10**300), 10**300), TOO_LONG | st.sampled_from([True, 1.0])),
    (float, st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([math.nan, math.inf, -math.inf, 2**53 + 1, 3])),
    (str, st.text(), st.text(st.characters(categories=["Cs"]), min_size=1)),
    (bytes, st.binary(), st.just("eA==")),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False), st.sampled_from([Decimal("NaN"), Decimal("sNaN"), 1])),
    (uuid.UUID, st.uuids(), st.just(str(uuid.UUID(int=0)))),
    (dt.date, st.dates(), st.datetimes()),
    (dt.time, st.times().map(without_fold), st.builds(dt.time, st.integers(0, 23), fold=st.just(1))),
    (dt.timedelta, st.timedeltas(), st.just(1.5)),
    (
        dt.datetime,
        st.datetimes(min_value=dt.datetime(1950, 1, 1), timezones=ZONES).map(without_fold) | REPEATED_HOUR,
        ODD_OFFSETS | st.dates(),
    ),
    (Color, st.sampled_from(Color), st.sampled_from(Level)),
    (Level, st.sampled_from(Level), st.just(1)),
]
KEYS = (int, str, bytes, uuid.UUID, dt.date, dt.timedelta, Color, Level)


def plain(*, hostile: bool, only: tuple[Any, ...] | None = None) -> st.SearchStrategy[Typed]:
    kinds = [kind for kind in PLAIN if only is None or kind[0] in only]
    return st.sampled_from(kinds).map(lambda kind: (kind[0], kind[1] | kind[2] if hostile else kind[1]))


def json_values(*, hostile: bool) -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=hostile, allow_infinity=hostile) | st.text()
    keys: st.SearchStrategy[Any] = st.text()
    if hostile:
        leaves |= st.one_of(*(bad | good for _, good, bad in PLAIN))
        keys |= st.sampled_from([1, "1", True, None, "\ud800", Color.RED, 1.5, b"x", (1,)])
        leaves |= st.sampled_from([1j, msgspec.Raw(b"1"), {1, 2}, ValueError("x")])
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
        ),
        max_leaves=8,
    )


def record_class(form: str, fields: dict[str, Any]) -> Any:
    match form:
        case "dataclass":
            return dataclasses.make_dataclass("Data", fields.items())
        case "without equality":
            return dataclasses.make_dataclass("Data", fields.items(), eq=False, slots=True)
        case "struct":
            return msgspec.defstruct("Structure", fields.items())
        case "attrs":
            return attrs.make_class("Attributes", {name: attrs.field(type=type_) for name, type_ in fields.items()})
        case "named tuple":
            return typing.NamedTuple("Named", list(fields.items()))
        case "typed dict":
            return typing.TypedDict("Typed", fields)
        case _:
            return pydantic.create_model("Model", __config__=BASE64, **{name: (type_, ...) for name, type_ in fields.items()})


def build(class_: Any, form: str, values: dict[str, Any]) -> Any:
    # Past validation, as attributes that are set later are.
    return class_.model_construct(**values) if form == "pydantic" else class_(**values)


FORMS = ("dataclass", "without equality", "struct", "attrs", "named tuple", "typed dict", "pydantic")


@st.composite
def containers(draw: st.DrawFn, inner: st.SearchStrategy[Typed], *, hostile: bool) -> Typed:
    type_, values = draw(inner)
    match draw(st.sampled_from(["list", "tuple", "pair", "dict", "set", "frozenset", "optional", "union", "class", "class"])):
        case "list":
            return list[type_], st.lists(values, max_size=3)
        case "tuple":
            return tuple[type_, ...], st.lists(values, max_size=3).map(tuple)
        case "pair":
            other, others = draw(inner)
            return tuple[type_, other], st.tuples(values, others)
        case "dict":
            key, keys = draw(plain(hostile=hostile, only=KEYS))
            return dict[key, type_], st.dictionaries(keys, values, max_size=3)
        case "set":
            member, members = draw(plain(hostile=False))
            return set[member], st.sets(members, max_size=3)
        case "frozenset":
            member, members = draw(plain(hostile=False))
            return frozenset[tuple[member, int]], st.frozensets(st.tuples(members, st.integers()), max_size=3)
        case "optional":
            return type_ | None, values | st.none()
        case "union" if hostile:
            other, others = draw(inner)
            return type_ | other, values | others
        case _:
            form = draw(st.sampled_from(FORMS))
            # What pydantic may hold is its own affair, beyond plain types.
            inner = plain(hostile=hostile) if form == "pydantic" else inner
            fields = {name: draw(inner) for name in NAMES[: draw(st.integers(1, 3))]}
            class_ = record_class(form, {name: type_ for name, (type_, _) in fields.items()})
            return class_, st.fixed_dictionaries({name: values for name, (_, values) in fields.items()}).map(
                lambda drawn: build(class_, form, drawn)
            )


@st.composite
def typed_values(draw: st.DrawFn, *, hostile: bool) -> tuple[Any, Any]:
    leaves = plain(hostile=hostile) | st.just((Any, json_values(hostile=hostile)))
    types = st.recursive(leaves, lambda inner: containers(inner, hostile=hostile), max_leaves=5)
    type_, values = draw(types)
    return type_, draw(values)


def content(value: Any) -> dict[str, Any] | None:
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if attrs.has(type(value)):
        return attrs.asdict(value, recurse=False)
    if isinstance(value, pydantic.BaseModel):
        return dict(value)
    return None


def same(value: Any, back: Any) -> bool:
    """An oracle of its own: same types, same text, same content; only a tuple may be a list and an int its equal float."""
    if isinstance(value, (dt.datetime, dt.time)) and type(value) is type(back):
        wall = value.replace(tzinfo=None, fold=0) == back.replace(tzinfo=None, fold=0)
        return wall and value.utcoffset() == back.utcoffset() and (value.tzinfo is not None or value.fold == back.fold)
    if type(value) is int and type(back) is float:
        return value == int(back)
    if isinstance(value, (list, tuple)):
        if type(back) is not (list if type(value) is tuple and type(back) is list else type(value)):
            return False
        return len(value) == len(back) and all(map(same, value, back))
    if type(value) is not type(back):
        return False
    if isinstance(value, dict):
        return len(value) == len(back) and all(
            same(key, other) and same(value[key], back[other]) for key, other in zip(value, back, strict=True)
        )
    if isinstance(value, (set, frozenset)):
        return len(value) == len(back) and all(any(same(one, other) for other in back) for one in value)
    if (fields := content(value)) is not None:
        others = content(back)
        return others is not None and fields.keys() == others.keys() and all(same(fields[name], others[name]) for name in fields)
    return repr(value) == repr(back)


def is_json(value: Any) -> bool:
    """Tell what JSON holds without a type, by the standard library."""
    if type(value) in (list, tuple):
        return all(map(is_json, value))
    if type(value) is dict:
        return all(type(key) is str and is_json(key) and is_json(member) for key, member in value.items())
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        return False
    return type(value) in (type(None), bool, int, float, str) and len(text) > 0


def refusal(codec: Any, value: Any) -> str:
    with pytest.raises(UnrecordableValue) as caught:
        codec.record(value)
    text = str(caught.value)
    text.encode()
    assert "at `$" in text
    return text


@BOUNDED
@given(typed_values(hostile=False))
def test_good_values_come_back(case: tuple[Any, Any]) -> None:
    """Every value that JSON can hold is recorded, and decodes to the same again and again."""
    type_, value = case
    codec = codec_for(type_)
    data, back = codec.record(value)
    assert same(value, back)
    assert same(back, codec.decode(data))
    assert b"\n" not in data


@BOUNDED
@given(typed_values(hostile=True))
def test_no_value_is_changed_silently(case: tuple[Any, Any]) -> None:
    """A value that JSON may not hold comes back the same or is refused with its path; nothing else is raised."""
    type_, value = case
    try:
        codec = codec_for(type_)
    except TypeError as error:
        assert "returns=" in str(error)  # noqa: PT017
        return
    try:
        data, back = codec.record(value)
    except UnrecordableValue:
        refusal(codec, value)
    else:
        assert same(value, back)
        assert same(back, codec.decode(data))


@BOUNDED
@given(json_values(hostile=True))
def test_without_a_type_exactly_json_is_recorded(value: Any) -> None:
    """Without a type, what the standard library writes as JSON comes back, and all else is refused with its path."""
    if is_json(value):
        data, back = UNTYPED.record(value)
        assert same(value, back)
        assert same(back, UNTYPED.decode(data))
    else:
        assert "annotate" in refusal(UNTYPED, value)
