"""A store's failure is never the step's: what happened is appended until the store takes it, or told loudly."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from inspect import CORO_CLOSED, getcoroutinestate
from typing import Any

import pytest

from durable_core import CorruptLog, MemoryStore, ResultNotRecorded, Runner, StepEvent, StepFailed, StepRecord
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore


class Away(Exception):
    """The store can't be reached."""


class Outage:
    """Raises for the next `times` appends."""

    def __init__(self, times: float, error: type[BaseException] = Away) -> None:
        self.times = times
        self.error = error
        self.seen: list[StepRecord] = []

    def __call__(self, record: StepRecord) -> None:
        self.seen.append(record)
        if self.times > 0:
            self.times -= 1
            raise self.error


async def test_a_failed_append_never_runs_the_function_again(store: FlakyStore, effects: Effects) -> None:
    """The append is tried again, with the same record, until the store is back."""
    outage = store.before = Outage(2)
    assert await Runner(store, "run", max_attempts=5).step("a", effects.happen) == "effect"
    assert effects["effect"] == 1
    assert len({record.id for record in outage.seen}) == 1
    assert len(await store.list("run")) == 1


async def test_a_lost_acknowledgement_is_recognised(store: FlakyStore, effects: Effects) -> None:
    """The record was written, its answer lost: the second append finds it there as its own."""
    store.after = Outage(1)
    assert await Runner(store, "run").step("a", effects.happen) == "effect"
    assert effects["effect"] == 1
    assert [record.revision for record in await store.list("run")] == [0]


async def test_when_the_store_stays_away_the_result_is_not_lost(store: FlakyStore, effects: Effects) -> None:
    """`ResultNotRecorded` carries the value; a step after it appends it first, or raises again."""
    store.before = outage = Outage(float("inf"))
    runner = Runner(store, "run", store_timeout=0.01)
    with pytest.raises(ResultNotRecorded, match="'a'") as lost:
        await runner.step("a", effects.happen, "first")
    assert lost.value.result == "first"
    assert isinstance(lost.value.__cause__, Away)
    with pytest.raises(ResultNotRecorded, match="'a'"):
        await runner.step("b", effects.happen, "second")
    with pytest.raises(ResultNotRecorded, match="'a'"):
        await runner.step("a", effects.happen, "first")
    assert effects == {"first": 1}
    outage.times = 0
    assert await runner.step("b", effects.happen, "second") == "second"
    assert await runner.step("a", effects.happen, "first") == "first"
    assert effects == {"first": 1, "second": 1}
    assert [record.step_id for record in await store.list("run")] == ["a", "b"]


async def test_what_was_kept_is_appended_once(store: FlakyStore, effects: Effects) -> None:
    """Once the store has it, steps go on as ever."""
    store.before = outage = Outage(float("inf"))
    runner = Runner(store, "run", store_timeout=0.01)
    with pytest.raises(ResultNotRecorded):
        await runner.step("a", effects.happen, "first")
    outage.times = 0
    outage.seen.clear()
    for name in "bcd":
        await runner.step(name, effects.happen, name)
    assert [record.step_id for record in outage.seen] == ["a", "b", "c", "d"]


async def test_a_failure_that_was_not_recorded_is_kept_too(store: FlakyStore) -> None:
    """A failed step's outcome is an outcome."""
    store.before = outage = Outage(float("inf"))
    runner = Runner(store, "run", store_timeout=0.01)

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ResultNotRecorded) as lost:
        await runner.step("a", fail)
    assert lost.value.record.status == "failure"
    outage.times = 0
    with pytest.raises(StepFailed, match="ValueError: no"):
        await runner.step("a", fail)


def together(count: int, effects: Effects) -> Callable[[str], Awaitable[str]]:
    """Return a function for so many steps that all begin before one of them ends: a lost outcome lets no other step begin."""
    begun = asyncio.Barrier(count)

    async def happen(name: str) -> str:
        await begun.wait()
        return effects.happen(name)

    return happen


