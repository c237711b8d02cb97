"""A runner in `async with` holds its run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from durable_core import DurableError, Lease, LockLost, MemoryStore, RunBusy, Runner, StepRecord
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore


async def test_a_second_runner_gets_run_busy(store: FlakyStore) -> None:
    """It is told who holds the run and since when; afterwards the run is free."""
    async with Runner(store, "run"):
        with pytest.raises(RunBusy, match=r"'run' is held by .* since 20") as busy:
            async with Runner(store, "run"):
                raise AssertionError
        assert busy.value.since is not None
        async with Runner(store, "other"):
            pass
    async with Runner(store, "run"):
        pass


async def test_lock_wait_waits(store: FlakyStore, effects: Effects) -> None:
    """The second runner enters once the first is gone, reads what that one recorded, and runs nothing of it again."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with Runner(store, "run") as runner:
            entered.set()
            await leave.wait()
            await runner.step("a", lambda: 1)

    async def second() -> int:
        async with Runner(store, "run", lock_wait=30) as runner:
            return await runner.step("a", lambda: len(effects.happen()))

    holder = asyncio.create_task(first())
    await entered.wait()
    waiter = asyncio.create_task(second())
    await asyncio.sleep(0)
    leave.set()
    assert await waiter == 1
    assert effects["effect"] == 0
    await holder


async def test_lock_wait_is_how_long_a_runner_waits(store: FlakyStore) -> None:
    """No longer, and then the run is still another's; once it is free, the runner may be entered after all."""
    clock = FakeClock()
    late = Runner(store, "run", lock_wait=3, clock=clock)
    async with Runner(store, "run"):
        with pytest.raises(RunBusy):
            async with late:
                raise AssertionError
    assert clock.monotonic() == pytest.approx(3)
    async with late:
        pass


async def test_lock_wait_ends(store: FlakyStore) -> None:
    """After `lock_wait` seconds RunBusy is raised."""
    async with Runner(store, "run"):
        with pytest.raises(RunBusy):
            async with Runner(store, "run", lock_wait=0.02):
                raise AssertionError


async def test_the_log_is_read_after_the_lock_is_held(store: FlakyStore, effects: Effects) -> None:
    """Entries of the last holder are seen even by a runner that was made before them."""
    late = Runner(store, "run")
    async with Runner(store, "run") as runner:
        await runner.step("a", effects.happen)
    async with late:
        await late.step("a", effects.happen)
    assert effects["effect"] == 1


