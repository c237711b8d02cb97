"""The input of a flow: recorded as JSON, and given to its function as that is annotated, whoever runs it again."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypedDict

import pytest

from durable_core import MemoryStore, Runner, RunSuspended, StepDrift, StepRecord, UnrecordableValue, control, flow


@dataclass
class Order:
    number: int
    total: Decimal


async def begun(store: MemoryStore, fn: Any, **input: Any) -> Any:
    """Run a flow up to its approval, approve that, and return how the run stands."""
    with pytest.raises(RunSuspended):
        await fn.run(store, run_id="run", **input)
    await control.approve(store, "run", "ask", by="alice")
    return await control.status(store, "run")


async def test_a_run_that_is_resumed_gets_the_types_it_began_with() -> None:
    """From the JSON that `control.status` tells, as a worker that goes through all runs does it."""
    store, seen = MemoryStore(), list[Any]()

    @flow(wait_limit=0)
    async def pay(
        runner: Runner, amount: Decimal, day: date, orders: list[Order], rate: float, tags: set[str], **more: Decimal
    ) -> Decimal:
        seen.append((amount, day, orders, rate, tags, more))
        await runner.approval("ask")
        return amount * 2

    orders = [Order(7, Decimal("1.50"))]
    input = {"amount": Decimal("90.00"), "day": date(2024, 2, 29), "orders": orders, "rate": 1, "tags": {"a"}, "tip": Decimal(5)}
    status = await begun(store, pay, **input)
    assert status.input["amount"] == "90.00"
    assert await pay.run(store, run_id="run", **status.input) == Decimal("180.00")
    assert await pay.run(store, run_id="run", **input) == Decimal("180.00")
    first, again = seen
    assert first == again == (Decimal("90.00"), date(2024, 2, 29), orders, 1.0, {"a"}, {"tip": Decimal(5)})
    assert [type(value) for value in first] == [Decimal, date, list, float, set, dict]


SETS = """
import asyncio, sys
from durable_core import RunSuspended, control, flow, open_store

@flow(wait_limit=0)
async def tagged(runner, tags: set[str], default: frozenset[str] = frozenset("abcdef")):
    await runner.approval("ask")

async def main(path):
    async with open_store(f"file:{path}") as store:
        given = [dict(tags=set("abcdef"))]
        for input in [*given, *([(await control.status(store, "run")).input] if await store.list("run") else [])]:
            try:
                await tagged.run(store, run_id="run", **input)
            except RunSuspended:
                print("suspended")

asyncio.run(main(sys.argv[1]))
"""


def test_a_set_is_the_same_input_in_every_process(tmp_path: Path) -> None:
    """In whatever order its JSON was written."""
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SETS, str(tmp_path / "runs")]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        assert output.split() == ["suspended"] * (1 if seed == "1" else 2)


class Line(TypedDict):
    number: int


@dataclass
class Address:
    city: str
    country: str = "DE"


@pytest.mark.parametrize(
    ("annotation", "given", "recorded"),
    [
        (Line, {"number": 1, "note": "keep me"}, None),
        (float, 2**63 + 1, None),
        (int, "90", None),
        (set[int], [1, 1], None),
        (Address, {"city": "Bonn"}, {"city": "Bonn"}),
        (Address, {"city": "Bonn", "street": "unknown"}, None),
        (list[Address], [{"city": "Bonn"}], [{"city": "Bonn"}]),
        (set[str], ["b", "a"], ["a", "b"]),
        (datetime, "2024-01-01T10:00:00+00:00", "2024-01-01T10:00:00Z"),
        (Decimal, "90.00", "90.00"),
        (Decimal, 90.5, "90.5"),
        (bytes, "aGk=", "aGk="),
        (float, 3, 3),
    ],
)
async def test_input_as_json_says_all_that_was_given(annotation: Any, given: Any, recorded: Any) -> None:
    """Or is refused: nothing of it is left out, and no number changes."""

    async def take(runner: Runner, value: Any) -> None:
        return None

    take.__annotations__["value"] = annotation
    store = MemoryStore()
    if recorded is None:
        with pytest.raises(
            UnrecordableValue, match="does not fit its annotation .*; pass a value that does, or annotate it otherwise$"
        ):
            await flow(take).run(store, run_id="run", value=given)
        return
    await flow(take).run(store, run_id="run", value=given)
    found = (await control.status(store, "run")).input["value"]
    assert sorted(found) == recorded if annotation == set[str] else found == recorded
    await flow(take).run(store, run_id="run", value=found)


@pytest.mark.parametrize(
    ("annotation", "first", "second"),
    [(Fraction, Fraction(1, 3), Fraction(1, 2)), (deque[int], deque([1]), deque([2])), (set[str], {"a"}, {"b"})],
    ids=["fraction", "deque", "set"],
)
async def test_other_input_is_told_for_any_type(annotation: Any, first: Any, second: Any) -> None:
    """Also where pydantic alone has a codec for it."""

    async def take(runner: Runner, value: Any) -> None:
        return None

    take.__annotations__["value"] = annotation
    store = MemoryStore()
    for _ in range(2):
        await flow(take).run(store, run_id="run", value=first)
    with pytest.raises(StepDrift, match="started with other input"):
        await flow(take).run(store, run_id="run", value=second)


async def test_none_is_what_a_default_of_none_allows() -> None:
    """Though the annotation doesn't say so."""

    @flow
    async def pay(runner: Runner, fee: int = None, *, more: str = "x") -> Any:  # type: ignore[assignment]  # noqa: RUF013
        return [fee, more]

    assert await pay.run(MemoryStore(), run_id="run", fee=None) == [None, "x"]


