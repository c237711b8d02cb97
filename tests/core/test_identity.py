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
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import AsyncMock, MagicMock, create_autospec

import attrs
import msgspec
import pydantic
import pytest

from durable_core import Runner, StepDrift, StepReused

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


async def test_a_loop_that_stands_in_no_function(store: FlakyStore) -> None:
    """Its variable is a global, as in a notebook; of a lambda it counts."""
    notebook = module("notebook", "def fetch(url):\n    return url\nmake = lambda: (lambda: fetch(url))\n")
    runner = Runner(store, "run")
    notebook.url = "a"
    for _ in range(2):
        assert await runner.step("fetch", notebook.make()) == "a"
    notebook.url = "b"
    with pytest.raises(StepReused):
        await runner.step("fetch", notebook.make())


async def test_what_a_function_counts_itself_does_not_count(store: FlakyStore) -> None:
    """A flow that keeps a total replays on the same runner."""
    calls = total = 0

    def work() -> int:
        nonlocal calls
        calls += 1

        def add() -> None:
            nonlocal total
            total += 10

        add()
        return total

    runner = Runner(store, "run")
    for _ in range(2):
        assert await runner.step("work", work) == 10
    assert calls == 1


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


async def test_globals_count_where_a_lambda_reads_them(store: FlakyStore) -> None:
    """In a comprehension inside it, too; not what is an attribute by that name, nor what a function closes over."""
    source = """
def counting():
    total = 0
    def count():
        nonlocal total
        total += 1
        return total
    def look():
        return total
    return count, look
count, look = counting()
fetch = lambda url, page: f"{url}{page}"
inside = lambda: [fetch(url, page) for page in "12"]
lazily = lambda: "".join(fetch(url, page) for page in "12")
attribute = lambda: thing.url
counts = lambda: count() and look()
def named(more=""): return url + more
"""
    notebook = module("notebook", source)
    notebook.url, notebook.thing = "a", type("Thing", (), {"url": "an attribute"})
    runner = Runner(store, "run")
    assert await runner.step("inside", notebook.inside) == ["a1", "a2"]
    assert await runner.step("lazily", notebook.lazily) == "a1a2"
    assert await runner.step("attribute", notebook.attribute) == "an attribute"
    assert await runner.step("named", notebook.named) == "a"
    assert await runner.step("counts", notebook.counts) == 1
    notebook.url = "b"
    for name in ("inside", "lazily"):
        with pytest.raises(StepReused, match="other values of the variables that it uses"):
            await runner.step(name, getattr(notebook, name))
    assert await runner.step("attribute", notebook.attribute) == "an attribute"
    assert await runner.step("named", notebook.named) == "a"
    assert await runner.step("counts", notebook.counts) == 1


@pytest.mark.parametrize("sync", [True, False])
async def test_a_lambda_runs_with_the_values_that_were_read(store: FlakyStore, effects: Effects, sync: bool) -> None:
    """Those of the call: a loop that numbers its steps and goes on does not do the last one's again and again."""
    happen: Callable[[str], Any] = effects.happen if sync else effects.happen_async
    runner, names = Runner(store, "run"), ["ada", "bob", "eve"]
    together = (runner.step(f"gather-{c}", lambda: happen(c)) for c in names)  # noqa: B023
    assert await asyncio.gather(*together) == names
    steps = []
    for c in names:
        steps.append(asyncio.create_task(runner.step(f"task-{c}", lambda: happen(c))))  # noqa: B023
        await asyncio.sleep(0)
    assert await asyncio.gather(*steps) == names
    assert effects == dict.fromkeys(names, 2)
    partials = (runner.step(f"partial-{c}", partial(lambda more: c + more, "!")) for c in names)  # noqa: B023
    assert await asyncio.gather(*partials) == ["ada!", "bob!", "eve!"]
    listed = (runner.step(f"listed-{c}", lambda: [c + each for each in "12"]) for c in names)  # noqa: B023
    assert await asyncio.gather(*listed) == [["ada1", "ada2"], ["bob1", "bob2"], ["eve1", "eve2"]]


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
