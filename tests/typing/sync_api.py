"""What type checkers must see of `durable_core.sync`; checked by mypy and pyright, never run."""

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any, assert_type

import durable_core
from durable_core import Decision, MemoryStore, StepRecord, engine
from durable_core.control import RunStatus
from durable_core.sync import Flow, Runner, Store, control, current_runner, flow, open_store
from durable_worker import Worker


class Account:
    email: str


def create_account(email: str) -> Account:
    raise NotImplementedError


async def weigh(item: str) -> float:
    raise NotImplementedError


def size_of(item: str) -> int:
    raise NotImplementedError


def sdk_call() -> Any:
    raise NotImplementedError


def a_step_has_the_type_of_its_function(runner: Runner) -> None:
    assert_type(runner.step("sync", create_account, "ada@example.com"), Account)
    assert_type(runner.step("async", weigh, "chair"), float)
    assert_type(runner.step("lambda", lambda: size_of("chair")), int)
    assert_type(runner.step("lambda-async", lambda: weigh("chair")), float)
    assert_type(runner.step("partial", partial(size_of, item="chair")), int)
    assert_type(runner.step("typed", sdk_call, returns=Account), Account)
    runner.step("effect-only", sdk_call, returns=None)
    runner.step("argument", size_of, 7)  # type: ignore[arg-type]  # an item is a str


def waits_and_races(runner: Runner) -> None:
    assert_type(runner.event("sent", returns=int), int)
    assert_type(runner.approval("ok", {"amount": 90}), Decision)
    assert_type(runner.first("race", a=lambda: runner.step("a", size_of, "a"), b=lambda: size_of("b")), tuple[str, int])
    assert_type(runner.map("sync", size_of, ["chair"], key=str.upper, limit=3), list[int])
    assert_type(runner.map("async", weigh, ["chair"]), list[float])
    assert_type(runner.map("tolerant", size_of, ["chair"], tolerate=1), list[int | None])
    runner.map("items", size_of, [7])  # type: ignore[arg-type]  # an item is a str
    assert_type(runner.scope("part"), Runner)
    assert_type(runner.recorded("a"), StepRecord | None)
    assert_type(runner.history(), Sequence[StepRecord])
    assert_type(runner.store, Store)
    assert_type(current_runner(), Runner)


@flow
def settle(runner: Runner, order: str, amount: int = 3) -> Account:
    return runner.step("account", create_account, order)


@flow(name="another", max_attempts=3)
def another(runner: Runner) -> int:
    return runner.flow("settle", greet, name="ada")


@durable_core.flow
async def greet(runner: durable_core.Runner, name: str) -> int:
    assert_type(await runner.flow("settle", settle, order="7"), Account)
    assert_type(await runner.flow("later", settle, wait=False, order="7"), str)
    return len(name)


def flows_take_their_input(store: Store, runner: Runner) -> None:
    assert_type(settle.run(store, run_id="one", order="7"), Account)
    assert_type(another.options(wait_limit=0).run(MemoryStore(), "one"), int)
    assert_type(settle.start(store, run_id="one", order="7"), StepRecord)
    assert_type(settle(runner, "7", amount=3), Account)
    assert_type(flow(greet).run(store, "one", name="ada"), int)
    assert_type(runner.flow("child", settle, order="7"), Account)
    assert_type(runner.flow("later", settle, wait=False, order="7"), str)
    engine.asynchronous(settle).name.upper()
    runner.flow("child", settle, order=7)  # type: ignore[call-overload]  # an order is a str
    flows: list[Flow[..., Any]] = [settle, another]
    Worker(MemoryStore(), flows)
    settle.run(store, "one", order=7)  # type: ignore[arg-type]  # an order is a str


def runs_are_acted_on_from_outside(url: str) -> None:
    with open_store(url) as store, Runner(store, "run", max_attempts=2) as runner:
        assert_type(store, Store)
        assert_type(runner, Runner)
        assert_type(store.get("run", "step"), StepRecord | None)
        assert_type(store.runs("r"), Generator[str, None, None])
        assert_type(control.result(store, "run", returns=int), int)
        assert_type(control.result(store, "run"), Any)
        assert_type([*control.runs(store, status=("waiting", "parked"), limit=50)], list[RunStatus])
        assert_type(control.retry(store, "run"), StepRecord)
        assert_type(control.approve(MemoryStore(), "run", "ok", by="ada"), StepRecord)
        assert_type(control.clear_ended(store), Sequence[str])
        assert_type(control.copy(store, "run", MemoryStore()), int)
        control.runs(store, status="ended")  # type: ignore[arg-type]  # no status has that name
        Runner(store, "run", max_attempt=3)  # type: ignore[call-arg]  # no option has that name
