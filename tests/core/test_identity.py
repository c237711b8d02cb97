"""One step id is one call: a loop that forgot to number its steps is refused, never silently skipped."""

from __future__ import annotations

import asyncio
import copy
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest

from durable_core import Runner, StepReused

from .conftest import Effects, FlakyStore

Step = Callable[[Runner, Effects, str], Awaitable[Any]]


async def _charge(effects: Effects, customer: str) -> str:
    return effects.happen(customer)


class Customer:
    def __init__(self, name: str) -> None:
        self.name = name

    def charge(self) -> str:
        return self.name


FORGETFUL: dict[str, Callable[[Runner, Effects, list[str]], list[Callable[[], Awaitable[Any]]]]] = {
    "arguments": lambda runner, effects, names: [partial(runner.step, "charge", effects.happen, c) for c in names],
    "async arguments": lambda runner, effects, names: [partial(runner.step, "charge", _charge, effects, c) for c in names],
    "partial": lambda runner, effects, names: [partial(runner.step, "charge", partial(effects.happen, name=c)) for c in names],
    "partial positional": lambda runner, effects, names: [
        partial(runner.step, "charge", partial(effects.happen, c)) for c in names
    ],
    "partial of objects": lambda runner, effects, names: [
        partial(runner.step, "charge", partial(Customer.charge, self=Customer(c))) for c in names
    ],
    "default": lambda runner, effects, names: [partial(runner.step, "charge", lambda c=c: effects.happen(c)) for c in names],
    "keyword default": lambda runner, effects, names: [
        partial(runner.step, "charge", lambda *, c=c: effects.happen(c)) for c in names
    ],
    "method": lambda runner, effects, names: [partial(runner.step, "charge", c.upper) for c in names],
    "method of a class": lambda runner, effects, names: [partial(runner.step, "charge", Customer(c).charge) for c in names],
    "keyword default alone": lambda runner, effects, names: [partial(runner.step, "charge", lambda *, c=c: c) for c in names],
}


@pytest.mark.parametrize("loop", FORGETFUL.values(), ids=FORGETFUL)
@pytest.mark.parametrize("together", [False, True], ids=["in sequence", "gather"])
async def test_a_loop_with_one_id_is_refused(store: FlakyStore, effects: Effects, loop: Any, together: bool) -> None:
    """The second call differs from the first, so it is an error and not a replay."""
    calls = loop(Runner(store, "run"), effects, ["ann", "bob", "cy"])
    with pytest.raises(StepReused, match=r"'charge'.*number the steps"):
        if together:
            await asyncio.gather(*(call() for call in calls))
        else:
            for call in calls:
                await call()
    assert effects.keys() <= {"ann"}


async def test_a_loop_variable_in_a_closure_is_refused(store: FlakyStore, effects: Effects) -> None:
    """The variable is one cell: its value at the first call is remembered, not the cell."""
    runner = Runner(store, "run")
    with pytest.raises(StepReused):
        for customer in ("ann", "bob"):
            await runner.step("charge", lambda: effects.happen(customer))  # noqa: B023 - the slip under test
    assert effects == {"ann": 1}


async def test_a_loop_variable_in_a_closure_under_gather_is_refused(store: FlakyStore, effects: Effects) -> None:
    """All is read when `step` is called, not when it runs: by then the cell holds the last value for all."""
    runner = Runner(store, "run")
    steps = []
    for customer in ("ann", "bob"):
        steps.append(runner.step("charge", lambda: effects.happen(customer)))  # noqa: B023, PERF401 - the slip under test
    with pytest.raises(StepReused):
        await asyncio.gather(*steps)
    assert sum(effects.values()) <= 1


async def test_a_loop_variable_deep_in_local_functions_is_refused(store: FlakyStore, effects: Effects) -> None:
    """A function in the closure counts by what it closes over itself."""
    runner = Runner(store, "run")
    with pytest.raises(StepReused):
        for customer in ("ann", "bob"):

            def charge() -> str:
                return effects.happen(customer)  # noqa: B023 - the slip under test

            await runner.step("charge", lambda: charge())
    assert effects == {"ann": 1}


