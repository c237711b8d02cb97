"""One step id is one call: a loop that forgot to number its steps is refused, never silently skipped."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import subprocess
import sys
import tracemalloc
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import AsyncMock, MagicMock, create_autospec

import attrs
import msgspec
import pydantic
import pytest

from durable_core import Runner, StepDrift, StepReused
from tests.core.conftest import Effects, FlakyStore

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
    await asyncio.sleep(0)
    assert not effects


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
    plain = object()  # which can't be referred to weakly
    await runner.step("b", use, plain)
    await runner.step("b", use, plain)
    with pytest.raises(StepReused):
        await runner.step("b", use, object())


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
    """What a closure collects into doesn't make it another function, where it can be referred to weakly."""
    runner = Runner(store, "run")
    seen = Rows()
    for _ in range(2):
        await runner.step("a", lambda: seen.append(1))
    assert seen == [1]


async def test_a_changed_list_in_a_closure_counts_as_a_changed_argument_does(store: FlakyStore) -> None:
    """It is compared by what it holds: a loop that talks to its step through one is noticed."""
    runner = Runner(store, "run")
    state = {"page": 1}

    def fetch() -> int:
        return state["page"]

    await runner.step("fetch", fetch)
    await runner.step("fetch", fetch)
    state["page"] = 2
    with pytest.raises(StepReused):
        await runner.step("fetch", fetch)


async def test_reused_is_told_before_anything_runs_and_loses_nothing(store: FlakyStore, effects: Effects) -> None:
    """The first call's outcome is still there."""
    runner = Runner(store, "run")
    await runner.step("a", effects.happen, "one")
    with pytest.raises(StepReused):
        await runner.step("a", effects.happen, "two")
    assert await runner.step("a", effects.happen, "one") == "one"


ODD_ARGUMENTS = (
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
    "(Model(tags=set('abcdefgh')),)",
)


@pytest.fixture(scope="module")
def fingerprints() -> dict[str, set[str]]:
    """The fingerprints that processes with different hash seeds give to each of `ODD_ARGUMENTS`, twice in each process."""
    source = (
        "import pydantic\nfrom functools import partial\nfrom durable_core._calls.arguments import fingerprint_of\n"
        "class Model(pydantic.BaseModel):\n    tags: set[str]\n"
        f"for args in {ODD_ARGUMENTS!r}:\n    print(fingerprint_of(eval(args)), fingerprint_of(eval(args)))"
    )
    found: dict[str, set[str]] = {args: set() for args in ODD_ARGUMENTS}
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        printed = subprocess.check_output([sys.executable, "-c", source], env=environment, text=True)
        for args, line in zip(ODD_ARGUMENTS, printed.splitlines(), strict=True):
            found[args].update(line.split())
    return found


@pytest.mark.parametrize("args", ODD_ARGUMENTS)
def test_fingerprints_are_the_same_in_every_process(fingerprints: dict[str, set[str]], args: str) -> None:
    """Hash seeds and addresses leave no trace, and no argument is too odd for a fingerprint."""
    assert len(fingerprints[args]) == 1
    assert fingerprints[args] != {"None"}


async def test_a_partial_whose_argument_was_changed_is_another_call(store: FlakyStore, effects: Effects) -> None:
    """One dictionary filled anew in a loop is still another argument each time."""

    def charge(order: dict[str, str]) -> str:
        return effects.happen(order["customer"])

    runner, order = Runner(store, "run"), {"customer": "ada"}
    await runner.step("charge", partial(charge, order))
    order["customer"] = "bob"
    with pytest.raises(StepReused):
        await runner.step("charge", partial(charge, order))


def module(name: str, source: str) -> Any:
    """Make a module of its own."""
    made = ModuleType(name)
    exec(source, made.__dict__)
    return made


async def test_functions_of_two_modules_with_the_same_text_are_two(store: FlakyStore) -> None:
    """Plugins, tenants and migrations look alike; in arguments and closures, too."""
    source = "NAME = __name__\ndef settle():\n    return NAME\n"
    eu, us = module("eu", source), module("us", source)

    def call(fn: Callable[[], str]) -> str:
        return fn()

    def calling(fn: Callable[[], str]) -> Callable[[], str]:
        return lambda: fn()

    runner = Runner(store, "run")
    for steps in (
        [eu.settle, us.settle],
        [partial(call, eu.settle), partial(call, us.settle)],
        [calling(eu.settle), calling(us.settle)],
    ):
        await runner.reset()
        assert await runner.step("settle", steps[0]) == "eu"
        with pytest.raises(StepReused):
            await runner.step("settle", steps[1])


