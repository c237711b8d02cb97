"""Steps run once and return what was recorded ever after."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pydantic
import pytest

from durable_core import (
    DurableError,
    Lease,
    MemoryStore,
    NestedStep,
    RunBusy,
    Runner,
    StepDrift,
    StepEvent,
    StepFailed,
    StepRecord,
    current_step,
)
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore
from tests.core.values.value_types import Account as PydanticAccount
from tests.core.values.value_types import Day, Reading, label


@dataclass
class Account:
    id: int
    opened: datetime


class Link(pydantic.BaseModel):
    url: pydantic.HttpUrl


async def test_second_run_returns_the_recorded_value_without_running(store: FlakyStore, effects: Effects) -> None:
    """The same run id replays: the function is not called again and the value is the recorded one."""
    first = await Runner(store, "run").step("charge", effects.happen, "charge")
    second = await Runner(store, "run").step("charge", effects.happen, "charge")
    assert (first, second, effects["charge"]) == ("charge", "charge", 1)


async def test_another_run_id_runs_anew(store: FlakyStore, effects: Effects) -> None:
    """Runs don't share steps."""
    for run_id in ("one", "two"):
        await Runner(store, run_id).step("charge", effects.happen)
    assert effects["effect"] == 2


async def test_first_run_returns_what_replay_returns(store: FlakyStore) -> None:
    """The value returned is the decoded record from the first run on, with its type."""
    opened = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    given = Account(1, opened)

    async def create() -> Account:
        return given

    first = await Runner(store, "run").step("create", create)
    again = await Runner(store, "run").step("create", create)
    assert first == again == given
    assert first is not given


async def test_replayed_value_is_not_shared(store: FlakyStore) -> None:
    """Changing what a step returned changes nothing for the next one who asks."""
    runner = Runner(store, "run")

    def items() -> list[int]:
        return [1]

    (await runner.step("items", items)).append(2)
    (await runner.step("items", items)).append(3)
    assert await runner.step("items", items) == [1]


async def test_returns_none_records_no_value(store: FlakyStore) -> None:
    """An effect whose result nobody needs may return anything."""
    runner = Runner(store, "run")
    value = await runner.step("call", lambda: threading.Lock(), returns=None)
    (record,) = await runner.history()
    assert value is None
    assert record.result is None
    assert await Runner(store, "run").step("call", lambda: threading.Lock(), returns=None) is None


async def test_returns_gives_the_type_of_a_lambda(store: FlakyStore) -> None:
    """`returns=` overrides the annotation and types what has none."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    runner = Runner(store, "run")
    assert await runner.step("when", lambda: at, returns=datetime) == at
    assert await Runner(store, "run").step("when", lambda: at, returns=datetime) == at


async def test_every_field_of_the_record_is_filled(store: FlakyStore) -> None:
    """The record tells who, what, when, which attempt, and a hash of the arguments."""
    runner = Runner(store, "run")
    before = datetime.now(UTC)
    await runner.step("add", lambda a, b: a + b, 1, 2, name="Add two numbers")
    (record,) = await runner.history()
    assert (record.run_id, record.step_id, record.revision, record.status, record.kind) == ("run", "add", 0, "success", "step")
    assert (record.name, record.result, record.error, record.attempt) == ("Add two numbers", b"3", None, 1)
    assert before <= record.started_at <= record.ended_at <= datetime.now(UTC)
    assert record.fingerprint
    assert record.value(int) == 3


async def test_the_end_is_the_start_plus_the_time_that_passed(store: FlakyStore) -> None:
    """Whatever the machine's clock is set to meanwhile."""
    clock = FakeClock()

    async def work() -> None:
        clock.advance(5)
        clock.jump(-3600)

    began = clock.now()
    await Runner(store, "run", clock=clock).step("work", work)
    (record,) = await store.list("run")
    assert (record.started_at, record.duration) == (began, timedelta(seconds=5))


async def test_what_the_store_takes_is_no_time_of_the_step() -> None:
    """Neither a look for a cancellation nor the record of an intent, before the function is called, counts."""
    clock = FakeClock()

    class Slow(MemoryStore):
        poll_seconds = 2.0

        async def append(self, record: StepRecord) -> StepRecord:
            clock.advance(7)
            return await super().append(record)

        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            clock.advance(7)
            return await super().get(run_id, step_id)

    async def work() -> None:
        clock.advance(5)

    runner = Runner(Slow(), "run", clock=clock)
    await runner.step("first", work)
    await runner.step("second", work)  # by now it is time to look
    await runner.step("third", work, at_most_once=True)
    assert clock.monotonic() > 5 * 3 + 7 * 4
    records = [record for record in await runner.history() if record.status == "success"]
    assert [record.duration for record in records] == [timedelta(seconds=5)] * 3


