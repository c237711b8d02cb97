"""A step that may happen only once: its intent is durable before it starts, and a crash never leads to a second time."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    DurableError,
    MemoryStore,
    Recovered,
    RunCancelled,
    Runner,
    StepContext,
    StepDrift,
    StepEvent,
    StepFailed,
    StepInterrupted,
    StepRecord,
    control,
    current_step,
)
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed


async def entries(store: MemoryStore, run_id: str = "run") -> list[tuple[int, str]]:
    return [(record.revision, record.status) for record in await store.list(run_id)]


async def interrupted(store: FlakyStore, effects: Effects) -> None:
    """Leave a step that was started and has no outcome, as a crash in its function does."""
    started = asyncio.Event()

    async def hang() -> str:
        effects.happen()
        started.set()
        await asyncio.Event().wait()
        return "never"

    step = asyncio.create_task(Runner(store, "run").step("pay", hang, at_most_once=True))
    await started.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step


async def test_the_intent_is_recorded_before_the_function_starts(store: FlakyStore) -> None:
    """`started` is durable when the effect happens."""
    seen: list[tuple[int, str]] = []

    async def pay() -> str:
        seen.extend(await entries(store))
        return "paid"

    assert await Runner(store, "run").step("pay", pay, at_most_once=True) == "paid"
    assert seen == [(0, "started")]
    assert await entries(store) == [(0, "started"), (1, "success")]
    assert await Runner(store, "run").step("pay", pay, at_most_once=True) == "paid"


async def test_an_interrupted_step_is_not_run_again(store: FlakyStore, effects: Effects) -> None:
    """A run that finds `started` without an outcome is told so, as often as it asks."""
    await interrupted(store, effects)
    for _ in range(2):
        with pytest.raises(StepInterrupted, match=r"'pay'.*no outcome.*resolve or retry") as stopped:
            await Runner(store, "run").step("pay", effects.happen, at_most_once=True)
    assert stopped.value.record.status == "started"
    assert effects["effect"] == 1


async def test_the_default_is_one_attempt_whatever_the_runner_says(store: FlakyStore, effects: Effects) -> None:
    """`max_attempts` is not inherited: a failed payment may have happened."""

    def fail() -> None:
        effects.happen()
        raise OSError

    with pytest.raises(StepFailed):
        await Runner(store, "run", max_attempts=5).step("pay", fail, at_most_once=True)
    assert effects["effect"] == 1
    assert await entries(store) == [(0, "started"), (1, "failure")]


async def test_attempts_after_an_error_record_their_intent_each(store: FlakyStore) -> None:
    """More attempts mean after one that raised."""
    attempts = 0

    async def flaky() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError
        return attempts

    assert await Runner(store, "run").step("pay", flaky, at_most_once=True, max_attempts=3) == 3
    records = await store.list("run")
    assert [(r.revision, r.status, r.attempt) for r in records] == [
        (0, "started", 1),
        (1, "started", 2),
        (2, "started", 3),
        (3, "success", 3),
    ]


def broken(*_: object) -> Any:
    raise ZeroDivisionError("a rule that is wrong")


async def decline() -> str:
    raise ValueError("declined")


async def known_failure(store: MemoryStore) -> None:
    """See that the attempt which raised is told as what it was, by this run and the next."""
    assert await entries(store) == [(0, "started"), (1, "failure")]
    with pytest.raises(StepFailed, match="declined"):
        await Runner(store, "run").step("pay", decline, at_most_once=True, max_attempts=2)


@pytest.mark.parametrize("option", ["retry_on", "retry_delay"])
async def test_a_failure_is_recorded_where_the_retry_raises(store: FlakyStore, option: Any) -> None:
    """The attempt is known to have failed, whatever is wrong with the rules for another."""
    options: Any = {option: broken}
    with pytest.raises(ZeroDivisionError):
        await Runner(store, "run").step("pay", decline, at_most_once=True, max_attempts=2, **options)
    await known_failure(store)


async def test_a_failure_is_recorded_where_the_delay_is_cancelled(store: FlakyStore) -> None:
    """A program that stops between two attempts knows how the first one ended, and goes on with the second."""
    delayed = asyncio.Event()

    def hear(event: StepEvent) -> None:
        if event.type == "step:retry":
            delayed.set()

    runner = Runner(store, "run", on_event=hear)
    step = asyncio.create_task(runner.step("pay", decline, at_most_once=True, max_attempts=2, retry_delay=0.9))
    await delayed.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert await entries(store) == [(0, "started"), (1, "waiting")]
    with pytest.raises(StepFailed):
        await Runner(store, "run").step("pay", decline, at_most_once=True, max_attempts=2)
    assert await entries(store) == [(0, "started"), (1, "waiting"), (2, "started"), (3, "failure")]


async def test_a_failure_is_recorded_where_the_run_is_cancelled_meanwhile(store: FlakyStore) -> None:
    """What keeps the next attempt from beginning leaves no doubt about the one before."""

    async def cancel(event: StepEvent) -> None:
        if event.type == "step:retry":
            await control.cancel(store, "run")

    with pytest.raises(RunCancelled):
        await Runner(store, "run", on_event=cancel).step("pay", decline, at_most_once=True, max_attempts=2)
    assert [status for _, status in await entries(store)] == ["started", "success", "waiting"]


async def test_an_attempt_that_was_cancelled_while_it_ran_stays_interrupted(store: FlakyStore) -> None:
    """The failure of an earlier attempt says nothing of the last one."""
    running = asyncio.Event()
    errors = [ValueError("declined")]

    async def pay() -> None:
        if errors:
            raise errors.pop()
        running.set()
        await asyncio.Event().wait()

    step = asyncio.create_task(Runner(store, "run").step("pay", pay, at_most_once=True, max_attempts=2))
    await running.wait()
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert await entries(store) == [(0, "started"), (1, "started")]


async def test_recover_records_what_had_happened(store: FlakyStore, effects: Effects) -> None:
    """`Recovered(value)` is the outcome; the function isn't run."""
    await interrupted(store, effects)
    contexts: list[StepContext] = []

    async def look() -> Recovered[str]:
        contexts.append(current_step())
        return Recovered("paid")

    async with Runner(store, "run") as runner:
        assert await runner.step("pay", effects.happen, at_most_once=True, recover=look) == "paid"
    assert effects["effect"] == 1
    assert await entries(store) == [(0, "started"), (1, "success")]
    assert contexts[0].step_id == "pay"


