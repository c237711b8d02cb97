"""Types that msgspec has no codec for are recorded through pydantic, where that is installed; secrets are refused before."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import subprocess
import sys
from collections import deque
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from durable_core import MemoryStore, Runner
from durable_core._values.returns import codec_for
from durable_core.errors import UnrecordableValue
from tests.core.values.value_types import Account, Color, Order, Parcel, Premium, label, record, refused


class UserMessage(pydantic.BaseModel):
    text: str


class ToolMessage(pydantic.BaseModel):
    tool: str
    output: bytes = b""


class Spoken(pydantic.BaseModel):
    kind: Literal["spoken"] = "spoken"
    text: str


class Written(pydantic.BaseModel):
    kind: Literal["written"] = "written"
    text: str


@dataclasses.dataclass
class Asked:
    text: str


@dataclasses.dataclass
class Answered:
    text: str
    tokens: int


@dataclasses.dataclass
class Told:
    text: str


@dataclasses.dataclass
class Image:
    data: bytes


@dataclasses.dataclass
class Upload:
    path: Path
    parts: deque[int]
    host: ipaddress.IPv4Address | None = None


class Renamed(pydantic.BaseModel):
    text: str = pydantic.Field(alias="TEXT")


Message = Annotated[Spoken | Written, pydantic.Field(discriminator="kind")]

KEPT: list[tuple[Any, Any]] = [
    (list[UserMessage | ToolMessage], [UserMessage(text="hi"), ToolMessage(tool="search", output=b"x")]),
    (list[Message], [Spoken(text="hi"), Written(text="hi")]),
    (list[Asked | Answered], [Asked("hi"), Answered("ho", 3)]),
    (dict[str, list[Asked | ToolMessage | None]], {"a": [Asked("hi"), None, ToolMessage(tool="x")]}),
    (list[Asked | Image], [Image(b"\x00\xff"), Asked("hi")]),
    (Asked | Answered | str, "text"),
    (UserMessage | int, 5),
    (Account | Premium, Premium(email="x", perks=["a"])),
    (Renamed | Asked, Renamed(TEXT="x")),
    (Path, Path("/tmp/a")),
    (list[PurePosixPath], [PurePosixPath("a")]),
    (ipaddress.IPv4Address, ipaddress.IPv4Address("10.0.0.1")),
    (ipaddress.IPv6Network, ipaddress.IPv6Network("::/64")),
    (deque[int], deque([1, 2])),
    (Fraction, Fraction(1, 3)),
    (Upload, Upload(Path("a"), deque([1]), ipaddress.IPv4Address("10.0.0.1"))),
    (Path | None, None),
]


@pytest.mark.parametrize(("type_", "value"), KEPT, ids=label)
def test_what_pydantic_has_a_codec_for_comes_back(type_: Any, value: Any) -> None:
    """Equal and of the same classes, as every value does."""
    back = record(type_, value)
    assert back == value
    assert type(back) is type(value)
    if isinstance(value, list):
        assert [*map(type, back)] == [*map(type, value)]


@pytest.mark.parametrize(
    ("type_", "value", "path"),
    [
        (list[Asked | Told], [Asked("a"), Told("b")], "$[1]"),
        (UserMessage | ToolMessage, Account(email="x"), "$"),
        (list[Asked | Answered], [Asked("a"), "text"], "$"),
        (Account | Order, Premium(email="x", perks=["a"]), "$"),
        (deque[int], deque([1], maxlen=3), "$"),
        (list[Fraction], [Fraction(1, 2), 0.5], "$[1]"),
        (Path, "text", "$"),
        (list[Path], [Path("a"), PurePosixPath("b")], "$[1]"),
    ],
    ids=label,
)
def test_a_value_that_comes_back_as_another_class_is_refused(type_: Any, value: Any, path: str) -> None:
    """Two classes of one shape can't be told apart: never does one come back as the other."""
    assert f"at `{path}" in refused(type_, value)


def test_an_error_of_what_pydantic_reads_is_a_decode_error() -> None:
    """So that a recorded value which today's type doesn't hold is drift."""
    with pytest.raises(msgspec.DecodeError):
        codec_for(list[UserMessage | ToolMessage]).decode(b'[{"nothing": 1}]')