async def test_sync_functions_run_in_a_thread(store: FlakyStore) -> None:
    """A blocking function doesn't hold up the loop."""
    main = threading.get_ident()
    runner = Runner(store, "run")
    assert await runner.step("thread", threading.get_ident) != main

    async def ident() -> int:
        return threading.get_ident()

    assert await runner.step("loop", ident) == main


async def test_busy_steps_leave_the_threads_of_others_alone(store: FlakyStore) -> None:
    """However many block, name look-ups and stores that use the loop's own threads go on."""
    go = threading.Event()
    runner = Runner(store, "run")
    steps = [asyncio.create_task(runner.step(f"wait-{number}", go.wait)) for number in range(40)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(int), 10) == 0
        assert not any(step.done() for step in steps)
    finally:
        go.set()
        await asyncio.wait(steps)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_threads_in_a_forked_child(store: FlakyStore, effects: Effects) -> None:
    """A child has none of its parent's, and starts its own."""
    await Runner(store, "run").step("a", effects.happen)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # ends a child that hangs: waiting for a thread can't be given up
            asyncio.run(Runner(store, "run").step("b", effects.happen))
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


async def test_awaitable_from_a_sync_function_is_awaited_on_the_loop(store: FlakyStore, effects: Effects) -> None:
    """A lambda around an async call is the usual way to pass keyword arguments."""
    assert await Runner(store, "run").step("call", lambda: effects.happen_async(name="async")) == "async"


@pytest.mark.parametrize("error", [StopIteration("end"), StopAsyncIteration("end"), KeyError("k")], ids=repr)
async def test_any_exception_of_a_thread_is_a_failure(store: FlakyStore, error: Exception) -> None:
    """Not even StopIteration, which futures refuse to carry, hangs a step."""

    def fail() -> None:
        raise error

    with pytest.raises(StepFailed) as failed:
        await Runner(store, "run").step("fail", fail)
    assert failed.value.error.matches(type(error))
    assert failed.value.__cause__ is error


async def test_contextvars_reach_the_thread(store: FlakyStore) -> None:
    """`current_step()` works in sync and async functions, and nowhere else."""
    runner = Runner(store, "run")

    def sync() -> list[str]:
        step = current_step()
        return [step.run_id, step.step_id, step.idempotency_key]

    async def asynchronous() -> list[str]:
        return sync()

    one = await runner.step("one", sync)
    two = await runner.step("two", asynchronous)
    assert (one[:2], two[:2]) == (["run", "one"], ["run", "two"])
    assert one[2] != two[2]
    with pytest.raises(DurableError, match="outside a step"):
        current_step()


async def test_idempotency_key_is_stable_across_attempts_and_processes(store: FlakyStore) -> None:
    """A service can recognise the repetition of a call."""
    keys: list[tuple[int, str]] = []

    async def fail() -> None:
        keys.append((current_step().attempt, current_step().idempotency_key))
        raise OSError

    for _ in range(2):
        with pytest.raises(StepFailed):
            await Runner(MemoryStore(), "run").step("pay", fail, max_attempts=2)
    assert [attempt for attempt, _ in keys] == [1, 2, 1, 2]
    assert len({key for _, key in keys}) == 1


async def test_idempotency_keys_are_told_apart(store: FlakyStore) -> None:
    """Two runs, or two steps, are two calls to a service, whatever their ids look like joined."""

    def key() -> str:
        return current_step().idempotency_key

    ids = [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "b")]
    assert len({await Runner(store, run_id).step(step_id, key) for run_id, step_id in ids}) == len(ids)


async def test_a_step_that_nobody_awaits_is_named_as_one(store: FlakyStore, effects: Effects) -> None:
    """In Python's own warning."""
    with pytest.warns(RuntimeWarning, match=r"coroutine 'Runner\.step' was never awaited"):
        Runner(store, "run").step("mail", effects.happen)
    assert not effects


