"""Classes of every kind that a step may return, some values of them, and what to assert of a round trip."""

import dataclasses
import enum
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Generic, NamedTuple, NewType, Required, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from durable_core._values.returns import Codec, codec_for
from durable_core.errors import UnrecordableValue

T = TypeVar("T")
BERLIN = ZoneInfo("Europe/Berlin")
CustomerId = NewType("CustomerId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = "good"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Ratio(float):
    pass


class Blob(bytes):
    pass


class Items(list[Any]):
    pass


class Page(list[int]):
    note: str


class Noted(str):
    __slots__ = ("note",)


class NotedNumber(int):
    note: str


class NotedBytes(bytes):
    note: str


class NotedTime(datetime):
    note: str


class LateDatetime(datetime):
    """As libraries that freeze or extend time make them."""


@dataclasses.dataclass
class Line:
    sku: str
    price: float
    tags: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class Order:
    id: int
    items: list[Line]
    note: str | None = None


@dataclasses.dataclass
class BigOrder(Order):
    discount: int = 0


@dataclasses.dataclass(eq=False)
class Incomparable:
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    _hidden: int
    at: datetime


@dataclasses.dataclass(frozen=True, eq=False)
class LonelyElement:
    number: int


@dataclasses.dataclass
class Numbered:
    __slots__ = ("number",)
    number: int


class Slotted(Numbered):
    __slots__ = "extra"
    extra: int


@dataclasses.dataclass
class Derived:
    number: int
    double: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.double = self.number * 2


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class Node:
    name: str
    children: list["Node"] = dataclasses.field(default_factory=list)
    data: Any = None


@dataclasses.dataclass
class Cached:
    number: int

    @cached_property
    def double(self) -> int:
        return self.number * 2


class Options(TypedDict, total=False):
    name: Required[str]
    size: int


class Point(NamedTuple):
    x: int
    y: float


class Cat(msgspec.Struct, tag=True):
    lives: int = 9


class Dog(msgspec.Struct, tag=True):
    name: str


class Compact(msgspec.Struct, omit_defaults=True, rename="camel", frozen=True):
    first_name: str = "Ann"
    unset: int | msgspec.UnsetType = msgspec.UNSET


class Loose(msgspec.Struct, dict=True):
    number: int


@attrs.define
class Parcel:
    weight: Decimal
    sent: date = date(2024, 2, 29)


@attrs.define
class Underscored:
    _secret: int = 0


class Account(pydantic.BaseModel):
    email: str
    balance: Decimal = Decimal("0.00")
    opened: datetime | None = None
    kind: Color = Color.RED


class Premium(Account):
    perks: list[str] = []


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)
    id: uuid.UUID
    at: datetime
    tags: frozenset[str]
    pair: tuple[int, str]


class Aliased(pydantic.BaseModel):
    plain: int
    both: int = pydantic.Field(alias="BOTH")
    reading: int = pydantic.Field(validation_alias=pydantic.AliasChoices("READ", "read"))
    writing: int = pydantic.Field(serialization_alias="WRITE")


class Extra(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    number: int


class Private(pydantic.BaseModel):
    number: int
    _token: str = pydantic.PrivateAttr(default="none")


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Reading(pydantic.BaseModel):
    value: float


class Counted(pydantic.BaseModel):
    number: int


class Positive(pydantic.BaseModel):
    value: Annotated[float, pydantic.AfterValidator(lambda value: value + 0.0)]


class Day(pydantic.BaseModel):
    day: date


class Picky(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def odd(cls, number: int) -> int:
        if number % 2 == 0:
            raise LookupError(f"{number} is even")
        return number


@pydantic.dataclasses.dataclass
class Checked:
    number: int
    account: Account


@dataclasses.dataclass
class Signup:
    account: Account
    others: dict[str, Account]
    referrer: Account | None = None


def label(value: Any) -> str:
    return str(getattr(value, "__name__", type(value).__name__))


def record(type_: Any, value: Any) -> Any:
    codec: Codec[Any] = codec_for(type_)
    data, back = codec.record(value)
    assert b"\n" not in data
    assert codec.record(codec.decode(data))[0] == codec.record(back)[0]
    return back


def refused(type_: Any, value: Any) -> str:
    with pytest.raises(UnrecordableValue) as caught:
        codec_for(type_).record(value)
    text = str(caught.value)
    assert "at `$" in text
    assert "returns=None" in text
    text.encode()
    return text


ORDER = Order(1, [Line("a", 1.5, {"x", "y"}), Line("b", -0.0)], None)
ACCOUNT = Account(email="ann@example.com", balance=Decimal("1.50"), opened=datetime(2024, 5, 1, tzinfo=UTC))