async def test_globals_do_not_count(store: FlakyStore) -> None:
    """A loop that stands in no function, as in a notebook, has to number its steps or to pass arguments."""
    notebook = module("notebook", "def fetch(url):\n    return url\nmake = lambda: (lambda: fetch(url))\n")
    runner = Runner(store, "run")
    notebook.url = "a"
    assert await runner.step("fetch", notebook.make()) == "a"
    notebook.url = "b"
    assert await runner.step("fetch", notebook.make()) == "a"


async def test_a_function_that_assigns_what_it_closes_over_is_another_one_afterwards(store: FlakyStore) -> None:
    """A counter in a variable is told loudly; one in an object is the same object."""
    calls = 0
    counter = Customer("counter")

    def work() -> int:
        nonlocal calls
        calls += 1
        return calls

    def work_on_an_object() -> str:
        counter.name += "!"
        return counter.name

    runner = Runner(store, "run")
    assert await runner.step("variable", work) == 1
    with pytest.raises(StepReused):
        await runner.step("variable", work)
    for _ in range(2):
        assert await runner.step("object", work_on_an_object) == "counter!"
    assert await Runner(store, "run").step("variable", work) == 1


async def test_a_function_may_assign_what_it_closes_over_in_every_attempt(store: FlakyStore) -> None:
    """Only what changes before its first attempt is a loop that went on."""
    attempts = 0

    def work() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ConnectionError
        return attempts

    assert await Runner(store, "run").step("work", work, max_attempts=3) == 3


async def test_a_variable_of_its_own_by_the_same_name_counts(store: FlakyStore) -> None:
    """What an inner function assigns is another variable where it says nothing."""

    def making(customer: str) -> Callable[[], str]:
        def charge() -> str:
            def inner() -> str:
                customer = "inner"
                return (lambda: customer)()

            return customer + inner()

        return charge

    runner = Runner(store, "run")
    await runner.step("charge", making("ada"))
    with pytest.raises(StepReused):
        await runner.step("charge", making("bob"))


async def test_of_a_comprehension_s_own_variable_a_function_has_none(store: FlakyStore) -> None:
    """Where the two have one name, whether the comprehension is a function of its own or not."""

    def making(k: str) -> Callable[[], str]:
        def charge() -> str:
            first = k
            return first + "".join([(lambda: k)() for k in "xy"])

        return charge

    runner = Runner(store, "run")
    assert await runner.step("charge", making("ada")) == "adaxy"
    assert await runner.step("charge", making("ada")) == "adaxy"
    with pytest.raises(StepReused):
        await runner.step("charge", making("bob"))


NUMBERED: dict[str, Callable[[Effects, list[str]], Iterator[tuple[str, Callable[[], Any]]]]] = {
    "lambda": lambda effects, names: ((c, lambda: effects.happen(c)) for c in names),  # noqa: B023
    "async": lambda effects, names: ((c, lambda: effects.happen_async(c)) for c in names),  # noqa: B023
    "partial": lambda effects, names: ((c, partial(lambda more: effects.happen(c + more), "!")) for c in names),  # noqa: B023
    "comprehension": lambda effects, names: ((c, lambda: [effects.happen(c) for _ in "1"]) for c in names),  # noqa: B023
}


@pytest.mark.parametrize("steps", NUMBERED.values(), ids=NUMBERED)
async def test_a_loop_that_went_on_before_its_step_ran_is_refused(store: FlakyStore, effects: Effects, steps: Any) -> None:
    """Each function would run with the last value of the loop's variable: nothing runs, and the error says what to write."""
    runner = Runner(store, "run")
    together = asyncio.gather(*(runner.step(f"charge-{c}", fn) for c, fn in steps(effects, ["ada", "bob"])))
    with pytest.raises(StepReused, match=r"'charge-ada'.*'c'.*argument.*`lambda c=c: …`"):
        await together
    await asyncio.sleep(0)
    assert "ada" not in effects
    assert await store.get("run", "charge-ada") is None


async def test_a_loop_that_went_on_between_two_tasks_is_refused(store: FlakyStore, effects: Effects) -> None:
    """A task that waits for its turn reads the variable when it runs."""
    runner, tasks = Runner(store, "run"), []
    for c in ("ada", "bob"):
        tasks.append(asyncio.create_task(runner.step(f"charge-{c}", lambda: effects.happen(c))))  # noqa: B023, PERF401 - the slip
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], StepReused)
    assert found[1] == "bob"
    assert effects == {"bob": 1}