async def test_a_list_changed_between_two_calls_is_refused(store: FlakyStore, effects: Effects) -> None:
    """Arguments are held by their content, not by reference."""
    runner = Runner(store, "run")
    order = {"id": 1}
    with pytest.raises(StepReused):
        for number in (1, 2):
            order["id"] = number
            await runner.step("charge", lambda o: effects.happen(str(o["id"])), order)
    assert effects == {"1": 1}


async def test_two_unlike_functions_are_refused(store: FlakyStore, effects: Effects) -> None:
    """One id for two effects would skip the second."""
    runner = Runner(store, "run")
    await runner.step("a", lambda: effects.happen("one"))
    with pytest.raises(StepReused):
        await runner.step("a", lambda: effects.happen("two"))
    assert effects == {"one": 1}


async def test_values_that_refuse_comparison_are_not_equal(store: FlakyStore) -> None:
    """An array whose `==` has no truth is no reason to skip a step."""

    class Array:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

    def use(array: Array) -> Callable[[], int]:
        return lambda array=array: 1  # type: ignore[misc]

    runner = Runner(store, "run")
    arrays = [Array(), Array()]
    for _ in range(2):
        await runner.step("a", use(arrays[0]))
        await runner.step("b", use(arrays[1]))
    with pytest.raises(StepReused):
        await runner.step("a", use(arrays[1]))


@dataclass
class Created:
    id: int
    happened: str = "yesterday"


@dataclass
class Deleted:
    id: int
    happened: str = "yesterday"


class Place(NamedTuple):
    id: int


class Colour(Enum):
    RED = "red"


class Defaults(msgspec.Struct, omit_defaults=True):
    id: int = 0


@attrs.define
class Credentials:
    _token: str


class Login(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr
    session: str = pydantic.Field("", exclude=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Created(1), Deleted(1)),
        (Created(1), {"id": 1, "happened": "yesterday"}),
        ([Created(1)], [Deleted(1)]),
        ({"event": Created(1)}, {"event": Deleted(1)}),
        (Place(1), (1,)),
        ((1, 2), [1, 2]),
        ({1}, [1]),
        ({1: "a"}, {"1": "a"}),
        ({"a": {2: 1}}, {"a": {"2": 1}}),
        (OrderedDict(a=1), {"a": 1}),
        (Colour.RED, "red"),
        (Defaults(), {}),
        (Credentials("a"), Credentials("b")),
        (Login(user="ada", password="a"), Login(user="ada", password="b")),
        (Login(user="ada", password="a", session="1"), Login(user="ada", password="a", session="2")),
        (float("inf"), float("-inf")),
        (float("nan"), None),
        ([1.5, float("nan")], [1.5, None]),
        (b"a", "YQ=="),
        (Decimal("1.50"), "1.50"),
        (PurePosixPath("a"), "a"),
    ],
    ids=repr,
)
async def test_arguments_alike_in_json_alone_are_refused(store: FlakyStore, first: Any, second: Any) -> None:
    """Two events of one shape, or two secrets, are two calls, while an equal value is the same one."""

    def handle(value: Any) -> int:
        return 1

    runner = Runner(store, "run")
    await runner.step("handle", handle, first)
    await runner.step("handle", handle, copy.deepcopy(first))
    with pytest.raises(StepReused):
        await runner.step("handle", handle, second)


async def test_equal_arguments_in_another_order_are_the_same_call(store: FlakyStore) -> None:
    """A dict and a set have no order that counts."""

    def handle(*values: Any) -> int:
        return 1

    runner = Runner(store, "run")
    await runner.step("handle", handle, {"a": (1,), "b": 2.5}, {Colour.RED, 8, 16}, {1: {2.5}})
    assert await runner.step("handle", handle, {"b": 2.5, "a": (1,)}, {16, 8, Colour.RED}, {1: {2.5}}) == 1


