"""A step that fails: attempts, delays, and the same exception on every run."""

from __future__ import annotations

import asyncio
import pickle
from datetime import timedelta
from typing import Any

import pytest

from durable_core import MemoryStore, Runner, StepEvent, StepFailed, exponential
from tests.core.conftest import Effects, FlakyStore


class Declined(Exception):
    pass


class Flaky:
    """Fails as often as told, then returns the attempt's number."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.calls = 0
        self.failures = failures
        self.error = error or OSError("flaky")

    async def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.calls


async def test_default_is_one_attempt(store: FlakyStore) -> None:
    """Nothing is repeated unless asked for."""
    flaky = Flaky(1)
    with pytest.raises(StepFailed, match="OSError: flaky"):
        await Runner(store, "run").step("a", flaky)
    assert flaky.calls == 1


async def test_recorded_failure_raises_again_without_running(store: FlakyStore) -> None:
    """Replay raises an equal StepFailed: an `except` takes the same branch on every run."""
    flaky = Flaky(9, TimeoutError("slow"))
    with pytest.raises(StepFailed) as first:
        await Runner(store, "run").step("a", flaky)
    with pytest.raises(StepFailed) as again:
        await Runner(store, "run").step("a", flaky)
    assert first.value == again.value
    assert hash(first.value) == hash(again.value)
    assert str(first.value) == str(again.value)
    assert isinstance(first.value.__cause__, TimeoutError)
    for failed in (first.value, again.value):
        assert failed.error.matches(TimeoutError)
        assert failed.error.matches(OSError, ValueError)
        assert not failed.error.matches(ValueError)
        assert (failed.run_id, failed.step_id) == ("run", "a")
    assert flaky.calls == 1
    assert pickle.loads(pickle.dumps(again.value)) == first.value


async def test_failure_is_recorded_with_its_traceback(store: FlakyStore) -> None:
    """The log tells where it happened."""
    with pytest.raises(StepFailed):
        await Runner(store, "run").step("a", Flaky(1, Declined("card")))
    (record,) = await store.list("run")
    assert record.error
    assert record.error.type == f"{__name__}.Declined"
    assert record.error.message == "card"
    assert "in __call__" in record.error.traceback
    assert record.error.bases == ("Exception", "BaseException")


async def test_attempts_run_out(store: FlakyStore) -> None:
    """`max_attempts` counts all attempts; the record tells how many there were."""
    flaky = Flaky(9)
    with pytest.raises(StepFailed, match="after 3 attempts"):
        await Runner(store, "run", max_attempts=3).step("a", flaky)
    assert flaky.calls == 3
    assert (await store.list("run"))[0].attempt == 3


async def test_success_after_a_retry(store: FlakyStore) -> None:
    """Only the outcome is recorded, with the attempt that produced it."""
    assert await Runner(store, "run").step("a", Flaky(2), max_attempts=5) == 3
    (record,) = await store.list("run")
    assert (record.status, record.attempt) == ("success", 3)


async def test_step_options_override_the_runner(store: FlakyStore) -> None:
    """The runner's options are defaults."""
    runner = Runner(store, "run", max_attempts=3)
    flaky = Flaky(1)
    with pytest.raises(StepFailed):
        await runner.step("a", flaky, max_attempts=1)
    assert flaky.calls == 1


@pytest.mark.parametrize(
    ("retry_on", "calls"),
    [
        (OSError, 3),
        (ConnectionError, 1),
        ((ValueError, OSError), 3),
        (lambda error: "flaky" in str(error), 3),
        (lambda error: False, 1),
    ],
)
async def test_retry_on_chooses_what_is_worth_another_attempt(store: FlakyStore, retry_on: Any, calls: int) -> None:
    """Types or a predicate; what doesn't match fails at once."""
    flaky = Flaky(9)
    with pytest.raises(StepFailed):
        await Runner(store, "run", max_attempts=3, retry_on=retry_on).step("a", flaky)
    assert flaky.calls == calls


