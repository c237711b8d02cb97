"""Rules of steps that stand alone: timeouts, delays, what is logged, and what a handler sets for a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tracemalloc
from contextvars import ContextVar

import pytest

from durable_core import MemoryStore, Runner, StepEvent, StepFailed, StepOptions, check_step_options, exponential, flow
from durable_core.testing import FakeClock


async def test_a_step_that_swallows_its_timeout_fails_all_the_same() -> None:
    """The time limit is a promise to the flow, not advice to the function."""

    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "late"

    store = MemoryStore()
    with pytest.raises(StepFailed) as failed:
        await Runner(store, "run").step("s", stubborn, timeout=0.01)
    assert failed.value.error.matches(TimeoutError)


async def test_a_delay_may_depend_on_the_error(effects: object) -> None:
    """Such as one that says itself when to come back."""
    clock, delays = FakeClock(), list[float]()

    class Busy(Exception):
        retry_after = 7

    def fail() -> None:
        raise Busy

    def delay(attempt: int, error: BaseException) -> float:
        assert isinstance(error, Busy)
        return error.retry_after * attempt

    def note(event: StepEvent) -> None:
        if event.delay is not None:
            delays.append(event.delay)

    runner = Runner(MemoryStore(), "run", max_attempts=3, retry_delay=delay, clock=clock, on_event=note)
    with pytest.raises(StepFailed):
        await runner.step("s", fail)
    assert delays == [7, 14]


def test_a_delay_of_an_attempt_with_a_default_is_given_the_attempt_alone() -> None:
    """`exponential` and older functions of one argument stay what they were."""
    assert exponential(1, limit=60)(3) == 4


def test_a_delay_costs_the_same_after_a_million_attempts() -> None:
    """No number grows with the attempts."""
    delay = exponential(0.05, limit=2)
    tracemalloc.start()
    try:
        assert delay(10_000_000) == 2
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


async def test_the_library_logs_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    """Retries and resumes at INFO, replays at DEBUG, with the ids as attributes."""
    caplog.set_level(logging.DEBUG, "durable_core")
    store, fails = MemoryStore(), [OSError("once")]

    def work() -> int:
        if fails:
            raise fails.pop()
        return 1

    async with Runner(store, "run") as runner:
        await runner.step("s", work, max_attempts=2)
    async with Runner(store, "run") as runner:
        await runner.step("s", work, max_attempts=2)
    told = [(r.levelname, getattr(r, "run_id", None), getattr(r, "step_id", None)) for r in caplog.records]
    assert told == [("INFO", "run", "s"), ("INFO", "run", None), ("DEBUG", "run", "s")]
    assert "once" in caplog.messages[0]


variable: ContextVar[str] = ContextVar("variable", default="unset")


async def test_what_a_handler_sets_holds_in_a_thread() -> None:
    """`step:start` is told in the step's own task, before its thread's context is copied."""

    def handler(event: StepEvent) -> None:
        if event.type == "step:start":
            variable.set(event.step_id)

    runner = Runner(MemoryStore(), "run", on_event=handler)
    assert await asyncio.gather(*(runner.step(f"s-{n}", variable.get) for n in range(3))) == ["s-0", "s-1", "s-2"]
    assert variable.get() == "unset"


async def test_recorded_steps_that_a_flow_never_asked_for_are_drift() -> None:
    """A step that was renamed would run anew, and its old outcome stand unused: that is told at the flow's end."""
    store = MemoryStore()
    name = "old"

    @flow
    async def job(runner: Runner) -> int:
        return await runner.step(name, lambda: 1)

    async with Runner(store, "run") as runner:
        await runner.step("old", lambda: 1)
    name = "new"
    with pytest.warns(UserWarning, match="'old'"):
        assert await job.run(store, run_id="run") == 1


def test_options_are_checked_before_a_step_runs() -> None:
    """Code that takes options for later steps refuses bad ones at once, as `step` would."""
    options = StepOptions(max_attempts=3, retry_delay=exponential(1), name="ask", at_most_once=True)
    assert check_step_options(options) is options
    for bad, kind in (
        ({"max_attempts": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"retries": 1}, TypeError),
        ({"name": 1}, TypeError),
        (3, TypeError),
    ):
        with pytest.raises(kind):
            check_step_options(bad)  # type: ignore[arg-type]


def test_a_scope_tells_what_its_ids_begin_with() -> None:
    """The prefix with a step's id in the scope is the id in the run."""
    runner = Runner(MemoryStore(), "run")
    assert runner.prefix == ""
    assert runner.scope("left").scope("part").prefix == "left/part/"