async def test_the_lock_is_given_back_after_an_error(store: FlakyStore) -> None:
    """Neither an error in the block nor one while reading the log keeps the run held."""
    with pytest.raises(ZeroDivisionError):
        async with Runner(store, "run"):
            raise ZeroDivisionError
    real = store.list
    store.list = lambda run_id: (_ for _ in ()).throw(OSError("read"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="read"):
        async with Runner(store, "run"):
            raise AssertionError
    store.list = real  # type: ignore[method-assign]
    async with Runner(store, "run"):
        pass


async def test_a_runner_that_could_not_be_entered_starts_no_step(store: FlakyStore, effects: Effects) -> None:
    """It gave the lock back when the log could not be read."""
    real = store.list
    store.list = lambda run_id: (_ for _ in ()).throw(OSError("read"))  # type: ignore[method-assign]
    runner = Runner(store, "run")
    with pytest.raises(OSError, match="read"):
        async with runner:
            raise AssertionError
    store.list = real  # type: ignore[method-assign]
    with pytest.raises(LockLost):
        await runner.step("a", effects.happen)
    assert not effects


async def test_a_runner_that_was_left_starts_no_step(store: FlakyStore, effects: Effects) -> None:
    """Its lock is another's by now."""
    async with Runner(store, "run") as runner:
        await runner.step("a", effects.happen)
    with pytest.raises(LockLost, match="was closed"):
        await runner.step("b", effects.happen, "b")
    assert await runner.step("a", effects.happen) == "effect"
    assert effects == {"effect": 1}


async def test_a_runner_is_entered_once_at_a_time(store: FlakyStore) -> None:
    """It may be used again after it was left."""
    runner = Runner(store, "run")
    async with runner:
        with pytest.raises(DurableError, match="already in use"):
            async with runner:
                raise AssertionError
    async with runner:
        assert await runner.step("a", lambda: 1) == 1


async def test_leaving_waits_for_running_steps(store: FlakyStore, effects: Effects) -> None:
    """A sibling of what ended the block is inside a step: the lock is held until that is recorded."""
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        started.set()
        await go.wait()
        return effects.happen()

    sibling: asyncio.Task[str] | None = None

    async def flow() -> None:
        nonlocal sibling
        async with Runner(store, "run") as runner:
            sibling = asyncio.create_task(runner.step("slow", slow))
            await started.wait()
            raise ZeroDivisionError

    ending = asyncio.create_task(flow())
    await started.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(RunBusy):
        async with Runner(store, "run"):
            raise AssertionError
    go.set()
    with pytest.raises(ZeroDivisionError):
        await ending
    assert sibling
    assert await sibling == "effect"


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_exit_cancels_the_running_steps_and_waits_for_them(store: FlakyStore, times: int) -> None:
    """Nobody gets the run while a function still works on it, however often the exit is cancelled meanwhile."""
    order: list[str] = []
    started, go, thread_started, thread_go = asyncio.Event(), asyncio.Event(), threading.Event(), threading.Event()

    async def slow() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            order.append("cleaning up")
            while not go.is_set():
                with suppress(asyncio.CancelledError):
                    await go.wait()
            order.append("cleaned up")

    def in_thread() -> str:
        thread_started.set()
        thread_go.wait()
        return "recorded"

    async def flow() -> None:
        async with Runner(store, "run") as runner:
            siblings.append(asyncio.create_task(runner.step("slow", slow)))
            siblings.append(asyncio.create_task(runner.step("thread", in_thread)))
            await started.wait()
            await asyncio.to_thread(thread_started.wait)
            left.set()

    siblings: list[asyncio.Task[Any]] = []
    left = asyncio.Event()
    leaving = asyncio.create_task(flow())
    await left.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    for _ in range(times):
        leaving.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    assert order == ["cleaning up"]
    with pytest.raises(RunBusy):
        async with Runner(store, "run"):
            raise AssertionError
    go.set()
    thread_go.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    async with Runner(store, "run") as runner:
        assert [record.step_id for record in await runner.history()] == ["thread"]
    assert order == ["cleaning up", "cleaned up"]
    assert [type(outcome) for outcome in await asyncio.gather(*siblings, return_exceptions=True)] == [asyncio.CancelledError] * 2


@pytest.mark.parametrize("how", ["wait", "as_completed", "background"])
async def test_a_block_that_is_cancelled_cancels_the_steps_of_its_tasks(store: FlakyStore, how: str) -> None:
    """Those that it left to others, too: nobody waits for them, and what they would have done is not recorded."""
    started = asyncio.Event()
    steps: list[asyncio.Task[Any]] = []

    async def slow() -> None:
        started.set()
        await asyncio.Event().wait()

    async def flow() -> None:
        async with Runner(store, "run") as runner:
            steps.append(asyncio.create_task(runner.step("slow", slow)))
            if how == "wait":
                await asyncio.wait(steps)
            elif how == "as_completed":
                for step in asyncio.as_completed(steps):
                    await step
            await asyncio.Event().wait()

    running = asyncio.create_task(flow())
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 10)
    assert steps[0].cancelled()
    assert await store.list("run") == ()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
async def test_a_program_that_ends_in_the_block_cancels_its_steps(store: FlakyStore, stop: type[BaseException]) -> None:
    """Nobody who interrupts a program, or lets it exit, wants to wait for a step that hangs."""
    started = asyncio.Event()

    async def slow() -> None:
        started.set()
        await asyncio.Event().wait()

    runner = await Runner(store, "run").__aenter__()
    step = asyncio.create_task(runner.step("slow", slow))
    await started.wait()
    await asyncio.wait_for(runner.__aexit__(stop, stop(), None), 10)
    assert step.cancelled()


