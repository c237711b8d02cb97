"""What stands in logs and at services for good: the names of errors, the fingerprints of arguments, and idempotency keys."""

from __future__ import annotations

import dataclasses
import enum
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

import durable_core
from durable_core import Decision, MemoryStore, Runner, StepError, StepFailed, control, current_step, errors, flow

NAMES = {
    "AlreadyDecided": ("Refused", "DurableError"),
    "CopyConflict": ("Refused", "DurableError"),
    "CorruptLog": ("StoreError", "DurableError"),
    "DeadlinePassed": ("Refused", "DurableError"),
    "DurableError": (),
    "LockLost": ("DurableError",),
    "NestedStep": ("DurableError",),
    "Refused": ("DurableError",),
    "ResultNotRecorded": ("DurableError",),
    "RunBusy": ("DurableError",),
    "StepDrift": ("DurableError",),
    "StepFailed": ("DurableError",),
    "StepInterrupted": ("DurableError",),
    "StepReused": ("DurableError",),
    "StoreError": ("DurableError",),
    "UnrecordableValue": ("DurableError",),
}


@pytest.mark.parametrize("name", NAMES)
def test_an_error_of_the_library_keeps_its_recorded_name(name: str) -> None:
    """Logs hold `durable_core.errors.…`, which `matches` compares, wherever a class is defined."""
    class_ = getattr(durable_core, name)
    assert getattr(errors, name) is class_
    recorded = StepError.from_exception(class_.__new__(class_))
    assert recorded.type == f"durable_core.errors.{name}"
    for base in NAMES[name]:
        assert f"durable_core.errors.{base}" in recorded.bases
    assert StepError(f"durable_core.errors.{name}").matches(class_)


@pytest.mark.parametrize("name", ["RunCancelled", "RunSuspended"])
def test_the_name_of_what_ends_a_run_early_is_kept(name: str) -> None:
    """It stands in logs too, whatever it derives from."""
    class_ = getattr(durable_core, name)
    assert f"{class_.__module__}.{class_.__qualname__}" == f"durable_core.errors.{name}"
    assert StepError(f"durable_core.errors.{name}").matches(class_)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Order:
    id: int
    price: Decimal


class Point(NamedTuple):
    x: int
    y: int


class Struct(msgspec.Struct):
    a: int
    b: set[int]


class Model(pydantic.BaseModel):
    name: str
    tags: set[str] = set()
    secret: pydantic.SecretStr = pydantic.SecretStr("s3cret")


AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "text": ("a",),
    "number": (1,),
    "float": (1.5, -0.0),
    "nan": (float("nan"),),
    "bool and none": (True, None),
    "list": ([1, "b", None],),
    "tuple": ((1, "b"),),
    "dict": ({"b": 1, "a": [2]},),
    "dict of numbers": ({2: "b", 1: "a"},),
    "set": ({3, 1, 2},),
    "bytes": (b"\x00\xff",),
    "decimal": (Decimal("1.10"),),
    "uuid": (uuid.UUID(int=7),),
    "times": (AT, date(2026, 1, 2), timedelta(seconds=90)),
    "enum": (Colour.RED,),
    "dataclass": (Order(1, Decimal("9.90")),),
    "named tuple": (Point(1, 2),),
    "struct": (Struct(1, {2, 1}),),
    "model": (Model(name="a", tags={"b", "a", "c"}),),
    "path": (PurePosixPath("/tmp/x"),),
    "decision": (Decision(True, "alice", "checked", AT),),
    "object": (object(),),
    "surrogate": ("\ud800",),
    "huge": (2**70,),
    "several": ("a", 2, [3]),
}
FINGERPRINTS: dict[str, str] = {
    "text": "2757634b7f53cf25",
    "number": "d904f97e24baef89",
    "float": "3040f180e19f9cb2",
    "nan": "adf6743bc05422cf",
    "bool and none": "ebec87d5e454fcb6",
    "list": "babd19244d04cc49",
    "tuple": "d2e4abf790b33946",
    "dict": "bb87c7429d30d410",
    "dict of numbers": "c309609ff088d1cd",
    "set": "427633450e295cbf",
    "bytes": "fb67cb200e0a851a",
    "decimal": "863df8700cd60f74",
    "uuid": "2c2fe0a98cb1d017",
    "times": "3c58275eb5af23d7",
    "enum": "ee87b50624d808d9",
    "dataclass": "5db8026a4c796a32",
    "named tuple": "c0c9be8bbe04d610",
    "struct": "9a048a2c70f4601d",
    "model": "a1956eebdc561788",
    "path": "382312e58119df0e",
    "decision": "b161bbdd5a1be3be",
    "object": "e925a99ad166537c",
    "surrogate": "e3d6c430716c1598",
    "huge": "e1eb5a0043612bba",
    "several": "af5a647dbf7dddfc",
    "partial": "a22e6a60d1429cfa",
    "nested partial": "ce60a0704849dc72",
    "flow": "11b73e7673affe73",
}


async def recorded_fingerprint(fn: Callable[..., Any], *args: Any) -> str | None:
    store = MemoryStore()
    async with Runner(store, "r") as runner:
        await runner.step("s", fn, *args)
    (record,) = await store.list("r")
    return record.fingerprint


async def take(*args: Any, **keywords: Any) -> None:
    pass


@pytest.mark.parametrize("name", ARGUMENTS)
async def test_a_fingerprint_is_recorded_as_ever(name: str) -> None:
    """Logs of earlier versions hold them: another one for the same arguments would be told as drift."""
    assert await recorded_fingerprint(take, *ARGUMENTS[name]) == FINGERPRINTS[name]


async def test_the_fingerprint_of_a_partial_is_recorded_as_ever() -> None:
    """What a partial adds counts as arguments."""
    assert await recorded_fingerprint(partial(take, 1, b=[2]), "c") == FINGERPRINTS["partial"]
    assert await recorded_fingerprint(partial(partial(take, 1), x={"y": 1}, b=2)) == FINGERPRINTS["nested partial"]


@flow
async def order(runner: Runner, id: int, price: Decimal, tags: set[str], due: datetime, note: str = "none") -> None:
    await runner.step("s", take, id)


async def test_the_fingerprint_and_note_of_a_flow_are_recorded_as_ever() -> None:
    """A run in flight is given the same input by a later version."""
    store = MemoryStore()
    await order.run(store, "r", id=1, price=Decimal("9.90"), tags={"b", "a"}, due=AT)
    started = (await store.list("r"))[0]
    assert started.fingerprint == FINGERPRINTS["flow"]
    assert isinstance(started.note, dict)
    assert started.note["defaults"] == {"note": "none"}
    given = started.note["input"]
    assert {**given, "tags": sorted(given["tags"])} == {
        "id": 1,
        "price": "9.90",
        "tags": ["a", "b"],
        "due": "2026-01-02T03:04:05.000678Z",
    }


async def test_an_idempotency_key_is_sent_as_ever() -> None:
    """A service that got it from an earlier version knows the repetition; a step that was reopened has another one."""
    sent: list[str] = []

    def pay() -> None:
        sent.append(current_step().idempotency_key)
        raise ConnectionError("the bank is closed")

    store = MemoryStore()
    for _ in range(2):
        async with Runner(store, run_id="refund-1001") as runner:
            with pytest.raises(StepFailed):
                await runner.step("pay-back", pay)
        await control.retry(store, "refund-1001", "pay-back")
    assert sent == ["aae3c7a25a8995493eedf98fe39d0099", "fbdd5557095f219544892ad824ad58e3"]