async def test_an_intent_tells_the_arguments(store: FlakyStore) -> None:
    """What is set by hand for an interrupted step is the outcome of the call that was made."""

    async def pay(amount: int) -> str:
        raise Killed

    with pytest.raises(Killed):
        await Runner(store, "run").step("pay", pay, 90, at_most_once=True)
    await control.resolve(store, "run", "pay", "paid", reason="seen in the bank's log")
    assert await Runner(store, "run", on_drift="raise").step("pay", pay, 90, at_most_once=True) == "paid"
    with pytest.raises(StepDrift, match="other arguments"):
        await Runner(store, "run", on_drift="raise").step("pay", pay, 900, at_most_once=True)


async def test_what_recover_found_is_recorded_as_of_the_attempt_that_was_interrupted(store: FlakyStore) -> None:
    """Its number, its arguments, when it started, and that it was recovered."""
    attempts = 0

    async def pay(amount: int) -> str:
        nonlocal attempts
        attempts += 1
        raise OSError if attempts == 1 else Killed

    with pytest.raises(Killed):
        await Runner(store, "run").step("pay", pay, 90, at_most_once=True, max_attempts=2)
    seen: list[int] = []

    def look() -> Recovered[str]:
        seen.append(current_step().attempt)
        return Recovered("paid")

    async with Runner(store, "run") as runner:
        assert await runner.step("pay", pay, 90, at_most_once=True, recover=look) == "paid"
    *_, started, recovered = await store.list("run")
    assert (started.status, started.attempt, recovered.status, recovered.attempt) == ("started", 2, "success", 2)
    assert (recovered.started_at, recovered.note) == (started.started_at, {"recovered": True})
    assert seen == [2]
    assert await Runner(store, "run", on_drift="raise").step("pay", pay, 90, at_most_once=True) == "paid"


