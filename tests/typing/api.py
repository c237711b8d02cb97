"""What type checkers must see of the public interface; checked by mypy and pyright, never run."""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, assert_type

from durable_core import MemoryStore, Runner, StepFailed, StepRecord, Store, current_step, exponential, open_store
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
