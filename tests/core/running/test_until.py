"""A step that is asked again until it returns something true."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from durable_core import RunCancelled, Runner, RunSuspended, StepFailed, StepRecord, control, flow
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore


class Ready:
    """Says so in the given round; raises in the rounds that are named."""

    def __init__(self, effects: Effects, after: int, *raises: int) -> None:
        self.effects = effects
        self.after = after
        self.raises = raises

    async def __call__(self) -> str:
        self.effects.happen("round")
        if self.effects["round"] in self.raises:
            raise ConnectionError
        return "ready" if self.effects["round"] > self.after else ""


async def test_rounds_within_the_wait_limit_leave_no_entry(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """Only what it returned in the end is recorded, and replayed."""
    begun = clock.now()
    for _ in range(2):
        async with Runner(store, "run", clock=clock) as runner:
            assert await runner.until("ready", Ready(effects, 3), every=30) == "ready"
    assert effects == {"round": 4}
    assert timedelta(seconds=90) <= clock.now() - begun < timedelta(seconds=100)
    assert [record.status for record in await store.list("run")] == ["success"]


async def test_a_round_longer_than_the_wait_limit_suspends_the_run(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """With an entry that says when the next one is."""

    @flow(clock=clock, wait_limit=5)
    async def waits(runner: Runner) -> str:
        return await runner.until("ready", Ready(effects, 2), every=timedelta(hours=1), timeout=timedelta(hours=5))

    for _ in range(2):
        with pytest.raises(RunSuspended) as suspended:
            await waits.run(store, run_id="run")
        with pytest.raises(RunSuspended):
            await waits.run(store, run_id="run")
        assert suspended.value.until is not None
        clock.advance((suspended.value.until - clock.now()).total_seconds())
    assert await waits.run(store, run_id="run") == "ready"
    found = [(record.status, record.attempt) for record in await store.list("run") if record.step_id == "ready"]
    assert found == [("waiting", 1), ("waiting", 1), ("success", 1)]
    assert effects == {"round": 3}


@pytest.mark.parametrize("wait_limit", [None, 5])
async def test_its_time_is_counted_from_the_first_round(
    store: FlakyStore, clock: FakeClock, effects: Effects, wait_limit: float | None
) -> None:
    """Also over suspensions; then it is a failure that matches `TimeoutError`."""

    @flow(clock=clock, wait_limit=wait_limit)
    async def waits(runner: Runner) -> str:
        return await runner.until("ready", Ready(effects, 9), every=3600, timeout=2.5 * 3600)

    begun = clock.now()
    for _ in range(0 if wait_limit is None else 3):
        with pytest.raises(RunSuspended) as suspended:
            await waits.run(store, run_id="run")
        assert suspended.value.until is not None
        clock.advance((suspended.value.until - clock.now()).total_seconds())
    with pytest.raises(StepFailed) as failed:
        await waits.run(store, run_id="run")
    assert failed.value.error.matches(TimeoutError)
    assert effects == {"round": 4}
    assert timedelta(hours=2.5) <= clock.now() - begun < timedelta(hours=2.6)


async def test_a_check_that_raises_is_an_attempt(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """Rounds are none."""
    async with Runner(store, "run", clock=clock) as runner:
        assert await runner.until("ready", Ready(effects, 4, 2, 4), every=30, max_attempts=3, retry_delay=60) == "ready"
    found = [(record.status, record.attempt) for record in await store.list("run")]
    assert found == [("waiting", 1), ("waiting", 2), ("success", 3)]
    async with Runner(store, "other", clock=clock) as runner:
        effects.clear()
        with pytest.raises(StepFailed):
            await runner.until("ready", Ready(effects, 4, 2), every=30)


async def test_a_cancellation_is_noticed_between_rounds(store: FlakyStore, effects: Effects) -> None:
    """At once in this process."""
    asked = asyncio.Event()

    async def check() -> bool:
        asked.set()
        return False

    @flow
    async def waits(runner: Runner) -> bool:
        return await runner.until("ready", check, every=3600)

    running = asyncio.create_task(waits.run(store, run_id="run"))
    await asked.wait()
    await control.cancel(store, "run")
    async with asyncio.timeout(5):
        with pytest.raises(StepFailed) as failed:
            await running
    assert failed.value.error.matches(RunCancelled)


async def test_a_cancellation_that_comes_in_a_check_is_noticed_before_the_next_round(store: FlakyStore) -> None:
    """Nobody listened yet when it was asked for, and the store has no watch."""
    store.watch = None  # type: ignore[assignment,method-assign]

    async def check() -> bool:
        await control.cancel(store, "run")
        return False

    @flow
    async def waits(runner: Runner) -> bool:
        return await runner.until("ready", check, every=3600)

    async with asyncio.timeout(5):
        with pytest.raises(StepFailed) as failed:
            await waits.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)


async def test_a_wrong_round_is_refused(store: FlakyStore) -> None:
    """Before anything runs."""
    runner = Runner(store, "run")
    with pytest.raises(ValueError, match="every must be"):
        runner.until("ready", lambda: True, every=0)
    with pytest.raises(TypeError, match="returns=None"):
        runner.until("ready", lambda: True, every=1, returns=None)
    assert not list[StepRecord](await store.list("run"))


async def test_an_attempt_that_failed_does_not_put_the_end_off(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """All attempts have one time limit, and when that is over there is no other attempt."""
    begun = clock.now()
    async with Runner(store, "run", clock=clock) as runner:
        with pytest.raises(StepFailed) as failed:
            await runner.until(
                "ready", Ready(effects, 99, *range(1, 99, 2)), every=30, timeout=100, max_attempts=50, retry_delay=10
            )
    assert failed.value.error.matches(TimeoutError)
    assert timedelta(seconds=99) <= clock.now() - begun < timedelta(seconds=111)


async def test_an_attempt_in_a_later_life_has_the_same_end(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """It stands in the entry that waits for the next attempt, too."""

    @flow(clock=clock, wait_limit=0)
    async def waits(runner: Runner) -> str:
        return await runner.until(
            "ready", Ready(effects, 99, 1), every=3600, timeout=3600, max_attempts=2, retry_delay=timedelta(hours=2)
        )

    with pytest.raises(RunSuspended):
        await waits.run(store, run_id="run")
    clock.advance(2 * 3600)
    with pytest.raises(StepFailed, match="TimeoutError"):
        await waits.run(store, run_id="run")