@pytest.mark.parametrize(
    "type_", [Path | str, Path | Fraction, deque[int] | list[int], list[Asked | Parcel], list[Order | complex]]
)
def test_a_union_that_json_cant_tell_apart_is_refused_at_once(type_: Any) -> None:
    """Two texts, or two lists, look alike; and what neither library knows stays refused."""
    with pytest.raises(TypeError, match="returns=") as caught:
        codec_for(type_)
    assert not isinstance(caught.value, UnrecordableValue)


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr


class Key(pydantic.BaseModel):
    key: pydantic.SecretBytes | None = None


class Session(pydantic.BaseModel):
    shown: int = 0
    token: str = pydantic.Field("", exclude=True)


class Team(pydantic.BaseModel):
    logins: dict[str, list[Login]] = {}
    parent: Team | None = None


@dataclasses.dataclass
class Members:
    sessions: list[Session | None]


class Sealed(pydantic.BaseModel):
    number: pydantic.Secret[int]


class Plain(enum.Enum):
    A = "a"


@pytest.mark.parametrize(
    ("type_", "match"),
    [
        (Login, r"`password` of Login"),
        (list[Login | None], r"`password` of Login"),
        (UserMessage | Login, r"`password` of Login"),
        (Key, r"`key` of Key"),
        (Session, r"exclude=True.*`token` of Session"),
        (Members, r"`token` of Session"),
        (dict[str, Team], r"`password` of Login"),
        (Sealed, r"`number` of Sealed"),
        (pydantic.SecretStr, "SecretStr"),
    ],
)
async def test_a_model_whose_fields_cant_come_back_is_refused_before_anything_runs(type_: Any, match: str) -> None:
    """A secret is written as asterisks, an excluded field not at all: the error names the field."""

    def fetch() -> Any:
        raise AssertionError

    with pytest.raises(TypeError, match=match) as caught:
        await Runner(MemoryStore(), "run").step("fetch", fetch, returns=type_)
    assert not isinstance(caught.value, UnrecordableValue)


class Revealing(pydantic.BaseModel):
    password: pydantic.SecretStr
    pin: Annotated[pydantic.SecretStr, pydantic.PlainSerializer(lambda pin: pin.get_secret_value())]

    @pydantic.field_serializer("password", when_used="json")
    def _reveal(self, password: pydantic.SecretStr) -> str:
        return password.get_secret_value()


def test_a_secret_that_its_model_writes_comes_back() -> None:
    """The model says how."""
    value = Revealing(password=pydantic.SecretStr("a"), pin=pydantic.SecretStr("b"))
    assert record(Revealing, value) == value


def _child(source: str) -> str:
    return subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True).stdout


def test_without_pydantic_the_error_says_so() -> None:
    """And what msgspec has a codec for is recorded without it."""
    source = """
import sys
sys.modules["pydantic"] = None
import dataclasses, pathlib
from durable_core._values.returns import codec_for
@dataclasses.dataclass
class A: a: int
@dataclasses.dataclass
class B: b: int
print(codec_for(A).record(A(1))[0])
for type_ in (A | B, pathlib.Path):
    try: codec_for(type_)
    except TypeError as error: print(error)
"""
    recorded, union, path = _child(source).splitlines()
    assert recorded == """b'{"a":1}'"""
    for line in (union, path):
        assert "pydantic is not installed" in line
        assert "returns=" in line


def test_core_imports_pydantic_for_no_other_type() -> None:
    """Nor for one that has no codec at all."""
    source = """
import sys, dataclasses, threading
from durable_core import MemoryStore
from durable_core._values.returns import codec_for
@dataclasses.dataclass
class A: a: int
codec_for(A).record(A(1)); codec_for(list[A | None])
for type_ in (threading.Lock, int | complex):
    try: codec_for(type_)
    except TypeError: pass
print("pydantic" in sys.modules)
"""
    assert _child(source) == "False\n"


def test_an_enum_is_an_enum() -> None:
    """Whatever stands beside it in a union."""
    assert record(Color | Asked | Answered, Color.RED) is Color.RED