async def test_outcomes_kept_by_concurrent_steps_are_all_appended(store: FlakyStore, effects: Effects) -> None:
    """Several steps may end while the store is away."""
    store.before = outage = Outage(float("inf"))
    runner = Runner(store, "run", store_timeout=0.01)
    happen = together(3, effects)
    results = await asyncio.gather(*(runner.step(name, happen, name) for name in "abc"), return_exceptions=True)
    assert [type(result) for result in results] == [ResultNotRecorded] * 3
    outage.times = 0
    assert await runner.step("d", effects.happen, "d") == "d"
    assert {record.step_id for record in await store.list("run")} == set("abcd")
    assert set(effects.values()) == {1}


async def test_leaving_the_runner_appends_what_was_kept(store: FlakyStore, effects: Effects) -> None:
    """The last step's outcome would else be lost with the process, though the store is back."""
    store.before = outage = Outage(float("inf"))
    async with Runner(store, "run", store_timeout=0.01) as runner:
        with pytest.raises(ResultNotRecorded):
            await runner.step("last", effects.happen)
        outage.times = 0
    async with Runner(store, "run") as runner:
        assert await runner.step("last", effects.happen) == "effect"
    assert effects == {"effect": 1}


async def test_leaving_the_runner_while_the_store_is_away_tells_what_is_lost(
    store: FlakyStore, effects: Effects, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is given back all the same, and the runner still has the outcome."""
    store.before = outage = Outage(float("inf"))
    left = Runner(store, "run", store_timeout=0.01)
    async with left:
        with pytest.raises(ResultNotRecorded):
            await left.step("last", effects.happen)
        caplog.clear()
    assert "step 'last' of run 'run' ran (success), but the store could not record its outcome" in caplog.text
    outage.times = 0
    async with left:
        assert await left.step("last", effects.happen) == "effect"
    assert effects == {"effect": 1}


async def test_reset_drops_what_was_kept(store: FlakyStore, effects: Effects) -> None:
    """A cleared run begins anew."""
    store.before = outage = Outage(float("inf"))
    runner = Runner(store, "run", store_timeout=0.01)
    with pytest.raises(ResultNotRecorded):
        await runner.step("a", effects.happen)
    outage.times = 0
    await runner.reset()
    await runner.step("a", effects.happen)
    assert effects["effect"] == 2


@pytest.mark.parametrize("seconds", [0.5, 3, 30])
async def test_a_store_is_tried_until_the_end_of_store_timeout(store: FlakyStore, effects: Effects, seconds: float) -> None:
    """The last try comes near the end, however long the pauses have become."""
    clock, tries = FakeClock(), list[float]()

    def fail(record: StepRecord) -> None:
        tries.append(clock.monotonic())
        raise Away

    store.before = fail
    began = clock.monotonic()
    with pytest.raises(ResultNotRecorded):
        await Runner(store, "run", store_timeout=seconds, clock=clock).step("a", effects.happen)
    assert seconds - 0.11 < tries[-1] - began <= seconds
    assert len(tries) < 30


async def test_of_what_was_kept_each_is_offered_as_a_runner_is_left(store: FlakyStore, effects: Effects) -> None:
    """One that the store still refuses holds up no other."""

    def refuse(record: StepRecord) -> None:
        if record.step_id == "big":
            raise Away

    store.before, happen = Outage(float("inf")), together(2, effects)
    async with Runner(store, "run", store_timeout=0.01) as runner:
        await asyncio.gather(*(runner.step(name, happen, name) for name in ("big", "small")), return_exceptions=True)
        store.before = refuse
    assert [record.step_id for record in await store.list("run")] == ["small"]


async def test_leaving_a_runner_waits_for_a_store_that_hangs_once(store: FlakyStore, effects: Effects) -> None:
    """However much was kept: all of it is offered together."""
    hanging, names = asyncio.Event(), [f"s{number}" for number in range(50)]

    async def hang(record: StepRecord) -> None:
        hanging.set()
        await asyncio.Event().wait()

    store.before, happen = Outage(float("inf")), together(len(names), effects)
    async with Runner(store, "run", store_timeout=0.2) as runner:
        await asyncio.gather(*(runner.step(name, happen, name) for name in names), return_exceptions=True)
        store.before = hang
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert hanging.is_set()


async def test_a_store_that_hangs_is_given_up(effects: Effects) -> None:
    """`store_timeout` holds for a store that never answers, too."""

    class Hanging(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(ResultNotRecorded):
        await Runner(Hanging(), "run", store_timeout=0.01).step("a", effects.happen)
    assert effects["effect"] == 1


async def test_what_the_store_said_before_it_hung_is_told(effects: Effects) -> None:
    """It says more than that the time is over."""

    class Hanging(MemoryStore):
        appends = 0

        async def append(self, record: StepRecord) -> StepRecord:
            self.appends += 1
            if self.appends > 1:
                await asyncio.Event().wait()
            raise Away

    with pytest.raises(ResultNotRecorded) as lost:
        await Runner(Hanging(), "run", store_timeout=0.2).step("a", effects.happen)
    assert isinstance(lost.value.__cause__, Away)
    assert isinstance(lost.value.__cause__.__cause__, TimeoutError)


async def test_a_long_time_limit_ends_too(effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its timer, which stays in the loop for a while only, is set again until it is over."""
    monkeypatch.setattr("durable_core._system.waits._LONGEST", 0.01)
    answer = asyncio.Event()

    class Hanging(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            await answer.wait()
            raise Away

    step = asyncio.create_task(Runner(Hanging(), "run", store_timeout=0.05).step("a", effects.happen))
    done, _ = await asyncio.wait([step], timeout=10)
    answer.set()
    assert done
    with pytest.raises(ResultNotRecorded):
        await step


async def test_the_shorter_of_two_time_limits_ends_first(effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the longer one began before it."""
    monkeypatch.setattr("durable_core._system.waits._LONGEST", 60)
    hanging = asyncio.Event()

    class Hanging(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            hanging.set()
            await asyncio.Event().wait()
            raise AssertionError

    patient = asyncio.create_task(Runner(Hanging(), "run").step("a", asyncio.sleep, 0, returns=None))
    await hanging.wait()
    with pytest.raises(ResultNotRecorded):
        await asyncio.wait_for(Runner(Hanging(), "run", store_timeout=0.01).step("a", effects.happen), 10)
    assert not patient.done()
    monkeypatch.setattr("durable_core._log.runlog._CANCELLED_WITHIN", 0.01)
    patient.cancel()
    await asyncio.wait([patient])


async def test_a_cancellation_that_comes_with_the_end_of_the_time_counts(store: FlakyStore, effects: Effects) -> None:
    """A store that takes its time to give up meets both, and the caller's own is not lost."""
    giving_up = asyncio.Event()

    async def hang(record: StepRecord) -> None:
        store.before = None
        try:
            await asyncio.Event().wait()
        finally:
            giving_up.set()
            await asyncio.Event().wait()

    store.before = hang
    step = asyncio.create_task(Runner(store, "run", store_timeout=0.01).step("a", effects.happen))
    await giving_up.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert [record.status for record in await store.list("run")] == ["success"]


async def test_a_store_that_makes_steps_of_its_own_is_given_up(effects: Effects) -> None:
    """An append within an append has a time limit of its own, and takes nothing from that of the other."""
    audit = Runner(MemoryStore(), "audit")

    class Audited(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            await audit.step(record.step_id, effects.happen, "audit")
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(ResultNotRecorded):
        await Runner(Audited(), "run", store_timeout=0.05).step("a", effects.happen)
    assert effects == {"audit": 1, "effect": 1}


@pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 14), reason="these keep the frames that a finished coroutine was called from"
)
async def test_a_failed_step_is_freed_with_its_error(store: FlakyStore) -> None:
    """No cycle keeps the exception, and all that its frames hold, until the garbage is collected."""
    raised: list[weakref.ref[Exception]] = []

    async def failing() -> None:
        error = Away()
        raised.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.disable()
    try:
        with pytest.raises(StepFailed):
            await Runner(store, "run").step("a", failing)
        assert raised[0]() is None
    finally:
        gc.enable()


async def test_a_store_that_cancels_itself_has_failed(store: FlakyStore, effects: Effects) -> None:
    """A driver's own `CancelledError` is none that was meant for the step: the append is tried again."""
    store.before = Outage(1, asyncio.CancelledError)
    assert await Runner(store, "run").step("a", effects.happen) == "effect"
    store.before = Outage(float("inf"), asyncio.CancelledError)
    with pytest.raises(ResultNotRecorded) as lost:
        await Runner(store, "run", store_timeout=0.01).step("b", effects.happen, "b")
    assert "nobody cancelled it" in str(lost.value.__cause__)
    assert effects == {"effect": 1, "b": 1}


async def test_a_damaged_log_is_not_asked_again(store: FlakyStore) -> None:
    """Waiting doesn't mend it."""
    calls = 0

    def damaged(record: StepRecord) -> None:
        nonlocal calls
        calls += 1
        raise CorruptLog("line 3")

    store.before = damaged
    with pytest.raises(ResultNotRecorded) as lost:
        await Runner(store, "run").step("a", lambda: 1)
    assert isinstance(lost.value.__cause__, CorruptLog)
    assert calls == 1


async def test_a_log_that_cant_be_read_runs_nothing(effects: Effects) -> None:
    """Without the log nobody knows what has run."""

    class Unreadable(MemoryStore):
        async def list(self, run_id: str) -> Any:
            raise Away

    runner = Runner(Unreadable(), "run")
    with pytest.raises(Away):
        await runner.step("a", effects.happen)
    assert not effects


async def test_an_outcome_that_loses_to_an_outcome_is_dropped(store: FlakyStore, effects: Effects) -> None:
    """The slot's holder counts, for whoever asks."""

    async def rival(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="a", result=b'"rival"'))

    store.before = rival
    runner = Runner(store, "run")
    assert await runner.step("a", effects.happen) == "rival"
    assert await runner.step("a", effects.happen) == "rival"
    assert len(await store.list("run")) == 1


async def test_an_outcome_that_loses_to_a_failure_raises_it(store: FlakyStore, effects: Effects) -> None:
    """A recorded failure counts as much as a success."""
    other = MemoryStore()

    def fail() -> None:
        raise ValueError("rival")

    with pytest.raises(StepFailed):
        await Runner(other, "run").step("a", fail)
    (failure,) = await other.list("run")

    async def rival(record: StepRecord) -> None:
        store.before = None
        await store.append(failure)

    store.before = rival
    with pytest.raises(StepFailed, match="ValueError: rival"):
        await Runner(store, "run").step("a", effects.happen)


async def test_a_listener_hears_of_the_outcome_that_counts(store: FlakyStore) -> None:
    """A failure that lost to a success is none."""

    def fail() -> str:
        raise ValueError

    async def rival(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="a", result=b'"rival"'))

    seen: list[StepEvent] = []
    store.before = rival
    assert await Runner(store, "run", on_event=seen.append).step("a", fail) == "rival"
    assert [event.type for event in seen] == ["step:start", "step:success"]
    assert seen[1].record == (await store.list("run"))[0]


