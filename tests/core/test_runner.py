"""Steps run once and return what was recorded ever after."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_core import (
    DurableError,
    MemoryStore,
    NestedStep,
    Runner,
    StepDrift,
    StepEvent,
    StepFailed,
    StepRecord,
    current_step,
)

from .conftest import Effects, FlakyStore


@dataclass
class Account:
    id: int
    opened: datetime


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


async def test_sync_functions_run_in_a_thread(store: FlakyStore) -> None:
    """A blocking function doesn't hold up the loop."""
    main = threading.get_ident()
    runner = Runner(store, "run")
    assert await runner.step("thread", threading.get_ident) != main

    async def ident() -> int:
        return threading.get_ident()

    assert await runner.step("loop", ident) == main


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


async def test_reset_inside_async_with_keeps_the_lock(store: FlakyStore, effects: Effects) -> None:
    """A runner that holds the lock clears under it."""
    async with Runner(store, "run") as runner:
        await runner.step("a", effects.happen)
        await runner.reset()
        await runner.step("a", effects.happen)
    assert effects["effect"] == 2


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


async def test_a_task_left_behind_by_a_step_may_start_steps(store: FlakyStore, effects: Effects) -> None:
    """Only while the outer function runs is a step nested."""
    runner = Runner(store, "run")
    go = asyncio.Event()
    tasks: list[asyncio.Task[str]] = []

    async def later() -> str:
        await go.wait()
        return await runner.step("later", effects.happen)

    async def spawn() -> None:
        tasks.append(asyncio.create_task(later()))

    await runner.step("spawn", spawn)
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
        (lambda: Runner("file:./runs", "run"), TypeError, "'file:./runs' has no 'append'"),  # type: ignore[arg-type]
        (_bad(max_attempts=0), ValueError, "starts at 1, not 0"),
        (_bad(max_attempts=True), TypeError, "not True"),
        (_bad(max_attempts=2.0), TypeError, r"not 2\.0"),
        (_bad(retry_delay=-1), ValueError, "not -1"),
        (_bad(retry_delay=float("nan")), ValueError, "not nan"),
        (_bad(retry_delay="1s"), TypeError, "not '1s'"),
        (_bad(retry_on="OSError"), TypeError, "not 'OSError'"),
        (_bad(retry_on=(OSError, int)), TypeError, "exception types"),
        (_bad(retry_on=asyncio.sleep), TypeError, "retry_on must be a plain function"),
        (_bad(retry_delay=asyncio.sleep), TypeError, "retry_delay must be a plain function"),
        (_bad(on_event=1), TypeError, "on_event"),
        (_bad(on_drift="ignore"), ValueError, "'ignore'"),
        (_bad(lock_wait=-1), ValueError, "lock_wait"),
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
        (lambda r, f: r.step("$cancel", f), ValueError, "library's own"),
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