async def test_the_fingerprint_of_a_flow_is_that_of_its_input() -> None:
    """As a step's is that of its arguments."""

    @flow
    async def pay(runner: Runner, order: str = "none", fee: int = 5) -> None: ...

    store = MemoryStore()
    found = []
    for number, input in enumerate([{"order": "a"}, {"order": "a"}, {"order": "b"}, {"order": "a", "fee": 6}, {}]):
        await pay.run(store, run_id=f"run-{number}", **input)  # type: ignore[arg-type]
        (fingerprint,) = {record.fingerprint for record in await store.list(f"run-{number}")}
        found.append(fingerprint)
    assert found[0] == found[1]
    assert found[-1] is None
    assert len({*found}) == 4


async def test_other_input_is_told_for_any_names() -> None:
    """Those that `**more` takes are input, too, annotated or not."""

    @flow
    async def pay(runner: Runner, **more: Any) -> Any:
        return more

    store = MemoryStore()
    assert await pay.run(store, run_id="run", a=1, b="x") == {"a": 1, "b": "x"}
    assert await pay.run(store, run_id="run", b="x", a=1) == {"a": 1, "b": "x"}
    for other in ({"a": 1}, {"a": 1, "b": "y"}, {"a": 1, "b": "x", "c": None}):
        with pytest.raises(StepDrift):
            await pay.run(store, run_id="run", **other)


@pytest.mark.parametrize(
    ("input", "match"),
    [
        (
            {"number": "notint"},
            r"^input 'number' of flow 'pay' does not fit its annotation int, at `\$`: 'notint' \(str\) is refused"
            r" \(Expected `int`, got `str`\); pass a value that does, or annotate it otherwise$",
        ),
        ({"number": 1.5}, "'number'.*1.5"),
        ({"number": 1, "order": {"number": "x", "total": "1"}}, "'order'"),
        ({"number": 1, "anything": object()}, "input 'anything' of flow 'pay' can't be recorded, at"),
        ({"number": 1, "anything": [float("nan")]}, r"'anything'.*at `\$\[0\]`: nan"),
        ({}, "input of flow 'pay': missing a required argument: 'number'; it takes \\(number: "),
        ({"number": 1, "more": 2}, "unexpected keyword argument 'more'"),
    ],
)
async def test_what_an_input_cant_hold_is_refused(input: dict[str, Any], match: str) -> None:
    """Before anything is recorded, by the name of the input."""
    store = MemoryStore()

    @flow
    async def pay(runner: Runner, number: int, order: Order | None = None, anything=None) -> None:  # type: ignore[no-untyped-def]
        raise AssertionError

    with pytest.raises(TypeError, match=match) as refused:
        await pay.run(store, run_id="run", **input)
    assert "returns=" not in str(refused.value)
    assert isinstance(refused.value, UnrecordableValue) is ("argument" not in match)
    assert await store.list("run") == ()