async def test_history_and_reset(store: FlakyStore, effects: Effects) -> None:
    """`history` reads the entries in order; `reset` clears this run and gives a fresh one."""
    other = Runner(store, "other")
    await other.step("keep", effects.happen)
    runner = Runner(store, "run")
    await runner.step("a", effects.happen)
    await runner.step("b", effects.happen)
    assert [record.step_id for record in await runner.history()] == ["a", "b"]
    await runner.reset()
    assert await runner.history() == ()
    await runner.step("a", effects.happen)
    assert effects["effect"] == 4
    assert len(await other.history()) == 1


async def test_the_highest_revision_counts_however_entries_are_listed(store: FlakyStore, effects: Effects) -> None:
    """A store may list the entries of one step in another order than they were appended."""
    await store.append(StepRecord(run_id="run", step_id="a", revision=1, result=b'"newest"'))
    await store.append(StepRecord(run_id="run", step_id="a", status="reopened"))
    runner = Runner(store, "run")
    assert [record.revision for record in await runner.history()] == [1, 0]
    assert await runner.step("a", effects.happen) == "newest"
    assert not effects


async def test_a_reset_that_fails_forgets_nothing(store: FlakyStore, effects: Effects) -> None:
    """What the store still holds is replayed."""

    async def fail(run_id: str) -> None:
        raise OSError("away")

    runner = Runner(store, "run")
    await runner.step("a", effects.happen)
    store.clear = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="away"):
        await runner.reset()
    assert await runner.step("a", effects.happen) == "effect"
    assert effects["effect"] == 1


async def test_the_log_is_read_once(effects: Effects) -> None:
    """However many steps begin at once; who came later undoes nothing that the others did meanwhile."""

    class Slow(MemoryStore):
        reads = 0

        async def list(self, run_id: str) -> Sequence[StepRecord]:
            self.reads += 1
            found = await super().list(run_id)
            for _ in range(self.reads * 10):
                await asyncio.sleep(0)
            return found

    store = Slow()
    runner = Runner(store, "run")
    await asyncio.gather(*(runner.step(f"s{number}", effects.happen_async, f"s{number}") for number in range(3)))
    await asyncio.gather(*(runner.step(f"s{number}", effects.happen_async, f"s{number}") for number in range(3)))
    assert effects == {"s0": 1, "s1": 1, "s2": 1}
    assert store.reads == 1


@pytest.mark.parametrize("entered", [True, False])
async def test_a_step_that_begins_during_a_reset_is_of_the_fresh_run(effects: Effects, entered: bool) -> None:
    """It waits until the run is cleared; its outcome is not cleared with the rest."""
    clearing, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def clear(self, run_id: str) -> None:
            clearing.set()
            await go.wait()
            await super().clear(run_id)

    store = Slow()
    runner = Runner(store, "run")
    async with runner if entered else contextlib.nullcontext():
        await runner.step("a", effects.happen, "a")
        resetting = asyncio.create_task(runner.reset())
        await clearing.wait()
        steps = [asyncio.create_task(runner.step(name, effects.happen, name)) for name in "ab"]
        for _ in range(5):
            await asyncio.sleep(0)
        go.set()
        await resetting
        assert await asyncio.gather(*steps) == ["a", "b"]
        assert {record.step_id for record in await runner.history()} == {"a", "b"}
    assert effects == {"a": 2, "b": 1}


async def test_a_step_that_begins_while_a_reset_waits_for_the_lock_refuses_it(effects: Effects) -> None:
    """As one that ran before."""
    locking, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        @contextlib.asynccontextmanager
        async def lock(self, run_id: str) -> AsyncIterator[Lease]:
            async with super().lock(run_id) as lease:
                locking.set()
                await go.wait()
                yield lease

    runner = Runner(Slow(), "run")
    resetting = asyncio.create_task(runner.reset())
    await locking.wait()
    running = asyncio.create_task(runner.step("a", asyncio.Event().wait))
    for _ in range(5):
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(DurableError, match="can't be reset while these steps run: 'a'"):
        await resetting
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_after_a_reset_an_id_may_mean_something_else(store: FlakyStore, effects: Effects) -> None:
    """What it was used for before is gone with the run."""
    runner = Runner(store, "run")
    await runner.step("a", effects.happen, "one")
    await runner.reset()
    assert await runner.step("a", effects.happen, "two") == "two"