@pytest.mark.parametrize("found", [None, Recovered("paid")], ids=["nothing", "paid"])
async def test_a_caller_that_is_cancelled_while_a_thread_recovers_goes_no_further(
    store: FlakyStore, effects: Effects, found: Recovered[str] | None
) -> None:
    """The thread is waited for; the next run asks again."""
    await interrupted(store, effects)
    started, go = threading.Event(), threading.Event()

    def look() -> Recovered[str] | None:
        started.set()
        go.wait()
        return found

    async with Runner(store, "run") as runner:
        step = asyncio.create_task(runner.step("pay", effects.happen, at_most_once=True, recover=look))
        await asyncio.to_thread(started.wait)
        step.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await step
    assert effects["effect"] == 1
    assert await entries(store) == [(0, "started")]


async def test_nothing_is_recovered_before_it_started(store: FlakyStore) -> None:
    """A clock that was set back since then makes no record that ends before it begins."""
    clock = FakeClock()

    async def die() -> str:
        raise Killed

    with pytest.raises(Killed):
        await Runner(store, "run", clock=clock).step("pay", die, at_most_once=True)
    clock.jump(-3600)
    async with Runner(store, "run", clock=clock) as runner:
        assert await runner.step("pay", die, at_most_once=True, recover=lambda: Recovered("paid")) == "paid"
    assert (await store.list("run"))[-1].duration == timedelta(0)


async def test_recover_is_asked_in_a_run_that_was_cancelled(store: FlakyStore, effects: Effects) -> None:
    """What had happened is recorded and returned; the next step is told."""
    await interrupted(store, effects)
    await control.cancel(store, "run")
    async with Runner(store, "run") as runner:
        await runner.step("pay", effects.happen, at_most_once=True, recover=lambda: Recovered(effects.happen("look")))
        with pytest.raises(RunCancelled):
            await runner.step("more", effects.happen)
    assert effects == {"effect": 1, "look": 1}


async def test_recover_lets_the_step_start_again(store: FlakyStore, effects: Effects) -> None:
    """`None` means that it had not happened."""
    await interrupted(store, effects)
    async with Runner(store, "run") as runner:
        assert await runner.step("pay", effects.happen, at_most_once=True, recover=lambda: None) == "effect"
    assert await entries(store) == [(0, "started"), (1, "started"), (2, "success")]


async def test_recover_keeps_the_idempotency_key(store: FlakyStore) -> None:
    """The service is asked about the attempt that was interrupted, and called with the same key; reopening makes a new one."""
    keys: list[str] = []

    async def pay() -> None:
        keys.append(current_step().idempotency_key)
        raise OSError

    async def die() -> None:
        keys.append(current_step().idempotency_key)
        raise Killed

    def look() -> None:
        keys.append(current_step().idempotency_key)

    with pytest.raises(Killed):
        await Runner(store, "run").step("pay", die, at_most_once=True)
    async with Runner(store, "run") as runner:
        with pytest.raises(StepFailed):
            await runner.step("pay", pay, at_most_once=True, recover=look)
    assert len(keys) == 3
    assert len(set(keys)) == 1
    await control.retry(store, "run", "pay")
    async with Runner(store, "run") as runner:
        with pytest.raises(Killed):
            await runner.step("pay", die, at_most_once=True)
    async with Runner(store, "run") as runner:
        with pytest.raises(StepFailed):
            await runner.step("pay", pay, at_most_once=True, recover=look)
    assert len(set(keys[3:])) == 1
    assert keys[3] != keys[0]


async def test_recover_needs_the_lock(store: FlakyStore, effects: Effects) -> None:
    """Without it the step may be running elsewhere right now."""
    await interrupted(store, effects)
    with pytest.raises(StepInterrupted, match="async with"):
        await Runner(store, "run").step("pay", effects.happen, at_most_once=True, recover=lambda: None)
    assert effects["effect"] == 1