async def test_a_block_that_raises_lets_its_steps_end(store: FlakyStore, effects: Effects) -> None:
    """An error of the flow's own stops nothing that has begun."""
    started = asyncio.Event()

    async def slow() -> str:
        started.set()
        await asyncio.sleep(0)
        return effects.happen()

    async def flow() -> asyncio.Task[str]:
        async with Runner(store, "run") as runner:
            steps.append(asyncio.create_task(runner.step("slow", slow)))
            await started.wait()
            raise ValueError

    steps: list[asyncio.Task[str]] = []
    with pytest.raises(ValueError):
        await flow()
    assert await steps[0] == "effect"
    assert [record.status for record in await store.list("run")] == ["success"]


async def test_while_a_runner_is_left_no_step_starts(store: FlakyStore, effects: Effects) -> None:
    """Only those that run already are finished, under the lock."""
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        started.set()
        await go.wait()
        return effects.happen()

    runner = Runner(store, "run")

    async def flow() -> asyncio.Task[str]:
        async with runner:
            sibling = asyncio.create_task(runner.step("slow", slow))
            await started.wait()
            return sibling

    ending = asyncio.create_task(flow())
    await started.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    with pytest.raises(LockLost, match="was closed"):
        await runner.step("late", effects.happen, "late")
    go.set()
    assert await (await ending) == "effect"
    assert effects == {"effect": 1}


async def test_entering_that_is_cancelled_gives_the_lock_back(store: FlakyStore) -> None:
    """The log of a store that hangs is read under the lock."""
    reading = asyncio.Event()
    real = store.list

    async def hang(run_id: str) -> Any:
        reading.set()
        await asyncio.Event().wait()

    store.list = hang  # type: ignore[method-assign]
    entering = asyncio.create_task(Runner(store, "run").__aenter__())
    await reading.wait()
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    store.list = real  # type: ignore[method-assign]
    async with Runner(store, "run"):
        pass


class Forgetful(MemoryStore):
    """Its locks are lost when told so."""

    lost = False

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        store = self

        class Lost(Lease):
            def check(self) -> None:
                if store.lost:
                    raise LockLost(f"the lock of run {run_id!r} expired")

        yield Lost()


async def test_no_step_starts_after_the_lock_was_lost(effects: Effects) -> None:
    """Replays go on; what runs is recorded; nothing new starts, and no further attempt either."""
    store = Forgetful()
    attempts = 0

    def lose() -> None:
        nonlocal attempts
        attempts += 1
        store.lost = True
        raise OSError

    async with Runner(store, "run", max_attempts=3) as runner:
        await runner.step("a", effects.happen)
        with pytest.raises(LockLost, match="expired"):
            await runner.step("b", lose)
        with pytest.raises(LockLost, match="expired"):
            await runner.step("c", effects.happen, "c")
        assert await runner.step("a", effects.happen) == "effect"
    assert (attempts, dict(effects)) == (1, {"effect": 1})


async def test_an_outcome_is_recorded_though_the_lock_was_lost(effects: Effects) -> None:
    """The effect has happened; the slot decides whose outcome counts."""
    store = Forgetful()

    def work() -> str:
        store.lost = True
        return effects.happen()

    async with Runner(store, "run") as runner:
        assert await runner.step("a", work) == "effect"
    assert len(await store.list("run")) == 1


async def test_a_store_without_locks_is_fine() -> None:
    """The lock is an ability, not a duty."""

    class Plain:
        def __init__(self) -> None:
            self._store = MemoryStore()

        async def append(self, record: StepRecord) -> StepRecord:
            return await self._store.append(record)

        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            return await self._store.get(run_id, step_id)

        async def list(self, run_id: str) -> tuple[StepRecord, ...]:
            return tuple(await self._store.list(run_id))

        async def clear(self, run_id: str) -> None:
            await self._store.clear(run_id)

    store = Plain()
    async with Runner(store, "run") as one, Runner(store, "run") as two:
        assert await one.step("a", lambda: 1) == 1
        assert await two.step("a", lambda: 1) == 1
        await one.reset()