async def test_reset_inside_async_with_keeps_the_lock(store: FlakyStore, effects: Effects) -> None:
    """A runner that holds the lock clears under it."""
    async with Runner(store, "run") as runner:
        await runner.step("a", effects.happen)
        await runner.reset()
        await runner.step("a", effects.happen)
    assert effects["effect"] == 2


async def test_reset_takes_the_lock(store: FlakyStore, effects: Effects) -> None:
    """A run that another works on is not cleared under its hands."""
    async with Runner(store, "run") as other:
        await other.step("a", effects.happen)
        with pytest.raises(RunBusy):
            await Runner(store, "run").reset()
        assert len(await other.history()) == 1


async def test_reset_while_a_step_runs_is_refused(store: FlakyStore) -> None:
    """The outcome of a running step would otherwise land in a run that was just cleared."""
    runner = Runner(store, "run")
    started, go = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        started.set()
        await go.wait()

    step = asyncio.create_task(runner.step("wait", wait))
    await started.wait()
    with pytest.raises(DurableError, match="'wait'"):
        await runner.reset()
    go.set()
    await step


async def test_a_step_inside_a_step_is_refused_and_not_recorded(store: FlakyStore, effects: Effects) -> None:
    """Replaying the outer step would skip the inner one; neither is recorded, so that mended code runs both."""
    runner = Runner(store, "run")

    async def outer() -> None:
        await runner.step("inner", effects.happen)

    with pytest.raises(NestedStep, match=r"'inner'.*'outer'"):
        await runner.step("outer", outer)
    assert await runner.history() == ()
    assert not effects


async def test_a_step_inside_a_step_of_a_task_group_is_not_recorded_either(store: FlakyStore, effects: Effects) -> None:
    """The group wraps the error, and it is no failure to retry or to record."""
    runner = Runner(store, "run", max_attempts=3)
    calls = 0

    async def outer() -> None:
        nonlocal calls
        calls += 1
        async with asyncio.TaskGroup() as group:
            group.create_task(nested())

    async def nested() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.step("inner", effects.happen))

    with pytest.raises(ExceptionGroup) as caught:
        await runner.step("outer", outer)
    assert caught.value.subgroup(NestedStep)
    assert (calls, await runner.history(), dict(effects)) == (1, (), {})


async def test_steps_in_threads_may_each_drive_a_run(store: FlakyStore) -> None:
    """However many there are, their own steps find threads."""
    many = 50
    together = threading.Barrier(40)  # as many as run at once

    def outer(number: int) -> int:
        if number < together.parties:
            together.wait(30)

        async def inner() -> int:
            return await Runner(MemoryStore(), "inner").step("number", lambda: number, returns=int)

        return asyncio.run(inner())

    runner = Runner(store, "run")
    numbers = await asyncio.gather(*(runner.step(f"step-{number}", outer, number) for number in range(many)))
    assert numbers == [*range(many)]


async def test_another_runner_inside_a_step_is_fine(store: FlakyStore, effects: Effects) -> None:
    """A step may drive another run."""

    async def other() -> str:
        return await Runner(store, "other").step("inner", effects.happen)

    assert await Runner(store, "run").step("outer", other) == "effect"


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["plain", "timeout"])
async def test_a_task_left_behind_by_a_step_may_start_steps(store: FlakyStore, effects: Effects, options: Any) -> None:
    """Only while the outer function runs is a step nested, and has what it calls a current step."""
    runner = Runner(store, "run")
    begun, go = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[str]] = []

    async def later() -> str:
        assert current_step().step_id == "spawn"
        begun.set()
        await go.wait()
        with pytest.raises(DurableError, match="outside a step"):
            current_step()
        return await runner.step("later", effects.happen)

    async def spawn() -> None:
        tasks.append(asyncio.create_task(later()))
        await begun.wait()

    await runner.step("spawn", spawn, **options)
    go.set()
    assert await tasks[0] == "effect"


async def test_concurrent_steps_run_concurrently_and_replay(store: FlakyStore, effects: Effects) -> None:
    """Identity is the id, never the order, so gather is safe."""

    async def flow(order: list[int]) -> list[int]:
        runner = Runner(store, "run")

        async def work(number: int) -> int:
            effects.happen(str(number))
            await asyncio.sleep(0)
            return number

        return sorted(await asyncio.gather(*(runner.step(f"work-{i}", work, i) for i in order)))

    assert await flow([1, 2, 3]) == await flow([3, 1, 2]) == [1, 2, 3]
    assert set(effects.values()) == {1}