async def test_a_run_keeps_the_defaults_that_it_began_with() -> None:
    """Code that changes a default changes it for new runs; a parameter that was added has its own."""
    store, seen = MemoryStore(), list[Any]()

    @flow(name="pay", wait_limit=0)
    async def before(runner: Runner, order: str, fee: Decimal = Decimal(5), marker: object = ...) -> None:
        seen.append((order, fee, marker))
        await runner.approval("ask")

    status = await begun(store, before, order="7")
    assert status.input == {"order": "7"}

    @flow(name="pay")
    async def after(runner: Runner, order: str, fee: Decimal = Decimal(9), marker: object = ..., note: str = "new") -> None:
        await runner.approval("ask")
        seen.append((order, fee, marker, note))

    for other in ({"fee": Decimal(9)}, {"note": "other"}, {"fee": Decimal(5), "note": "new"}):
        with pytest.raises(StepDrift, match="started with other input, {'order': '7'}"):
            await after.run(store, run_id="run", order="7", **other)
    await after.run(store, run_id="run", order="7", fee=Decimal(5))
    await after.run(store, run_id="run", order="7")
    assert seen == [("7", Decimal(5), ...), ("7", Decimal(5), ..., "new")]


async def test_a_default_that_is_given_is_no_other_input() -> None:
    """Nor is one that was given, and is left out now."""

    @flow
    async def pay(runner: Runner, fee: int = 5) -> int:
        return fee

    store = MemoryStore()
    assert await pay.run(store, run_id="given", fee=5) == 5
    assert await pay.run(store, run_id="given") == 5
    assert await pay.run(store, run_id="left out") == 5
    assert await pay.run(store, run_id="left out", fee=5) == 5
    await pay.run(store, run_id="other", fee=6)
    assert await pay.run(store, run_id="other") == 6  # no input at all means the recorded one
    with pytest.raises(StepDrift):
        await pay.run(store, run_id="other", fee=5)


async def test_a_type_that_cant_be_read_leaves_the_value_as_it_is() -> None:
    """As without an annotation."""

    class Local:
        pass

    @flow
    async def pay(runner: Runner, amount: Missing, other: Local, third=1) -> Any:  # type: ignore[no-untyped-def,name-defined]  # noqa: F821
        return [amount, other, third]

    assert await pay.run(MemoryStore(), run_id="run", amount=90, other="text") == [90, "text", 1]


async def test_a_value_that_its_annotation_no_longer_holds_is_drift() -> None:
    """What the run began with as a default can't be given to the code of today."""

    @flow(name="pay", wait_limit=0)
    async def before(runner: Runner, fee: str = "five") -> None:
        await runner.approval("ask")

    @flow(name="pay")
    async def after(runner: Runner, fee: int = 5) -> None:
        raise AssertionError

    store = MemoryStore()
    await begun(store, before)
    with pytest.raises(StepDrift, match="began with fee='five', the default at that time, which the type of 'fee' rejects"):
        await after.run(store, run_id="run")
    await before.run(store, run_id="run")

    @flow(name="pay")
    async def later(runner: Runner, fee: int = 5) -> None:
        raise AssertionError

    await later.run(store, run_id="run")  # it has ended, and its outcome is that


async def test_a_default_is_kept_as_its_annotation_says() -> None:
    """Down to what a list of it holds."""
    seen: list[Any] = []

    @flow(name="pay", wait_limit=0)
    async def before(runner: Runner, fees: Sequence[Decimal] = (Decimal(1),)) -> None:
        await runner.approval("ask")

    @flow(name="pay")
    async def after(runner: Runner, fees: Sequence[Decimal] = (Decimal(2),)) -> None:
        await runner.approval("ask")
        seen.extend(fees)

    store = MemoryStore()
    await begun(store, before)
    await after.run(store, run_id="run")
    assert seen == [Decimal(1)]