async def test_a_recorded_step_replays_though_its_loop_went_on(store: FlakyStore, effects: Effects) -> None:
    """Nothing runs with the wrong value then."""
    runner = Runner(store, "run")
    for c in ("ada", "bob"):
        await runner.step(f"charge-{c}", lambda: effects.happen(c))  # noqa: B023 - run at once
    again = Runner(store, "run")
    steps = (again.step(f"charge-{c}", lambda: effects.happen(c)) for c in ("ada", "bob"))  # noqa: B023 - replayed
    assert await asyncio.gather(*steps) == ["ada", "bob"]
    assert effects == {"ada": 1, "bob": 1}


async def test_numbered_steps_run_together_with_values_of_their_own(store: FlakyStore, effects: Effects) -> None:
    """As arguments, or as a lambda's defaults."""
    runner, names = Runner(store, "run"), ["ada", "bob", "eve"]
    assert await asyncio.gather(*(runner.step(f"argument-{c}", effects.happen, c) for c in names)) == names
    assert await asyncio.gather(*(runner.step(f"default-{c}", lambda c=c: effects.happen(c)) for c in names)) == names
    assert effects == dict.fromkeys(names, 2)


class Rows(list[int]):
    """A large value that can be watched."""


KEEPING: dict[str, Callable[[Rows], tuple[Callable[..., Any], tuple[Any, ...]]]] = {
    "closure": lambda rows: (lambda: len(rows), ()),
    "default": lambda rows: (lambda rows=rows: len(rows), ()),
    "argument": lambda rows: (len, (rows,)),
    "bound object": lambda rows: (rows.__len__, ()),
    "partial": lambda rows: (partial(len, rows), ()),
    "cyclic argument": lambda rows: (lambda held: 1, (_cycle(rows),)),
    "held by an argument": lambda rows: (lambda held: 1, (partial(len, rows),)),
}


def _cycle(rows: Rows) -> Rows:
    rows.append(rows)  # type: ignore[arg-type]
    return rows


@pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING)
async def test_a_decided_step_keeps_no_value_alive(store: FlakyStore, make: Any) -> None:
    """What the function closed over or was given is free once the outcome is recorded."""
    runner = Runner(store, "run")
    rows = Rows([1])
    kept = weakref.ref(rows)
    fn, args = make(rows)
    await runner.step("count", fn, *args, returns=int)
    del rows, fn, args
    gc.collect()
    assert kept() is None


async def _count(runner: Runner, step_id: str, texts: list[str]) -> None:
    await runner.step(step_id, lambda: len(texts))


async def test_decided_steps_keep_no_text_alive(store: FlakyStore) -> None:
    """Nor what can't be referred to weakly."""
    runner = Runner(store, "run")
    await runner.step("first", lambda: 1)
    tracemalloc.start()
    try:
        for number in range(50):
            await _count(runner, f"count-{number}", [f"{number:06}" * 20_000])
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_an_object_made_where_another_one_was_is_another(store: FlakyStore) -> None:
    """An identity is not given away again, though an address is."""

    class Client:
        pass

    runner = Runner(store, "run")
    await runner.step("use", lambda client: 1, Client())
    refused = 0
    for _ in range(50):
        with pytest.raises(StepReused):
            await runner.step("use", lambda client: 1, Client())
        refused += 1
    assert refused == 50


async def test_a_lambda_may_watch_what_changes(store: FlakyStore) -> None:
    """What a function inside it asks for, or what has no value yet, is read when it is."""
    done = False

    async def until(met: Callable[[], object]) -> None:
        while not met():
            await asyncio.sleep(0)

    runner = Runner(store, "run")
    watching = asyncio.create_task(runner.step("watch", lambda: until(lambda: done)))
    ending = asyncio.create_task(runner.step("end", lambda: watching_too.get_name()))
    watching_too = watching
    await asyncio.sleep(0)
    done = True
    await asyncio.wait_for(watching, 10)
    assert await ending == watching.get_name()


async def test_functions_made_anew_for_keywords_replay(store: FlakyStore) -> None:
    """As those that are passed in order do."""

    def work(*, key: Callable[[], int]) -> int:
        return key()

    runner = Runner(store, "run")
    for _ in range(2):
        assert await runner.step("partial", partial(work, key=lambda: 1)) == 1
        assert await runner.step("default", lambda *, key=lambda: 2: key()) == 2


