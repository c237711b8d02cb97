"""The runs whose logs are kept: what they were, so that the same code can resume them."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic

from durable_core import Flow, Recovered, Runner, flow
from durable_core.testing import FakeClock


class PowerCut(BaseException):
    """Ends a process, as far as its run can tell."""


class World:
    """Does what steps ask for, notes it, and fails where it is told to, once."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.done: list[str] = []
        self.failing: dict[str, BaseException] = {}

    async def do(self, name: str, *_: object) -> str:
        self.done.append(name)
        if error := self.failing.pop(name, None):
            raise error
        return f"did {name}"


# Values and arguments


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Item:
    name: str
    price: Decimal
    tags: frozenset[str] = frozenset()


class Point(NamedTuple):
    x: int
    y: float


class Address(TypedDict):
    street: str
    zip: str


class Packed(msgspec.Struct, frozen=True):
    weight: float
    by: str | None = None


@attrs.frozen
class Parcel:
    number: int
    sent: date


class Customer(pydantic.BaseModel):
    name: str
    since: datetime
    labels: set[str] = set()
    wants: Item | None = None


class Opaque:
    """JSON knows nothing of it: its fingerprint is its type."""


MOMENT = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
CUSTOMER = Customer(name="Zoë", since=MOMENT, labels={"new", "vip", "eu"}, wants=Item("pen", Decimal("1.50")))

VALUES: dict[str, tuple[Any, Any]] = {
    "none": (None, Any),
    "text": ("Grüße \u2028 \U0001f600 \x7f", str),
    "json": ({"a": [1, 2.5, None, True], "b": {"c": "d"}}, Any),
    "whole": (2**63, int),
    "float": (0.1, float),
    "bytes": (b"\x00\xff{}", bytes),
    "decimal": (Decimal("12.340"), Decimal),
    "datetime": (MOMENT, datetime),
    "date": (date(2026, 2, 3), date),
    "time": (time(4, 5, 6), time),
    "timedelta": (timedelta(days=1, microseconds=5), timedelta),
    "uuid": (UUID(int=7), UUID),
    "enum": (Colour.RED, Colour),
    "set": ({"b", "a"}, set[str]),
    "frozenset": (frozenset({1}), frozenset[int]),
    "tuple": ((1, "a"), tuple[int, str]),
    "dict": ({1: Decimal(2)}, dict[int, Decimal]),
    "dataclass": (Item("pen", Decimal("1.50"), frozenset({"blue"})), Item),
    "list of dataclasses": ([Item("pen", Decimal(1)), Item("ink", Decimal(2))], list[Item]),
    "named tuple": (Point(1, 2.5), Point),
    "typed dict": ({"street": "Main St 1", "zip": "0123"}, Address),
    "struct": (Packed(1.5, "bob"), Packed),
    "attrs": (Parcel(7, date(2026, 2, 3)), Parcel),
    "pydantic": (CUSTOMER, Customer),
}

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    **{name: (value,) for name, (value, _) in VALUES.items()},
    "two": ("a", 1),
    "booleans": (True, False),
    "not finite": (float("inf"), float("nan")),
    "large": (10**40,),
    "surrogate": ("\ud800",),
    "keys": ({(1, 2): "a", None: "b"},),
    "nested set": ({"labels": {"c", "a", "b"}},),
    "mixed set": ({1, "a", None},),
    "models in a list": ([CUSTOMER, CUSTOMER],),
    "secret": (pydantic.SecretStr("hidden"),),
    "web address": (pydantic.AnyUrl("https://example.com/a"),),
    "path": (PurePosixPath("a/b"),),
    "opaque": (Opaque(), 1),
    "class": (Opaque,),
    "long": (list(range(1000)),),
}


async def values(runner: Runner, world: World) -> dict[str, Any]:
    async def give(name: str) -> Any:
        await world.do(name)
        return VALUES[name][0]

    return {name: await runner.step(f"value: {name}", give, name, returns=type_) for name, (_, type_) in VALUES.items()}


async def arguments(runner: Runner, world: World) -> None:
    async def take(*_: object, **__: object) -> None:
        await world.do("take")

    for name, given in ARGUMENTS.items():
        await runner.step(f"argument: {name}", take, *given, returns=None)
    await runner.step("argument: keywords", partial(take, 1, amount=Decimal(2), to="bob"), "c", returns=None)