async def test_the_same_call_twice_at_once_runs_once(store: FlakyStore, effects: Effects) -> None:
    """The second caller shares the first one's execution."""
    runner = Runner(store, "run")
    values = await asyncio.gather(*(runner.step("one", effects.happen_async) for _ in range(10)))
    assert values == ["effect"] * 10
    assert effects["effect"] == 1


async def test_two_runners_without_lock_get_one_outcome(store: FlakyStore) -> None:
    """Both may run the function; one outcome is recorded and both return it."""
    together = asyncio.Barrier(2)

    async def which() -> int:
        return await together.wait()

    values = await asyncio.gather(*(Runner(store, "run").step("which", which) for _ in range(2)))
    assert values[0] == values[1]
    assert len(await store.list("run")) == 1


async def test_a_recorded_value_that_the_type_no_longer_decodes_is_drift(store: FlakyStore, effects: Effects) -> None:
    """The recorded value is neither changed nor run again."""
    await Runner(store, "run").step("value", effects.happen)
    with pytest.raises(StepDrift, match="'value'"):
        await Runner(store, "run").step("value", effects.happen, returns=int)
    assert effects["effect"] == 1


async def test_other_arguments_than_recorded_are_drift(store: FlakyStore, effects: Effects) -> None:
    """Input that changed between two runs is told, and the recorded outcome used unless told otherwise."""
    await Runner(store, "run").step("value", effects.happen, "before")
    with pytest.warns(StepDrift, match="other arguments") as warned:
        assert await Runner(store, "run").step("value", effects.happen, "after") == "before"
    assert warned[0].filename == __file__  # where the step is called
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("value", effects.happen, "after")
    assert effects == {"before": 1}


async def test_drift_is_an_error_where_that_is_asked_for(store: FlakyStore, effects: Effects) -> None:
    """Whatever the program does with warnings."""
    await Runner(store, "run").step("value", effects.happen, "before")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert await Runner(store, "run").step("value", effects.happen, "after") == "before"
        with pytest.raises(StepDrift, match="other arguments"):
            await Runner(store, "run", on_drift="raise").step("value", effects.happen, "after")


async def test_arguments_that_came_or_went_are_drift(store: FlakyStore) -> None:
    """No argument at all is other than one."""

    def work(*args: str) -> int:
        return len(args)

    await Runner(store, "run").step("had-one", work, "x")
    await Runner(store, "run").step("had-none", work)
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("had-one", work)
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("had-none", work, "x")


async def test_keyword_arguments_of_a_partial_count(store: FlakyStore) -> None:
    """They are how a function gets keyword arguments."""

    def pay(*, amount: int) -> int:
        return amount

    assert await Runner(store, "run").step("pay", functools.partial(pay, amount=1)) == 1
    assert await Runner(store, "run", on_drift="raise").step("pay", functools.partial(pay, amount=1)) == 1
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("pay", functools.partial(pay, amount=2))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Path("a"), Path("b")),
        (Reading(value=1.5), Reading(value=2.5)),
        (Day(day=date(2024, 1, 1)), Day(day=date(2024, 1, 2))),
        (Link(url="https://example.com/a"), Link(url="https://example.com/b")),
        ([PydanticAccount(email="ann@example.com")], [PydanticAccount(email="bob@example.com")]),
    ],
    ids=label,
)
async def test_arguments_of_many_types_count_by_what_they_hold(store: FlakyStore, before: Any, after: Any) -> None:
    """An equal one is the same, another is drift."""

    def work(argument: Any) -> int:
        return 1

    await Runner(store, "run").step("a", work, before)
    await Runner(store, "run", on_drift="raise").step("a", work, copy.deepcopy(before))
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("a", work, after)


async def test_other_arguments_than_those_of_a_failure_are_drift(store: FlakyStore) -> None:
    """What was recorded as failed is as little what is asked for now."""

    def fail(amount: int) -> None:
        raise OSError

    with pytest.raises(StepFailed):
        await Runner(store, "run").step("pay", fail, 1)
    with pytest.warns(StepDrift, match="other arguments"), pytest.raises(StepFailed):
        await Runner(store, "run").step("pay", fail, 2)
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("pay", fail, 2)