@pytest.mark.parametrize("status", ["started", "waiting", "reopened"])
async def test_an_outcome_that_loses_to_an_open_entry_goes_to_the_next_revision(
    store: FlakyStore, effects: Effects, status: Any
) -> None:
    """Its effect has happened, so it may not be dropped for something that decides nothing."""

    async def rival(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="a", status=status))

    store.before = rival
    assert await Runner(store, "run").step("a", effects.happen) == "effect"
    assert [(record.revision, record.status) for record in await store.list("run")] == [(0, status), (1, "success")]


async def test_cancellation_while_the_function_runs_records_nothing(store: FlakyStore) -> None:
    """The step starts again on the next run."""
    runner = Runner(store, "run")
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    step = asyncio.create_task(runner.step("a", wait))
    await started.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert await runner.history() == ()


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_cancellation_while_recording_records_first(store: FlakyStore, effects: Effects, moment: str) -> None:
    """Once the function has returned, its outcome is recorded, then the cancellation raised."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def pause(record: StepRecord) -> None:
        reached.set()
        await go.wait()

    setattr(store, moment, pause)
    step = asyncio.create_task(Runner(store, "run").step("a", effects.happen))
    await reached.wait()
    step.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert [record.status for record in await store.list("run")] == ["success"]
    assert effects["effect"] == 1


async def test_cancelling_twice_while_recording_still_records(store: FlakyStore, effects: Effects) -> None:
    """An impatient caller can't tear a hole either."""
    reached, go = asyncio.Event(), asyncio.Event()

    async def pause(record: StepRecord) -> None:
        reached.set()
        await go.wait()

    store.before = pause
    step = asyncio.create_task(Runner(store, "run").step("a", effects.happen))
    for _ in range(3):
        await reached.wait()
        reached.clear()
        step.cancel()
        await asyncio.sleep(0)
        reached.set()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert len(await store.list("run")) == 1


