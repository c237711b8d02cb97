"""How a runner learns that its run was cancelled, on a store whose answers take their time."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from durable_core import CorruptLog, MemoryStore, RunCancelled, Runner, StepRecord
from durable_core.control import cancel
from durable_core.testing import FakeClock

pytestmark = pytest.mark.asyncio


class Slow(MemoryStore):
    """Answers a `get` as things were when it was asked, once it is let go."""

    poll_seconds = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.answer: Callable[[int], asyncio.Event | Exception | None] = lambda _: None

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        self.asked += 1
        answer = self.answer(self.asked)
        if isinstance(answer, Exception):
            raise answer
        found = await super().get(run_id, step_id)
        await asyncio.sleep(0) if answer is None else await answer.wait()
        return found


async def begun(store: Slow, clock: FakeClock | None = None) -> tuple[Runner, list[int]]:
    """Return a runner that has made a step, and what its steps note."""
    runner, ran = Runner(store, "run", store_timeout=0.05, clock=clock), [0]
    await runner.step("first", ran.append, 0, returns=None)
    ran.clear()
    return runner, ran


def step(runner: Runner, ran: list[int], number: int) -> asyncio.Task[None]:
    return asyncio.create_task(runner.step(f"step-{number}", ran.append, number, returns=None))


async def test_no_step_of_a_gather_starts_after_a_cancellation_in_this_process() -> None:
    """Also those that begin while the first of them is still asking the store."""
    store = Slow()
    runner, ran = await begun(store)
    await cancel(store, "run")
    outcomes = await asyncio.gather(*(step(runner, ran, number) for number in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RunCancelled] * 5
    assert ran == []


async def test_an_answer_that_was_overtaken_is_no_news() -> None:
    """Who asked before the run was cancelled, and hears of it after others did, does not undo what they know."""
    store, late, clock = Slow(), asyncio.Event(), FakeClock()
    runner, ran = await begun(store, clock)
    first = store.asked + 1
    store.answer = lambda asked: late if asked == first else None
    clock.advance(2)  # then it is time to look
    early = step(runner, ran, 1)
    while store.asked < first:
        await asyncio.sleep(0)
    await cancel(store, "run")
    with pytest.raises(RunCancelled):
        await step(runner, ran, 2)
    late.set()
    for task in (early, step(runner, ran, 3)):
        with pytest.raises(RunCancelled):
            await task
    assert ran == []


async def test_a_look_that_failed_is_made_again() -> None:
    """A store that is away, or a caller that gives up, uses up no announcement."""
    store = Slow()
    runner, ran = await begun(store)
    await cancel(store, "run")
    store.answer = lambda _: OSError("away")
    with pytest.raises(Exception, match="away"):
        await step(runner, ran, 1)
    store.answer = lambda _: asyncio.Event()
    given_up = step(runner, ran, 2)
    asked = store.asked
    while store.asked == asked:
        await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait((given_up,))
    store.answer = lambda _: None
    with pytest.raises(RunCancelled):
        await step(runner, ran, 3)
    assert ran == []


async def test_a_cancelled_run_that_was_cleared_begins_anew() -> None:
    """Also on the runner that was stopped, when it is entered again."""
    store = MemoryStore()
    runner, ran = Runner(store, "run"), list[int]()
    async with runner:
        await runner.step("first", ran.append, 1, returns=None)
        await cancel(store, "run")
        with pytest.raises(RunCancelled):
            await runner.step("second", ran.append, 2, returns=None)
    await store.clear("run")
    async with runner:
        await runner.step("second", ran.append, 2, returns=None)
    assert ran == [1, 2]


async def test_a_run_that_was_cancelled_before_it_is_read_starts_nothing() -> None:
    """What was read says so; no look is due so soon after a store that took its time."""
    clock, ran = FakeClock(), list[int]()

    class Unhurried(MemoryStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            clock.advance(1)
            return await super().list(run_id)

    store = Unhurried()
    await Runner(store, "run").step("first", ran.append, 1, returns=None)
    await cancel(store, "run")
    with pytest.raises(RunCancelled):
        await Runner(store, "run", clock=clock).step("second", ran.append, 2, returns=None)
    assert ran == [1]


async def test_a_store_that_took_long_to_read_is_looked_at_again_at_once() -> None:
    """Another process may have cancelled the run meanwhile, of which this one hears nothing by itself."""
    clock, ran = FakeClock(), list[int]()

    class Unhurried(MemoryStore):
        poll_seconds = 2.0

        async def list(self, run_id: str) -> Sequence[StepRecord]:
            clock.advance(20)
            return await super().list(run_id)

    store = Unhurried()
    async with Runner(store, "run", clock=clock) as runner:
        await store.append(StepRecord(run_id="run", step_id="$cancel", kind="flow"))
        with pytest.raises(RunCancelled):
            await runner.step("first", ran.append, 1, returns=None)
    assert ran == []


async def test_a_look_at_a_damaged_log_is_not_repeated() -> None:
    """Waiting doesn't mend it."""
    store, clock, ran = Slow(), FakeClock(), list[int]()
    runner = Runner(store, "run", clock=clock)
    await step(runner, ran, 1)
    asked = store.asked
    store.answer = lambda _: CorruptLog("line 3")
    clock.advance(2)
    with pytest.raises(CorruptLog):
        await step(runner, ran, 2)
    assert store.asked == asked + 1
    assert ran == [1]