async def test_one_and_true_are_two_values(store: FlakyStore) -> None:
    """Though Python says that they are equal."""

    def holding(value: Any) -> Callable[[], str]:
        return lambda: repr(value)

    runner = Runner(store, "run")
    assert await runner.step("a", holding(1)) == "1"
    for value in (True, 1.0):
        with pytest.raises(StepReused):
            await runner.step("a", holding(value))


async def test_functions_that_name_one_another_are_looked_into_once(store: FlakyStore) -> None:
    """Each has the others in its closure; all paths between them would take for ever."""
    helpers: list[Callable[[], int]] = []

    def naming(a: Any, b: Any, c: Any) -> Callable[[], int]:
        return lambda: (a, b, c) and 1

    for _ in range(60):
        helpers.append(naming(*([*helpers, len, len, len][-3:] if len(helpers) < 3 else helpers[-3:])))
    runner = Runner(store, "run")
    for _ in range(2):
        assert await runner.step("a", helpers[-1]) == 1
    with pytest.raises(StepReused):
        await runner.step("a", helpers[-2])


class Masked(pydantic.BaseModel):
    number: str
    amount: float = 0

    @pydantic.field_serializer("number")
    def _mask(self, number: str) -> str:
        return "****"

    @pydantic.field_serializer("amount")
    def _round(self, amount: float) -> int:
        return round(amount)


class Gold(Masked):
    points: int = 0


class Open(pydantic.BaseModel, extra="allow"):
    pass


@dataclass
class Payment:
    card: Masked


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Masked(number="1"), Masked(number="2")),
        (Masked(number="1", amount=1.2), Masked(number="1", amount=1.4)),
        (Payment(Masked(number="1")), Payment(Masked(number="2"))),
        ([Gold(number="1", points=1)], [Gold(number="1", points=2)]),
        (["\ud800", 1], ["\ud800", 2]),
        ({("a", 1): 1}, {("a", 1): 2}),
        ({None: 1}, {None: 2}),
        ((10**5000, 1), (10**5000, 2)),
        ([{"\ud800"}, 1], [{"\ud801"}, 1]),
        (Open(extra=1), Open(extra=2)),
        (["'a'", "\ud800"], ["a", "\ud800"]),
    ],
    ids=["masked", "rounded", "inside", "subclass", "surrogate", "tuple key", "None key", "long", "set", "extra", "quotes"],
)
async def test_what_json_would_hide_counts(store: FlakyStore, one: Any, other: Any) -> None:
    """On one runner, and as drift from what an earlier run recorded."""

    def work(value: Any) -> int:
        return 1

    runner = Runner(store, "run", on_drift="raise")
    for _ in range(2):
        assert await runner.step("a", work, copy.deepcopy(one)) == 1
    with pytest.raises(StepReused):
        await runner.step("a", work, other)
    await Runner(store, "run", on_drift="raise").step("a", work, one)
    with pytest.raises(StepDrift):
        await Runner(store, "run", on_drift="raise").step("a", work, other)


@pytest.mark.parametrize("made", [lambda: ["\ud800"], lambda: {("a", 1): 1}], ids=["surrogate", "tuple key"])
async def test_odd_arguments_that_were_changed_are_others(store: FlakyStore, made: Callable[[], Any]) -> None:
    """They are held by what they hold, as any."""
    runner, value = Runner(store, "run"), made()
    await runner.step("a", lambda _: 1, value)
    if isinstance(value, list):
        value.append("more")
    else:
        value["a", 1] = 2
    with pytest.raises(StepReused):
        await runner.step("a", lambda _: 1, value)


@pytest.mark.parametrize(
    ("mock", "args"),
    [
        (lambda: create_autospec(_charge), (1, 2)),
        (lambda: create_autospec(Customer, instance=True).charge, ()),
        (lambda: MagicMock(spec=module), ()),
        (lambda: AsyncMock(spec=_charge), ()),
        (AsyncMock, ()),
    ],
    ids=["async function", "method", "spec", "async spec", "async"],
)
async def test_mocks_can_be_steps(store: FlakyStore, mock: Callable[[], Any], args: tuple[Any, ...]) -> None:
    """Programs are tested with them."""
    fn = mock()
    fn.return_value = 7
    assert await Runner(store, "run").step("a", fn, *args) == 7
    assert await Runner(store, "run").step("a", fn, *args) == 7
    assert fn.call_count == 1
