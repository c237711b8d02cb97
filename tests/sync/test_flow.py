"""Blocking flows: run, resumed, asked for, as children, and what they raise."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

import durable_core
from durable_core import DurableError, RunCancelled, RunSuspended, StepDrift, StepFailed, engine
from durable_core.sync import Flow, Runner, Store, control, current_runner, flow
from tests.sync.conftest import here


@dataclass(frozen=True)
class Order:
    id: str
    amount: Decimal


@flow
def settle(runner: Runner, order: Order, fee: Decimal = Decimal(1)) -> Decimal:
    runner.step("book", lambda: order.id)
    return order.amount + fee


@flow
def where(runner: Runner) -> list[str]:
    return [here(), runner.step("where", here), current_runner().run_id, current_runner().step("mine", here)]


@flow(name="ask-first", wait_limit=0)
def ask(runner: Runner, amount: int) -> str:
    decision = runner.approval("boss", {"amount": amount})
    return runner.step("pay", lambda: f"{amount} paid") if decision.approved else "rejected"


@durable_core.flow
async def greet(runner: durable_core.Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name} from {here()}")


@flow
def parent(runner: Runner, name: str) -> list[str]:
    child = runner.flow("later", where, wait=False)
    return [runner.flow("greet", greet, name=name), *runner.flow("where", where)[:1], child]


def test_a_flow_runs_once_with_its_input(store: Store) -> None:
    """Input, defaults and the result are recorded, and typed; the same id again returns the outcome."""
    order = Order("7", Decimal("2.50"))
    assert settle.run(store, run_id="one", order=order) == Decimal("3.50")
    assert settle.run(store, run_id="one", order=order) == Decimal("3.50")
    assert settle.run(store, run_id="one") == Decimal("3.50")
    with pytest.raises(StepDrift):
        settle.run(store, run_id="one", order=Order("8", Decimal(1)))
    assert [record.status for record in store.list("one") if record.step_id == "$flow"] == ["started", "success"]


def test_a_flow_is_called_in_the_callers_thread(store: Store) -> None:
    """`run` calls the function, and the functions of its steps, where it was called."""
    assert where.run(store, "run") == [here(), here(), "run", here()]


def test_a_flow_waits_and_goes_on(store: Store) -> None:
    """A wait suspends the run, and the next `run` goes on from there."""
    with pytest.raises(RunSuspended):
        ask.run(store, "run", amount=90)
    assert [record.step_id for record in control.pending(store)] == ["boss"]
    control.approve(store, "run", "boss", by="ada")
    assert ask.run(store, "run") == "90 paid"
    assert control.result(store, "run", returns=str) == "90 paid"
    assert [run.status for run in control.runs(store, flow="ask-first")] == ["succeeded"]


def test_a_flow_is_asked_for(store: Store) -> None:
    """`start` records the input, and runs nothing; `options` make the same flow with others."""
    assert settle.start(store, "run", order=Order("7", Decimal(2))).status == "waiting"
    assert store.list("run")[0].notes["input"] == {"order": {"id": "7", "amount": "2"}}
    assert settle.options(max_attempts=2).run(store, "run") == Decimal(3)


def test_children_of_either_face(store: Store) -> None:
    """A blocking flow calls asynchronous and blocking ones; a blocking child has a thread of its own."""
    greeting, thread, child = parent.run(store, "run", name="ada")
    assert greeting.startswith("hello ada from durable-step")
    assert thread == "durable-function"
    assert child == "run/later"
    assert control.status(store, child).status == "waiting"


def test_an_asynchronous_flow_calls_a_blocking_one(store: Store) -> None:
    """`runner.flow` of the asynchronous runner takes a blocking flow, and `engine.asynchronous` gives what it runs."""

    @durable_core.flow
    async def outer(runner: durable_core.Runner) -> list[str]:
        return await runner.flow("inner", where)

    memory = engine.asynchronous(store)
    assert asyncio.run(outer.run(memory, "run"))[0] == "durable-function"
    assert engine.asynchronous(greet) is greet
    assert engine.asynchronous(memory) is memory


def test_the_blocking_face_of_an_asynchronous_flow(store: Store) -> None:
    """`flow(greet)` has `run` and `start` that block."""
    blocking = flow(greet)
    assert isinstance(blocking, Flow)
    blocking.start(store, "run", name="ada")
    assert blocking.run(store, "run").startswith("hello ada")
    assert blocking.options(max_attempts=2).run(store, "run").startswith("hello ada")
    with Runner(store, "mine") as runner:
        assert blocking(runner, name="bob").startswith("hello bob")


def test_a_flow_is_called_with_a_runner_of_ones_own(store: Store) -> None:
    """A flow is a function, too."""
    with Runner(store, "run") as runner:
        assert settle(runner, Order("7", Decimal(2))) == Decimal(3)
        assert runner.recorded("$flow") is None
    with pytest.raises(TypeError, match="Runner of durable_core.sync"):
        settle(store, Order("7", Decimal(2)))  # type: ignore[arg-type]


class Shop:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    @flow
    def order(self, runner: Runner, amount: int) -> bool:
        return runner.step("check", lambda: amount <= self.limit)


def test_a_method_is_called_on_its_object(store: Store) -> None:
    """A flow that is a method belongs to its object, as functions do."""
    assert Shop(10).order.run(store, "small", amount=7)
    assert not Shop(10).order.run(store, "large", amount=70)


def test_a_run_within_a_run_is_refused(store: Store) -> None:
    """`run` inside a flow names `runner.flow`."""

    @flow
    def outer(runner: Runner) -> Any:
        return where.run(store, "inner")

    with pytest.raises(DurableError, match=r"runner\.flow"):
        outer.run(store, "run")


async def unending(runner: durable_core.Runner) -> Any:
    yield 1


@pytest.mark.parametrize("broken", [greet._fn, unending, where, lambda: 1, 7])
def test_what_is_no_flow_function_is_refused(broken: Any) -> None:
    """Async functions, generators, other flows, functions without a runner, and what is no function are refused at once."""
    with pytest.raises(TypeError):
        flow(broken)
    with pytest.raises(TypeError, match="did you mean 'max_attempts'"):
        flow(max_attempt=3)  # type: ignore[call-overload]


def test_a_flow_has_a_name_of_its_own(store: Store) -> None:
    """A partial or a callable object has none, and is refused unless it is given one."""
    named = partial(where._fn)
    with pytest.raises(TypeError, match="give it one"):
        flow(named)
    with pytest.raises(TypeError, match="give it one"):
        durable_core.flow(partial(greet._fn))
    assert flow(name="where")(named).run(store, "run")[2] == "run"


def test_what_a_flow_raises(store: Store) -> None:
    """A step's failure ends the run, a typo is a crash that is raised as it is, and both are recorded."""

    @flow
    def fails(runner: Runner) -> None:
        runner.step("one", lambda: 1 / 0)

    @flow
    def typo(runner: Runner) -> None:
        raise NameError("amuont")

    @flow
    def stops(runner: Runner) -> None:
        raise StopIteration

    for _ in range(2):
        with pytest.raises(StepFailed) as failed:
            fails.run(store, "fails")
        assert failed.value.error.matches(ZeroDivisionError)
        with pytest.raises(NameError, match="amuont"):
            typo.run(store, "typo")
    with pytest.raises(RuntimeError, match="StopIteration"):
        stops.run(store, "stops")
    assert control.status(store, "typo").status == "crashed"


