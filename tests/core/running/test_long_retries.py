"""A retry with a long delay is recorded, and outlives the process."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durable_core import RunCancelled, Runner, RunSuspended, StepFailed, StepInterrupted, StepRecord, control, flow
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed

HOUR = timedelta(hours=1)


async def entries(store: FlakyStore, step_id: str = "pay") -> list[tuple[str, int, str | None]]:
    found = [record for record in await store.list("run") if record.step_id == step_id]
    return [(record.status, record.attempt, record.error and record.error.message) for record in found]


class Pays:
    """Fails so many times, each time with another message."""

    def __init__(self, effects: Effects, fails: int) -> None:
        self.effects = effects
        self.fails = fails

    async def __call__(self) -> str:
        self.effects.happen("pay")
        if self.effects["pay"] <= self.fails:
            raise ConnectionError(f"closed {self.effects['pay']}")
        return "paid"


async def test_attempts_are_counted_over_lives(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """Killed in the delay, the run goes on with the next attempt when that is due; the errors of all are in the log."""

    @flow(clock=clock)
    async def pays(runner: Runner) -> str:
        return await runner.step("pay", Pays(effects, 2), max_attempts=3, retry_delay=HOUR)

    def kill(record: StepRecord) -> None:
        if record.step_id == "pay" and record.status == "waiting":
            raise Killed

    begun = clock.now()
    for _ in range(2):
        store.after = kill
        with pytest.raises(Killed):
            await pays.run(store, run_id="run")
        store.after = None
    assert await pays.run(store, run_id="run") == "paid"
    assert await entries(store) == [("waiting", 1, "closed 1"), ("waiting", 2, "closed 2"), ("success", 3, None)]
    assert clock.now() - begun >= 2 * HOUR
    assert effects == {"pay": 3}


async def test_a_delay_longer_than_the_wait_limit_suspends_the_run(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """Until the next attempt is due."""

    @flow(clock=clock, wait_limit=5)
    async def pays(runner: Runner) -> str:
        return await runner.step("pay", Pays(effects, 1), max_attempts=2, retry_delay=HOUR)

    with pytest.raises(RunSuspended) as suspended:
        await pays.run(store, run_id="run")
    assert suspended.value.waiting_for == ("pay",)
    due = suspended.value.until
    assert due is not None
    with pytest.raises(RunSuspended):
        await pays.run(store, run_id="run")
    assert effects == {"pay": 1}
    clock.advance(3600)
    assert await pays.run(store, run_id="run") == "paid"


async def test_a_sibling_is_not_cut_short_by_a_delay(store: FlakyStore, effects: Effects) -> None:
    """The run is suspended once nothing else goes on; a step in its delay is nothing that goes on."""

    async def slow() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        effects.happen("slow")

    @flow(wait_limit=0)
    async def pays(runner: Runner) -> None:
        await asyncio.gather(
            runner.step("pay", Pays(effects, 1), max_attempts=2, retry_delay=HOUR),
            runner.sleep("nap", 60),
            runner.step("slow", slow),
        )

    with pytest.raises(RunSuspended) as suspended:
        await pays.run(store, run_id="run")
    assert set(suspended.value.waiting_for) == {"pay", "nap"}
    assert effects == {"pay": 1, "slow": 1}


async def test_a_recorded_attempt_beyond_todays_attempts_fails_with_its_error(
    store: FlakyStore, clock: FakeClock, effects: Effects
) -> None:
    """Nothing runs again."""
    attempts = [3]

    @flow(clock=clock, wait_limit=0)
    async def pays(runner: Runner) -> str:
        return await runner.step("pay", Pays(effects, 9), max_attempts=attempts[0], retry_delay=HOUR)

    with pytest.raises(RunSuspended):
        await pays.run(store, run_id="run")
    attempts[0] = 1
    with pytest.raises(StepFailed, match="closed 1"):
        await pays.run(store, run_id="run")
    assert await entries(store) == [("waiting", 1, "closed 1"), ("failure", 1, "closed 1")]
    assert effects == {"pay": 1}


async def test_two_callers_of_one_step_share_its_delay(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """One of them tries again, for both."""

    @flow(clock=clock)
    async def pays(runner: Runner) -> list[str]:
        pay = Pays(effects, 1)
        calls = [runner.step("pay", pay, max_attempts=2, retry_delay=HOUR) for _ in range(2)]
        return list(await asyncio.gather(*calls))

    assert await pays.run(store, run_id="run") == ["paid", "paid"]
    assert effects == {"pay": 2}


async def test_at_most_once_counts_what_raised(store: FlakyStore, clock: FakeClock, effects: Effects) -> None:
    """Short delays leave the error in the next intent, long ones in an entry of their own."""
    for run_id, delay, expected in (
        ("short", 0.5, [("started", 1, None), ("started", 2, "closed 1"), ("success", 2, None)]),
        ("long", 60, [("started", 1, None), ("waiting", 1, "closed 1"), ("started", 2, None), ("success", 2, None)]),
    ):
        effects.clear()
        async with Runner(store, run_id, clock=clock) as runner:
            await runner.step("pay", Pays(effects, 1), max_attempts=2, retry_delay=delay, at_most_once=True)
        found = [(record.status, record.attempt, record.error and record.error.message) for record in await store.list(run_id)]
        assert found == expected


async def test_a_restart_by_recover_gets_the_next_number_and_costs_no_attempt(
    store: FlakyStore, clock: FakeClock, effects: Effects
) -> None:
    """Only attempts that raised count against `max_attempts`."""
    options: Any = {"max_attempts": 2, "retry_delay": 60, "at_most_once": True, "recover": lambda: None}

    def kill(record: StepRecord) -> None:
        if record.status == "started":
            raise Killed

    for _ in range(3):
        store.after = kill
        with pytest.raises(Killed):
            async with Runner(store, "run", clock=clock) as runner:
                await runner.step("pay", Pays(effects, 1), **options)
        store.after = None
    async with Runner(store, "run", clock=clock) as runner:
        assert await runner.step("pay", Pays(effects, 1), **options) == "paid"
    assert [(status, attempt) for status, attempt, _ in await entries(store)] == [
        ("started", 1),
        ("started", 2),
        ("started", 3),
        ("started", 4),
        ("waiting", 4),
        ("started", 5),
        ("success", 5),
    ]


async def test_a_cancellation_is_noticed_in_a_delay(store: FlakyStore, effects: Effects) -> None:
    """In this process at once."""

    @flow
    async def pays(runner: Runner) -> str:
        return await runner.step("pay", Pays(effects, 9), max_attempts=9, retry_delay=HOUR)

    waits = asyncio.Event()

    def hear(record: StepRecord) -> None:
        if record.status == "waiting":
            waits.set()

    store.after = hear
    running = asyncio.create_task(pays.run(store, run_id="run"))
    await waits.wait()
    await control.cancel(store, "run")
    async with asyncio.timeout(5):
        with pytest.raises(StepFailed) as failed:
            await running
    assert failed.value.error.matches(RunCancelled)


async def test_what_undoes_waits_for_its_next_attempt_in_a_cancelled_run(
    store: FlakyStore, clock: FakeClock, effects: Effects
) -> None:
    """A refund is tried again, whatever the time."""

    @flow(clock=clock, timeout=HOUR)
    async def pays(runner: Runner) -> None:
        try:
            await runner.sleep("long", timedelta(days=1))
        except RunCancelled:
            await runner.step("pay", Pays(effects, 2), max_attempts=9, retry_delay=HOUR, when_cancelled=True)
            raise

    with pytest.raises(StepFailed) as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"pay": 3}


async def test_recover_is_asked_in_a_cancelled_run(store: FlakyStore, effects: Effects) -> None:
    """What it finds is returned, and the next step is told; without one the step itself is."""

    def kill(record: StepRecord) -> None:
        if record.step_id == "charge" and record.status == "success":
            raise Killed

    asked: list[str] = []

    def recover() -> Any:
        asked.append("bank")

    for recovers in (False, True):
        run_id = f"run-{recovers}"

        @flow
        async def pays(runner: Runner, recovers: bool = recovers) -> None:
            charge: Any = {"at_most_once": True, **({"recover": recover} if recovers else {})}
            await runner.step("charge", lambda: 1, **charge)

        store.before = kill
        with pytest.raises(Killed):
            await pays.run(store, run_id=run_id)
        store.before = None
        await control.cancel(store, run_id)
        with pytest.raises(StepFailed) as failed:
            await pays.run(store, run_id=run_id)
        assert failed.value.error.matches(RunCancelled)
        assert not failed.value.error.matches(StepInterrupted)
    assert asked == ["bank"]


async def test_a_cancellation_just_before_the_delay_begins_is_noticed_at_once(store: FlakyStore, effects: Effects) -> None:
    """Nobody listened yet when somebody in this process asked for it."""

    @flow
    async def pays(runner: Runner) -> str:
        return await runner.step("pay", Pays(effects, 1), max_attempts=2, retry_delay=HOUR)

    async def cancel(record: StepRecord) -> None:
        if record.status == "waiting":
            await control.cancel(store, "run")

    store.after = cancel
    async with asyncio.timeout(10):
        with pytest.raises(StepFailed) as failed:
            await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