def go_away(store: FlakyStore) -> asyncio.Event:
    """Let each append fail, a moment after it began; the event tells that one did."""
    reached = asyncio.Event()

    async def fail(record: StepRecord) -> None:
        reached.set()
        await asyncio.sleep(0)
        raise Away

    store.before = fail
    return reached


async def test_a_cancelled_step_whose_store_is_away_keeps_its_outcome(
    store: FlakyStore, effects: Effects, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording gives up after a while, so that the program can end; the runner still has the outcome."""
    monkeypatch.setattr("durable_core._log.runlog._CANCELLED_WITHIN", 0.01)
    reached = go_away(store)
    runner = Runner(store, "run")
    step = asyncio.create_task(runner.step("a", effects.happen))
    await reached.wait()
    step.cancel()
    with caplog.at_level(logging.ERROR), pytest.raises(asyncio.CancelledError):
        await step
    assert "'a'" in caplog.text
    store.before = None
    assert await runner.step("a", effects.happen) == "effect"
    assert effects["effect"] == 1


async def test_a_cancelled_step_gives_the_store_five_seconds(store: FlakyStore, effects: Effects) -> None:
    """Not `store_timeout`, which a program that is told to end can't wait for."""
    clock = FakeClock()
    reached = go_away(store)
    step = asyncio.create_task(Runner(store, "run", clock=clock).step("a", effects.happen))
    await reached.wait()
    began = clock.monotonic()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert 2 < clock.monotonic() - began <= 5


async def test_a_timeout_around_a_step_is_a_timeout(store: FlakyStore) -> None:
    """`asyncio.timeout` in a flow works as everywhere."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Runner(store, "run").step("a", asyncio.Event().wait)


async def test_a_cancelled_thread_is_waited_for_and_recorded(store: FlakyStore, effects: Effects) -> None:
    """A thread can't be stopped, so its effect will happen: it is recorded before the cancellation is raised."""
    import threading

    started, go = threading.Event(), threading.Event()

    def work() -> str:
        started.set()
        go.wait()
        return effects.happen()

    runner = Runner(store, "run")
    step = asyncio.create_task(runner.step("a", work))
    await asyncio.to_thread(started.wait)
    step.cancel()
    await asyncio.sleep(0)
    assert not step.done()
    step.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert await runner.step("a", work) == "effect"
    assert effects["effect"] == 1


async def test_a_cancelled_function_that_waits_for_a_thread_does_not_begin(store: FlakyStore, effects: Effects) -> None:
    """What hasn't begun can be cancelled."""
    import threading

    busy, go = threading.Barrier(41), threading.Event()

    def occupy(number: int) -> None:
        busy.wait(30)
        go.wait()

    runner = Runner(store, "run")
    others = [asyncio.create_task(runner.step(f"busy-{number}", occupy, number)) for number in range(40)]
    await asyncio.to_thread(busy.wait, 30)
    step = asyncio.create_task(runner.step("a", effects.happen))
    await asyncio.sleep(0)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    go.set()
    await asyncio.gather(*others)
    assert not effects
    assert await runner.step("a", effects.happen) == "effect"


async def test_a_cancelled_thread_that_fails_is_not_retried(store: FlakyStore) -> None:
    """With attempts left nothing is recorded, as if the cancellation had come between two attempts."""
    import threading

    started, go = threading.Event(), threading.Event()
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        started.set()
        go.wait()
        raise OSError

    runner = Runner(store, "run")
    step = asyncio.create_task(runner.step("a", work, max_attempts=3))
    await asyncio.to_thread(started.wait)
    step.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert calls == 1
    assert await runner.history() == ()


async def test_a_cancelled_thread_that_returns_an_awaitable_begins_nothing_more(store: FlakyStore, effects: Effects) -> None:
    """What a lambda would have had awaited has not begun, and doesn't."""
    import threading

    started, go = threading.Event(), threading.Event()
    made: list[Coroutine[Any, Any, str]] = []

    def call() -> Any:
        started.set()
        go.wait()
        made.append(effects.happen_async())
        return made[0]

    runner = Runner(store, "run")
    step = asyncio.create_task(runner.step("a", call))
    await asyncio.to_thread(started.wait)
    step.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert getcoroutinestate(made[0]) == CORO_CLOSED
    assert not effects
    assert await runner.history() == ()


async def test_when_the_caller_of_a_shared_step_is_cancelled_another_takes_over(store: FlakyStore) -> None:
    """Sharing an execution doesn't mean sharing a cancellation."""
    runner = Runner(store, "run")
    calls: list[str] = []
    started, go = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        calls.append("call")
        started.set()
        await go.wait()
        return len(calls)

    first, second, third = (asyncio.create_task(runner.step("a", work)) for _ in range(3))
    await started.wait()
    started.clear()
    first.cancel()
    await started.wait()
    go.set()
    assert await asyncio.gather(second, third) == [2, 2]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_cancelling_a_follower_harms_nobody(store: FlakyStore, effects: Effects) -> None:
    """The one who runs the step doesn't notice."""
    runner = Runner(store, "run")
    started, go = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        started.set()
        await go.wait()
        return effects.happen()

    first = asyncio.create_task(runner.step("a", work))
    second = asyncio.create_task(runner.step("a", work))
    await started.wait()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    assert await first == "effect"


async def test_a_shared_step_whose_outcome_is_kept_is_not_run_again(store: FlakyStore, effects: Effects) -> None:
    """A second caller that waits for the first appends the outcome that the first had to keep."""
    outage = store.before = Outage(0)

    async def pay() -> str:
        outage.times = 1
        await asyncio.sleep(0)
        return effects.happen()

    runner = Runner(store, "run", store_timeout=0.01)
    steps = [runner.step("a", pay) for _ in range(2)]
    one, other = await asyncio.gather(*steps, return_exceptions=True)
    assert isinstance(one, ResultNotRecorded)
    assert other == "effect"
    assert effects["effect"] == 1


def test_an_outcome_is_recorded_while_the_loop_shuts_down(effects: Effects) -> None:
    """`asyncio.run` cancels all tasks at its end, also the one that records for a caller who was cancelled."""

    class Slow(MemoryStore):
        appending = 0

        async def append(self, record: StepRecord) -> StepRecord:
            self.appending += 1
            for _ in range(10):
                await asyncio.sleep(0)
            return await super().append(record)

    store = Slow()

    async def main() -> None:
        step = asyncio.create_task(Runner(store, "run").step("a", effects.happen_async))
        while store.appending < 1:
            await asyncio.sleep(0)
        step.cancel()
        while store.appending < 2:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert [record.status for record in asyncio.run(store.list("run"))] == ["success"]


def test_waiting_for_a_store_keeps_no_loop_alive(effects: Effects) -> None:
    """A program that starts a loop for each run doesn't collect loops."""

    class Slow(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            await asyncio.sleep(0)
            return await super().append(record)

    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        await Runner(Slow(), "run").step("a", effects.happen_async)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None


async def test_a_time_limit_that_the_store_answers_with_an_error_leaves_the_task_as_it_was() -> None:
    """A cancellation that stays counted would break every `asyncio.timeout` around it."""

    class Translating(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as cancelled:
                raise OSError("interrupted") from cancelled
            raise AssertionError

    with pytest.raises(ResultNotRecorded):
        await Runner(Translating(), "run", store_timeout=0.01).step("a", lambda: 1)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


def test_a_runner_on_a_second_loop_has_its_time_limit_too() -> None:
    """A store that hangs is given up after `store_timeout`, also when an earlier loop took the runner's timer with it."""

    class Hanging(MemoryStore):
        hangs = False

        async def append(self, record: StepRecord) -> StepRecord:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().append(record)

    async def step(step_id: str) -> None:
        await runner.step(step_id, effect)

    async def effect() -> int:
        return 1

    store = Hanging()
    runner = Runner(store, "run", store_timeout=0.05)
    asyncio.run(step("a"))
    store.hangs = True
    with pytest.raises(ResultNotRecorded):
        asyncio.run(asyncio.wait_for(step("b"), 10))