@pytest.mark.parametrize(("found", "match"), [("paid", r"Recovered\(value\)"), (Recovered(3), "expected|Expected|came back|str")])
async def test_recover_that_returns_nonsense_changes_nothing(store: FlakyStore, effects: Effects, found: Any, match: str) -> None:
    """The mended code asks again."""
    await interrupted(store, effects)
    async with Runner(store, "run") as runner:
        with pytest.raises(TypeError, match=match):
            await runner.step("pay", effects.happen, at_most_once=True, recover=lambda: found)
    assert await entries(store) == [(0, "started")]


async def test_recover_that_raises_changes_nothing(store: FlakyStore, effects: Effects) -> None:
    """Its error is raised; the next run asks again."""
    await interrupted(store, effects)

    def away() -> None:
        raise OSError("service away")

    async with Runner(store, "run") as runner:
        with pytest.raises(OSError, match="service away"):
            await runner.step("pay", effects.happen, at_most_once=True, recover=away)
    assert await entries(store) == [(0, "started")]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recover": lambda: None}, "at_most_once=True"),
        ({"at_most_once": 1}, "not 1"),
        ({"recover": 3, "at_most_once": True}, "not 3"),
    ],
)
async def test_bad_options(store: FlakyStore, effects: Effects, options: Any, match: str) -> None:
    """Each is told before anything runs."""
    with pytest.raises(TypeError, match=match):
        await Runner(store, "run").step("pay", effects.happen, **options)
    assert not effects


async def test_a_step_that_was_at_most_once_when_it_was_interrupted_stays_so(store: FlakyStore, effects: Effects) -> None:
    """Code that dropped the option meanwhile doesn't run it a second time."""
    await interrupted(store, effects)
    with pytest.raises(StepInterrupted):
        await Runner(store, "run").step("pay", effects.happen)
    assert effects["effect"] == 1


class Turns:
    """Lets the appends of two runners through one at a time, in the order that `script` says, then freely."""

    def __init__(self, script: tuple[int, ...]) -> None:
        self.script = [*script]
        self.changed = asyncio.Condition()

    async def take(self, who: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: not self.script or self.script[0] == who)
            if self.script:
                self.script.pop(0)
            self.changed.notify_all()

    async def give_up(self, who: int) -> None:
        """Let the other go on without `who`, who has ended."""
        async with self.changed:
            self.script = [turn for turn in self.script if turn != who]
            self.changed.notify_all()


def scripts(length: int) -> list[tuple[int, ...]]:
    from itertools import product

    return [*product((0, 1), repeat=length)]


@pytest.mark.parametrize("script", scripts(6), ids=lambda script: "".join(map(str, script)))
async def test_two_runners_without_the_lock_in_every_interleaving(effects: Effects, script: tuple[int, ...]) -> None:
    """The effect is there at most once, and an outcome that happened is never lost."""
    shared = MemoryStore()
    turns = Turns(script)

    class Scripted(MemoryStore):
        """Takes a turn before each append and each read."""

        def __init__(self, who: int) -> None:
            super().__init__()
            self.who = who

        async def append(self, record: StepRecord) -> StepRecord:
            await turns.take(self.who)
            return await shared.append(record)

        async def list(self, run_id: str) -> Any:
            await turns.take(self.who)
            return await shared.list(run_id)

        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            return await shared.get(run_id, step_id)

    async def pay(who: int) -> str:
        effects.happen()
        await asyncio.sleep(0)
        return "paid"

    async def run(who: int) -> object:
        try:
            return await Runner(Scripted(who), "run").step("pay", lambda: pay(who), at_most_once=True, returns=str)
        except DurableError as error:
            return error
        finally:
            await turns.give_up(who)

    results = await asyncio.gather(run(0), run(1))
    assert effects["effect"] == 1
    assert [record.status for record in await shared.list("run")] == ["started", "success"]
    assert "paid" in results
    assert all(result == "paid" or isinstance(result, StepInterrupted) for result in results)