# Runs without a flow, by the ids of their logs


async def step(runner: Runner, world: World, **options: Any) -> Any:
    return await runner.step("charge", world.do, "charge", 90, **options)


async def two_steps(runner: Runner, world: World) -> Any:
    first = await runner.step("prepare", world.do, "prepare", name="Prepare the order ✓")
    return first, await step(runner, world)


async def twice(runner: Runner, world: World) -> Any:
    return await step(runner, world, max_attempts=2)


async def once(runner: Runner, world: World) -> Any:
    return await step(runner, world, at_most_once=True)


async def recovered(runner: Runner, world: World) -> Any:
    return await step(runner, world, at_most_once=True, recover=lambda: Recovered("did charge"))


async def started_again(runner: Runner, world: World) -> Any:
    return await step(runner, world, at_most_once=True, recover=lambda: None)


async def sleep(runner: Runner, world: World) -> Any:
    await runner.sleep("cool-off", timedelta(days=1))
    return await step(runner, world)


async def approval(runner: Runner, world: World) -> Any:
    decision = await runner.approval(
        "approve", {"amount": 90, "for": "Zoë"}, timeout=timedelta(days=1), approvers=["alice", "bob"]
    )
    return decision.approved, decision.by, decision.reason, await step(runner, world)


async def two_people(runner: Runner, world: World) -> Any:
    decision = await runner.approval("approve", "refund", quorum=2, name="Refund?")
    return decision.approved, decision.by, await step(runner, world)


async def event(runner: Runner, world: World) -> Any:
    return await runner.event("packed", returns=Packed), await step(runner, world)


async def long(runner: Runner, world: World) -> Any:
    return [await runner.step(f"n-{number}", world.do, "n", returns=None) for number in range(LENGTH)]


LENGTH = 100

BODIES: dict[str, Callable[[Runner, World], Awaitable[Any]]] = {
    "success": two_steps,
    "failure": two_steps,
    "second-attempt": twice,
    "resolved": two_steps,
    "retried": two_steps,
    "reopened": two_steps,
    "once-finished": once,
    "once-interrupted": once,
    "once-reopened": once,
    "once-recovered": recovered,
    "once-started-again": started_again,
    "sleep-waiting": sleep,
    "sleep-over": sleep,
    "approval-waiting": approval,
    "approval-approved": approval,
    "approval-rejected": approval,
    "approval-too-late": approval,
    "approval-one-vote": two_people,
    "approval-two-votes": two_people,
    "event-early": event,
    "event-waiting": event,
    "event-received": event,
    "cancelled": two_steps,
    "begun-anew": two_steps,
    "kunde/ä {7} ~ %41": two_steps,
    "arguments": arguments,
    "values": values,
    "long": long,
}


# Runs of a flow


@dataclass(frozen=True)
class Receipt:
    customer: str
    amount: Decimal
    labels: frozenset[str]


INPUT: dict[str, Any] = {"customer": "Zoë", "amount": Decimal("90.00"), "address": {"street": "Main St 1", "zip": "0123"}}
RECEIPT = Receipt("Zoë", Decimal("90.00"), frozenset({"new"}))


def order_flow(world: World) -> Flow[..., Receipt]:
    """Make the flow `order` of this world."""

    @flow(name="order", clock=world.clock, wait_limit=0, on_drift="raise")
    async def order(
        runner: Runner,
        *,
        customer: str,
        amount: Decimal,
        address: Address,
        ask: bool = False,
        labels: frozenset[str] = frozenset({"new"}),
    ) -> Receipt:
        await runner.step("reserve", world.do, "reserve", customer, address)
        if ask:
            await runner.approval("approve", {"amount": str(amount), "customer": customer})
        await runner.step("charge", world.do, "charge", amount)
        if error := world.failing.get("the flow itself"):
            raise error
        await runner.step("ship", world.do, "ship", address)
        return Receipt(customer, amount, labels)

    return order


FLOWS: dict[str, dict[str, Any]] = {
    "flow-succeeded": INPUT,
    "flow-interrupted": INPUT,
    "flow-failed": INPUT,
    "flow-reopened": INPUT,
    "flow-typo": INPUT,
    "flow-waiting": {**INPUT, "ask": True},
    "flow-cancelled": {**INPUT, "ask": True},
}