async def test_code_put_into_a_function_counts(store: FlakyStore) -> None:
    """What reloads code puts the new code into the old function: it is another call, of another type."""

    async def fetch() -> int:
        return 5

    async def fetch_text() -> str:
        return "five"

    assert await Runner(store, "one").step("fetch", fetch) == 5
    runner = Runner(store, "two")
    assert await runner.step("fetch", fetch) == 5
    fetch.__code__, fetch.__annotations__ = fetch_text.__code__, fetch_text.__annotations__
    with pytest.raises(StepReused):
        await runner.step("fetch", fetch)
    assert await Runner(store, "three").step("fetch", fetch) == "five"


async def test_objects_that_json_cant_hold_count_by_identity(store: FlakyStore) -> None:
    """Two clients of one class are two clients."""
    runner = Runner(store, "run")

    class Client:
        pass

    client = Client()

    def use(client: Client) -> int:
        return 1

    await runner.step("a", use, client)
    await runner.step("a", use, client)
    with pytest.raises(StepReused):
        await runner.step("a", use, Client())


async def test_running_the_same_flow_twice_on_one_runner_replays(store: FlakyStore, effects: Effects) -> None:
    """Functions made anew by each run are the same functions, and recursion in a closure does no harm."""

    async def flow(runner: Runner) -> list[str]:
        def local(name: str) -> str:
            return effects.happen(name)

        def countdown(number: int) -> str:
            return countdown(number - 1) if number else local("countdown")

        results = []
        for customer in ("ann", "bob"):
            results.append(await runner.step(f"1-{customer}", lambda: local(customer)))  # noqa: B023 - run at once
            results.append(await runner.step(f"2-{customer}", lambda c=customer: local(f"{c}-default")))
            results.append(await runner.step(f"3-{customer}", partial(local, name=f"{customer}-partial")))
            results.append(await runner.step(f"4-{customer}", effects.happen, f"{customer}-argument"))
        results.append(await runner.step("5", lambda: countdown(3)))
        return results

    runner = Runner(store, "run")
    assert await flow(runner) == await flow(runner)
    assert set(effects.values()) == {1}
    assert await flow(Runner(store, "run")) == await flow(runner)
    assert set(effects.values()) == {1}


async def test_a_changed_object_in_a_closure_is_still_the_same_object(store: FlakyStore) -> None:
    """What a closure collects into doesn't make it another function."""
    runner = Runner(store, "run")
    seen: list[int] = []
    for _ in range(2):
        await runner.step("a", lambda: seen.append(1))
    assert seen == [1]


async def test_reused_is_told_before_anything_runs_and_loses_nothing(store: FlakyStore, effects: Effects) -> None:
    """The first call's outcome is still there."""
    runner = Runner(store, "run")
    await runner.step("a", effects.happen, "one")
    with pytest.raises(StepReused):
        await runner.step("a", effects.happen, "two")
    assert await runner.step("a", effects.happen, "one") == "one"


@pytest.mark.parametrize(
    "args",
    [
        "({3, 1, 2},)",
        "({'b': 1, 'a': {'d': 1, 'c': 2}},)",
        "(frozenset({'x', 'y', 'z'}), [{'k'}])",
        "({1, 'a', (2, 'b')},)",
        "(object(),)",
        "({1: object()},)",
        "(10**5000,)",
        "(float('nan'),)",
        "('\\ud800',)",
        "(partial(print, {'b': 1, 'a': 2}),)",
    ],
)
async def test_fingerprints_are_the_same_in_every_process(args: str) -> None:
    """Hash seeds and addresses leave no trace, and no argument is too odd for a fingerprint."""
    source = (
        "from functools import partial\nfrom durable_core._calls import fingerprint_of\n"
        f"print(fingerprint_of({args}) == fingerprint_of({args}), fingerprint_of({args}))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
    assert found.pop().startswith("True ")


async def test_a_partial_whose_argument_was_changed_is_another_call(store: FlakyStore, effects: Effects) -> None:
    """One dictionary filled anew in a loop is still another argument each time."""

    def charge(order: dict[str, str]) -> str:
        return effects.happen(order["customer"])

    runner, order = Runner(store, "run"), {"customer": "ada"}
    await runner.step("charge", partial(charge, order))
    order["customer"] = "bob"
    with pytest.raises(StepReused):
        await runner.step("charge", partial(charge, order))