def test_a_flow_that_answers_a_failure_fails(store: Store) -> None:
    """A step in an `except` of the flow answers what it handles; what was handled outside of the flow is none of its own."""

    @flow
    def undoes(runner: Runner) -> None:
        try:
            runner.step("book", lambda: "booked")
            raise ConnectionError("no answer")
        except ConnectionError:
            runner.step("unbook", lambda: "unbooked")
            raise

    with pytest.raises(StepFailed, match="no answer"):
        undoes.run(store, "undoes")
    assert store.get("undoes", "$flow").notes["answered_by"] == ["unbook"]  # type: ignore[union-attr]

    @flow
    def crashes(runner: Runner) -> None:
        runner.step("look", lambda: "looked")
        raise NameError("amuont")

    try:
        raise ConnectionError("of the caller's own")
    except ConnectionError:
        with pytest.raises(NameError):
            crashes.run(store, "crashes")
    assert control.status(store, "crashes").status == "crashed"


def test_a_cancelled_flow_undoes_what_it_did(store: Store) -> None:
    """`RunCancelled` is raised in the flow, steps that undo run, and the run is cancelled."""

    @flow
    def trip(runner: Runner) -> None:
        try:
            runner.step("book", lambda: control.cancel(runner.store, runner.run_id, reason="enough"), returns=None)
            runner.event("never")
        except RunCancelled:
            runner.step("unbook", lambda: "unbooked", when_cancelled=True)
            raise

    with pytest.raises(StepFailed) as failed:
        trip.run(store, "run")
    assert failed.value.error.matches(RunCancelled)
    assert control.status(store, "run").status == "cancelled"
    assert store.get("run", "unbook") is not None


def test_context_variables_go_in_and_not_out(store: Store) -> None:
    """A flow sees the caller's context variables; what it sets is its own."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")

    @flow
    def look(runner: Runner) -> str:
        seen = variable.get()
        variable.set("the flow's")
        return seen

    variable.set("the caller's")
    assert look.run(store, "run") == "the caller's"
    assert variable.get() == "the caller's"