async def test_delays_between_attempts(store: FlakyStore) -> None:
    """A number, a timedelta, or a function of the attempt that failed."""
    for number, (delay, expected) in enumerate(
        [
            (0.001, [0.001, 0.001]),
            (timedelta(milliseconds=2), [0.002, 0.002]),
            (lambda attempt: attempt / 1000, [0.001, 0.002]),
            (exponential(0.001, factor=2), [0.001, 0.002]),
        ]
    ):
        seen: list[StepEvent] = []
        with pytest.raises(StepFailed):
            await Runner(store, f"run-{number}", max_attempts=3, retry_delay=delay, on_event=seen.append).step("a", Flaky(9))
        assert [event.delay for event in seen if event.type == "step:retry"] == expected


def test_exponential() -> None:
    """Grows by its factor up to its limit, whatever the attempt; jitter draws below that."""
    delay = exponential(0.5, limit=30)
    assert [delay(attempt) for attempt in (1, 2, 3, 7, 10_000)] == [0.5, 1, 2, 30, 30]
    jittered = [exponential(8, limit=8, jitter=True)(1) for _ in range(200)]
    assert all(0 <= seconds <= 8 for seconds in jittered)
    assert len(set(jittered)) > 100
    assert exponential(timedelta(seconds=1), limit=timedelta(seconds=3))(9) == 3
    with pytest.raises(ValueError, match=r"not 0\.5"):
        exponential(1, factor=0.5)


async def test_a_delay_function_that_misbehaves_loses_nothing(store: FlakyStore) -> None:
    """Its error is raised from the step's, and nothing recorded, so that the mended code tries again."""
    with pytest.raises(ValueError, match=r"retry_delay\(1\).*-5") as wrong:
        await Runner(store, "run", max_attempts=2, retry_delay=lambda attempt: -5).step("a", Flaky(1))
    assert isinstance(wrong.value.__cause__, OSError)
    assert await store.list("run") == ()


async def test_a_predicate_that_misbehaves_loses_nothing(store: FlakyStore) -> None:
    """Neither what it raised nor why it was asked is hidden, and nothing is recorded."""
    with pytest.raises(ZeroDivisionError) as wrong:
        await Runner(store, "run", max_attempts=2, retry_on=lambda error: 1 / 0).step("a", Flaky(1))
    assert isinstance(wrong.value.__cause__, OSError)
    assert await store.list("run") == ()


async def test_timeout_limits_what_is_awaited(store: FlakyStore) -> None:
    """An attempt that takes too long fails with TimeoutError and may be repeated."""
    calls = 0

    async def slow() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return calls

    assert await Runner(store, "run").step("a", slow, timeout=0.01, max_attempts=2) == 2
    with pytest.raises(StepFailed) as failed:
        await Runner(store, "run").step("b", lambda: asyncio.Event().wait(), timeout=timedelta(milliseconds=10))
    assert failed.value.error.matches(TimeoutError)


async def test_a_value_that_would_change_fails_and_is_not_retried(store: FlakyStore, effects: Effects) -> None:
    """The effect has happened: to run it again would do it twice."""

    async def values() -> dict[str, Any]:
        effects.happen()
        return {"items": [{"price": float("nan")}]}

    for _ in range(2):
        with pytest.raises(StepFailed, match=r"items.*price") as failed:
            await Runner(store, "run", max_attempts=5).step("a", values)
    assert failed.value.error.matches(TypeError)
    assert effects["effect"] == 1


async def test_a_type_that_cant_be_recorded_is_refused_before_the_effect(store: FlakyStore, effects: Effects) -> None:
    """The annotation is resolved before the function runs."""

    async def number() -> complex:
        effects.happen()
        return 1j

    with pytest.raises(TypeError, match="complex"):
        await Runner(store, "run").step("a", number)
    assert not effects


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("threaded", [False, True])
def test_what_ends_the_program_is_not_recorded(stop: type[BaseException], threaded: bool) -> None:
    """Ctrl-C in a step is a crash, not a failure: the next run starts the step again."""
    store = MemoryStore()

    def fail() -> None:
        raise stop

    async def fail_async() -> None:
        raise stop

    with pytest.raises(stop):
        asyncio.run(Runner(store, "run").step("a", fail if threaded else fail_async))
    assert asyncio.run(store.list("run")) == ()