async def test_an_intent_that_loses_to_an_outcome_runs_nothing(store: FlakyStore, effects: Effects) -> None:
    """The step has been decided meanwhile, by a runner whose code doesn't say at most once, or by hand."""

    async def rival(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="pay", result=b'"rival"'))

    store.before = rival
    assert await Runner(store, "run").step("pay", effects.happen, at_most_once=True) == "rival"
    assert not effects
    assert await entries(store) == [(0, "success")]


@pytest.mark.parametrize(("found", "happened"), [(None, 1), (Recovered("paid before"), 0)])
async def test_an_intent_that_loses_to_another_start_asks_recover(
    store: FlakyStore, effects: Effects, found: Any, happened: int
) -> None:
    """The last append of a process that lost the lock arrives after the log was read. The step isn't left to a person."""

    async def late(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="pay", status="started"))

    told: list[StepEvent] = []
    async with Runner(store, "run", on_event=told.append) as runner:
        await runner.step("first", lambda: None)
        told.clear()
        store.before = late
        result = await runner.step("pay", effects.happen, at_most_once=True, recover=lambda: found, returns=str)
    assert result == ("paid before" if found else "effect")
    assert effects["effect"] == happened
    ends = [["step:start", "step:stop"], ["step:start", "step:success"]][: 1 + happened]
    assert [event.type for event in told if event.step_id == "pay"] == [each for pair in ends for each in pair]
    starts = ["started"] * (1 + happened)
    assert [record.status for record in await store.list("run") if record.step_id == "pay"] == [*starts, "success"]


async def test_an_intent_that_loses_to_another_start_runs_nothing_without_recover(store: FlakyStore, effects: Effects) -> None:
    async def late(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="pay", status="started"))

    store.before = late
    async with Runner(store, "run") as runner:
        with pytest.raises(StepInterrupted, match="resolve or retry"):
            await runner.step("pay", effects.happen, at_most_once=True)
    assert not effects


@pytest.mark.parametrize("status", ["waiting", "reopened"])
async def test_an_intent_that_loses_to_another_kind_is_drift(store: FlakyStore, effects: Effects, status: Any) -> None:
    """Another runner asks people under the same id."""

    async def rival(record: StepRecord) -> None:
        store.before = None
        await store.append(StepRecord(run_id="run", step_id="pay", kind="approval", status=status))

    store.before = rival
    with pytest.raises(StepDrift, match="'approval'.*'step'"):
        await Runner(store, "run").step("pay", effects.happen, at_most_once=True)
    assert not effects


async def test_an_outcome_survives_being_reopened_meanwhile(store: FlakyStore, effects: Effects) -> None:
    """Somebody gave the step up while it was still at work: what it did is recorded after all, and counts."""
    started, go = asyncio.Event(), asyncio.Event()

    async def pay() -> str:
        started.set()
        await go.wait()
        return effects.happen()

    step = asyncio.create_task(Runner(store, "run").step("pay", pay, at_most_once=True))
    await started.wait()
    await control.retry(store, "run", "pay")
    go.set()
    assert await step == "effect"
    assert await entries(store) == [(0, "started"), (1, "reopened"), (2, "success")]
    assert await Runner(store, "run").step("pay", effects.happen, at_most_once=True) == "effect"
    assert effects["effect"] == 1


async def test_an_attempt_that_meets_its_own_reopening_starts_after_it(store: FlakyStore) -> None:
    """Somebody found the step interrupted between two attempts, and gave it another try."""
    keys: list[str] = []

    async def pay() -> str:
        keys.append(current_step().idempotency_key)
        if len(keys) == 1:
            await control.retry(store, "run", "pay")
            raise OSError
        return "paid"

    assert await Runner(store, "run").step("pay", pay, at_most_once=True, max_attempts=2) == "paid"
    assert await entries(store) == [(0, "started"), (1, "reopened"), (2, "started"), (3, "success")]
    assert len(set(keys)) == 2
