"""What type checkers must see of the public interface; checked by mypy and pyright, never run."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, assert_type

from durable_core import MemoryStore, Runner, StepFailed, StepRecord, Store, current_step, exponential, flow, open_store, sync
from durable_core.control import RunStatus, approve, clear_ended, result, retry, runs
from durable_core.testing import CrashReport, crash_everywhere
from durable_file import FileStore


class Account:
    email: str


async def create_account(email: str) -> Account:
    raise NotImplementedError


def price(item: str) -> int:
    raise NotImplementedError


def sdk_call() -> Any:
    raise NotImplementedError


async def a_step_has_the_type_of_its_function(runner: Runner) -> None:
    assert_type(await runner.step("async", create_account, "ada@example.com"), Account)
    assert_type(await runner.step("sync", price, "chair"), int)
    assert_type(await runner.step("lambda", lambda: price("chair")), int)
    assert_type(await runner.step("lambda-async", lambda: create_account("ada@example.com")), Account)
    assert_type(await runner.step("partial", partial(price, item="chair")), int)


async def returns_decides_over_the_annotation(runner: Runner) -> None:
    assert_type(await runner.step("typed", sdk_call, returns=Account), Account)
    assert_type(await runner.step("effect-only", sdk_call, returns=None), None)


async def arguments_are_checked(runner: Runner) -> None:
    await runner.step("argument", price, 7)  # type: ignore[arg-type]  # an item is a str
    await runner.step("too-few", price)  # type: ignore[call-arg, arg-type]  # the item is missing


def size_of(item: str) -> int:
    raise NotImplementedError


async def weigh(item: str) -> float:
    raise NotImplementedError


async def a_map_has_the_values_of_its_function(runner: Runner) -> None:
    assert_type(await runner.map("async", weigh, ["chair"]), list[float])
    assert_type(await runner.map("sync", size_of, ["chair"], key=str.upper, limit=3), list[int])
    assert_type(await runner.map("tolerant", size_of, ["chair"], tolerate=1), list[int | None])
    assert_type(await runner.map("tolerant-async", weigh, ["chair"], tolerate=1), list[float | None])
    assert_type(await runner.map("typed", size_of, ["chair"], returns=Account), list[Account])
    assert_type(await runner.map("effects", size_of, ["chair"], returns=None), list[None])
    await runner.map("items", size_of, [7])  # type: ignore[arg-type]  # an item is a str


async def a_race_has_the_value_of_its_contenders(runner: Runner) -> None:
    won = await runner.first("race", a=lambda: runner.step("a", price, "a"), b=lambda: runner.step("b", price, "b"))
    assert_type(won, tuple[str, int])
    await runner.first("race", a=runner.step("a", price, "a"))  # type: ignore[arg-type]  # a contender is a function
    assert_type(runner.scope("part"), Runner)
    assert_type(runner.recorded("a"), StepRecord | None)


async def stores_are_stores() -> None:
    stores: list[Store] = [MemoryStore(), FileStore("runs")]
    for store in stores:
        assert_type(await store.get("run", "step"), StepRecord | None)
        assert_type(await store.list("run"), Sequence[StepRecord])
    async with open_store("file:./runs") as opened, Runner(opened, run_id="run", retry_delay=timedelta(seconds=1)) as runner:
        assert_type(runner, Runner)
    Runner(MemoryStore(), run_id="run", retry_delay=exponential(0.5, limit=30, jitter=True), retry_on=(TimeoutError, OSError))


async def what_is_recorded(runner: Runner, failed: StepFailed) -> None:
    (record, *_) = await runner.history()
    assert_type(record, StepRecord)
    assert_type(record.value(int), int)
    assert_type(failed.error.matches(TimeoutError), bool)
    assert_type(current_step().idempotency_key, str)


async def runs_are_acted_on_from_outside(store: Store) -> None:
    assert_type(await result(store, "run", returns=int), int)
    assert_type(await result(store, "run"), Any)
    assert_type([run async for run in runs(store, status=("waiting", "parked"), limit=50)], list[RunStatus])
    runs(store, status="ended")  # type: ignore[arg-type]  # no status has that name
    assert_type(await retry(store, "run"), StepRecord)
    assert_type(await clear_ended(store), Sequence[str])


def flows_are_crashed_everywhere() -> None:
    @flow
    async def pay(runner: Runner, amount: int) -> str:
        return str(amount)

    @sync.flow
    def pay_blocking(runner: sync.Runner, amount: int) -> str:
        return str(amount)

    async def decide(store: Store, wait: StepRecord) -> None:
        await approve(store, wait.run_id, wait.step_id, by="ann")

    assert_type(crash_everywhere(pay, open_store="file:./runs", input={"amount": 1}, decide=decide), CrashReport)
    crash_everywhere(pay_blocking, open_store=lambda: FileStore("runs"), input=lambda run_id: {"amount": len(run_id)})
    crash_everywhere(decide, open_store="file:./runs")  # type: ignore[arg-type]  # no flow
    crash_everywhere(pay, open_store=MemoryStore())  # type: ignore[arg-type]  # nothing that opens one
    crash_everywhere(pay, open_store="file:./runs", ends="well")  # type: ignore[arg-type]  # no state