@pytest.mark.parametrize("value", [datetime(2024, 1, 1), Decimal(1), {"tags": {"a"}}, Order(1, Decimal(1)), {1: "a"}], ids=repr)
async def test_a_parameter_without_an_annotation_takes_json_alone(value: Any) -> None:
    """Else it would get a datetime on the first run and a text on the next: anything else is refused before the run begins."""
    store = MemoryStore()

    @flow
    async def pay(runner: Runner, when) -> None:  # type: ignore[no-untyped-def]
        raise AssertionError

    @flow(name="pay")
    async def pay_any(runner: Runner, **more: Any) -> None:
        raise AssertionError

    for fn in (pay, pay_any):
        with pytest.raises(UnrecordableValue, match="input 'when' of flow 'pay' can't be recorded, at `.*annotate the parameter"):
            await fn.run(store, run_id="run", when=value)
    assert await store.list("run") == ()


async def test_what_json_changes_is_the_same_on_every_run() -> None:
    """A tuple without an annotation is a list on the first run, too; a default that has no JSON is left to the function."""
    store, seen = MemoryStore(), list[Any]()

    @flow(wait_limit=0)
    async def pay(runner: Runner, codes, more=("a",), fee=Decimal(1)) -> None:  # type: ignore[no-untyped-def]
        seen.append((codes, more, fee))
        await runner.approval("ask")

    await begun(store, pay, codes=("x", ("y",)))
    await pay.run(store, run_id="run", codes=("x", ("y",)))
    assert seen == [(["x", ["y"]], ["a"], Decimal(1))] * 2


async def test_defaults_are_those_of_the_flow() -> None:
    """A decorator that adds others gets what was recorded."""

    def fees(fn: Any) -> Any:
        @functools.wraps(fn)
        async def wrapper(runner: Runner, **given: Any) -> Any:
            return await fn(runner, **{"fee": 99, **given})

        return wrapper

    @flow
    @fees
    async def pay(runner: Runner, fee: int = 5) -> int:
        return fee

    assert await pay.run(MemoryStore(), run_id="run") == 5


@pytest.mark.parametrize("name", ["store", "run_id", "at", "connection", "wait"])
async def test_a_parameter_named_as_an_argument_of_run_or_start_is_refused(name: str) -> None:
    """When the flow is made, with its name."""
    scope: dict[str, Any] = {}
    exec(f"async def pay(runner, {name}): ...", scope)
    with pytest.raises(TypeError, match=f"flow 'pay' can't have the parameter '{name}'"):
        flow(scope["pay"])


async def test_what_a_flow_cant_be_is_told_where_it_is_made() -> None:
    """Not when it is run."""
    with pytest.raises(TypeError, match="the first parameter of flow 'nothing' must be its runner"):

        @flow
        async def nothing() -> None: ...

    with pytest.raises(TypeError, match="unknown option 'max_attemps'; did you mean 'max_attempts'"):
        flow(max_attemps=3)  # type: ignore[call-overload]

    @flow
    async def pay(runner: Runner) -> None: ...

    with pytest.raises(TypeError, match=r"flow 'pay' must be called with a Runner, not .*\.run\(store, run_id="):
        pay(MemoryStore())  # type: ignore[arg-type]


async def test_a_record_without_defaults_is_read() -> None:
    """They are those of today then."""

    @flow
    async def pay(runner: Runner, order: str, fee: int = 5) -> int:
        return fee

    store = MemoryStore()
    await store.append(
        StepRecord(run_id="run", step_id="$flow", kind="flow", status="started", name="pay", note={"input": {"order": "7"}})
    )
    assert await pay.run(store, run_id="run", order="7") == 5


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "\ud800", "n" * 513])
def test_a_name_that_would_not_come_back_is_refused(name: str) -> None:
    """A run recorded under it would belong to no flow: its name is escaped as it is recorded."""
    with pytest.raises(ValueError, match="the name of a flow"):
        flow(name=name)(_nothing)


async def _nothing(runner: Runner) -> None: ...