async def test_another_kind_than_recorded_is_drift(store: FlakyStore, effects: Effects) -> None:
    """An id that was an approval can't become a step."""
    await store.append(StepRecord(run_id="run", step_id="ask", kind="approval", result=b'"x"'))
    with pytest.raises(StepDrift, match="'approval'"):
        await Runner(store, "run").step("ask", effects.happen)
    assert not effects


async def test_events_in_order(store: FlakyStore) -> None:
    """A handler hears what happens, in the order in which it happens."""
    seen: list[str] = []

    def listen(event: StepEvent) -> None:
        seen.append(f"{event.type} {event.step_id} {event.attempt}")

    attempts = iter([OSError("first"), None])

    async def flaky() -> None:
        if error := next(attempts):
            raise error

    async def fail() -> None:
        raise ValueError

    for _ in range(2):
        runner = Runner(store, "run", on_event=listen)
        await runner.step("flaky", flaky, max_attempts=2)
        with pytest.raises(StepFailed):
            await runner.step("fail", fail)
    assert seen == [
        "step:start flaky 1",
        "step:retry flaky 1",
        "step:start flaky 2",
        "step:success flaky 2",
        "step:start fail 1",
        "step:failure fail 1",
        "step:replay flaky 2",
        "step:replay fail 1",
    ]


async def test_events_carry_what_happened(store: FlakyStore) -> None:
    """A retry tells its error and its delay, an outcome its record; an async handler is awaited."""
    seen: list[StepEvent] = []

    async def listen(event: StepEvent) -> None:
        await asyncio.sleep(0)
        seen.append(event)

    async def fail() -> None:
        raise OSError("no")

    with pytest.raises(StepFailed):
        await Runner(store, "run", on_event=listen, max_attempts=2, retry_delay=0.001).step("fail", fail, name="Fail")
    start, retry, _, failure = seen
    assert (start.name, start.record, start.error, start.delay) == ("Fail", None, None, None)
    assert (repr(retry.error), retry.delay) == ("OSError('no')", 0.001)
    assert failure.record == (await store.list("run"))[0]


async def test_a_handler_that_raises_is_logged_and_harmless(store: FlakyStore, caplog: pytest.LogCaptureFixture) -> None:
    """Observing a run can't break it."""

    def listen(event: StepEvent) -> None:
        raise RuntimeError("broken handler")

    assert await Runner(store, "run", on_event=listen).step("a", lambda: 1) == 1
    assert "broken handler" in caplog.text


async def test_a_handler_that_awaits_something_cancelled_is_harmless(store: FlakyStore, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody cancelled the step; a cancellation that is meant for the step still gets there."""
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    gone.cancel()
    entered = asyncio.Event()

    async def listen(event: StepEvent) -> None:
        if event.step_id == "a":
            await gone
        entered.set()
        await asyncio.Event().wait()

    runner = Runner(store, "run", on_event=listen)
    assert await runner.step("a", lambda: 1) == 1
    assert "on_event raised for step:success" in caplog.text
    step = asyncio.create_task(runner.step("b", lambda: 1))
    await entered.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert [record.step_id for record in await store.list("run")] == ["a"]


def _bad(**options: Any) -> Any:
    return functools.partial(Runner, MemoryStore(), "run", **options)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Runner(MemoryStore(), ""), ValueError, "run_id ''"),
        (lambda: Runner(MemoryStore(), "a\nb"), ValueError, "control character"),
        (lambda: Runner(MemoryStore(), "x" * 513), ValueError, "513 bytes"),
        (lambda: Runner(MemoryStore(), 7), TypeError, "run_id must be a str, not 7"),  # type: ignore[arg-type]
        (lambda: Runner(MemoryStore(), "$flow"), ValueError, "starts with '\\$'"),
        (lambda: Runner("file:./runs", "run"), TypeError, "open_store"),  # type: ignore[arg-type]
        (_bad(max_attempts=0), ValueError, "must be at least 1, .*not 0"),
        (_bad(max_attempts=True), TypeError, "not True"),
        (_bad(max_attempts=2.0), TypeError, r"not 2\.0"),
        (_bad(retry_delay=-1), ValueError, "not -1"),
        (_bad(retry_delay=float("nan")), ValueError, "not nan"),
        (_bad(retry_delay="1s"), TypeError, "not '1s'"),
        (_bad(retry_on="OSError"), TypeError, "not 'OSError'"),
        (_bad(retry_on=(OSError, int)), TypeError, "an exception type"),
        (_bad(retry_on=asyncio.sleep), TypeError, "retry_on must be .* a plain function"),
        (_bad(retry_delay=asyncio.sleep), TypeError, "retry_delay must be .* a plain function"),
        (_bad(on_event=1), TypeError, "on_event"),
        (_bad(on_drift="ignore"), ValueError, "'ignore'"),
        (_bad(lock_wait=-1), ValueError, "lock_wait"),
        (_bad(lock_wait=True), TypeError, "not True"),
        (_bad(store_timeout=0), ValueError, "store_timeout"),
    ],
)
def test_bad_options_are_refused(make: Callable[[], object], error: type[Exception], match: str) -> None:
    """Each wrong argument of a runner gets one clear error."""
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda r, f: r.step("", f), ValueError, "step_id ''"),
        (lambda r, f: r.step("$cancel", f), ValueError, "reserved for the library"),
        (lambda r, f: r.step("a\x00", f), ValueError, "control character"),
        (lambda r, f: r.step("a\ud800", f), ValueError, "surrogate"),
        (lambda r, f: r.step(["a"], f), TypeError, r"step_id must be a str, not \['a'\]"),
        (lambda r, f: r.step("a", "f"), TypeError, "must be a function, not 'f'"),
        (lambda r, f: r.step("a", None), TypeError, "must be a function, not None"),
        (lambda r, f: r.step("a", f, max_attempts=0), ValueError, "not 0"),
        (lambda r, f: r.step("a", f, retry_delay=float("inf")), ValueError, "not inf"),
        (lambda r, f: r.step("a", f, retries=3), TypeError, "unknown option 'retries'"),
        (lambda r, f: r.step("a", f, max_attempt=3), TypeError, "did you mean 'max_attempts'"),
        (lambda r, f: r.step("a", f, timeout=1), TypeError, "plain function"),
        (lambda r, f: r.step("a", asyncio.sleep, 0, timeout=-1), ValueError, "timeout"),
        (lambda r, f: r.step("a", f, returns="int"), TypeError, "'int'"),
        (lambda r, f: r.step("a", f, returns=complex), TypeError, "complex"),
    ],
)
async def test_bad_steps_are_refused_before_anything_runs(
    store: FlakyStore, effects: Effects, call: Any, error: type[Exception], match: str
) -> None:
    """Each wrong argument of a step gets one clear error; nothing runs and nothing is recorded."""
    runner = Runner(store, "run")
    with pytest.raises(error, match=match):
        await call(runner, effects.happen)
    assert not effects
    assert await runner.history() == ()
    assert await runner.step("a", effects.happen) == "effect"


async def test_a_coroutine_instead_of_a_function_is_refused(store: FlakyStore, effects: Effects) -> None:
    """`step(id, fn())` is the usual slip."""
    slip = effects.happen_async()
    with pytest.raises(TypeError, match="pass the function, not its result"):
        await Runner(store, "run").step("a", slip)  # type: ignore[call-overload]
    slip.close()


async def test_a_log_of_100_000_steps_is_looked_up_not_searched(store: FlakyStore, effects: Effects) -> None:
    """The log is read once, whatever its length."""
    for number in range(1000):
        await store.append(StepRecord(run_id="run", step_id=f"s{number}", result=b'"x"'))
    reads = 0
    real = store.list

    async def counted(run_id: str) -> Any:
        nonlocal reads
        reads += 1
        return await real(run_id)

    store.list = counted  # type: ignore[method-assign]
    runner = Runner(store, "run")
    await asyncio.gather(*(runner.step(f"s{number}", effects.happen) for number in range(1000)))
    assert (reads, dict(effects)) == (1, {})


async def test_a_reset_that_fails_half_way_leaves_no_memory_of_what_is_gone(store: FlakyStore, effects: Effects) -> None:
    """The runner reads the log again: what the store still holds is replayed, what it lost runs anew."""
    runner = Runner(store, "run")
    await runner.step("a", effects.happen)
    real = store.clear

    async def fail(run_id: str) -> None:
        await real(run_id)
        raise OSError("away")

    store.clear = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="away"):
        await runner.reset()
    await runner.step("a", effects.happen)
    assert effects["effect"] == 2
