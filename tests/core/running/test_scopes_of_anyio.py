"""A scope that cancels anew on every turn of the loop lets the runner leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest

from durable_core import Lease, MemoryStore, Runner, StepRecord, flow
from tests.core.conftest import FlakyStore

SECONDS = 20


async def within(work: object) -> None:
    await asyncio.wait_for(work, SECONDS)  # type: ignore[arg-type]


async def test_a_block_is_left() -> None:
    """Its lock is given back."""
    store = MemoryStore()

    async def work() -> None:
        with anyio.move_on_after(0.02) as scope:
            async with Runner(store, "run"):
                await asyncio.sleep(60)
        assert scope.cancelled_caught

    await within(work())
    async with Runner(store, "run") as runner:
        assert await runner.step("s", lambda: 1) == 1


@pytest.mark.parametrize("waiting", ["step", "thread", "sleep", "event", "group"])
async def test_whatever_the_block_is_at(waiting: str) -> None:
    """A step, a thread, a wait, or tasks of its own."""
    store = MemoryStore()

    def sync() -> str:
        import time

        time.sleep(0.2)
        return "done"

    @flow
    async def job(runner: Runner) -> None:
        match waiting:
            case "step":
                await runner.step("s", asyncio.sleep, 60)
            case "thread":
                await runner.step("s", sync)
            case "sleep":
                await runner.sleep("s", 60)
            case "event":
                await runner.event("s")
            case _:
                async with asyncio.TaskGroup() as group:
                    for n in range(3):
                        group.create_task(runner.step(f"s-{n}", asyncio.sleep, 60))

    async def work() -> None:
        with anyio.move_on_after(0.05) as scope:
            await job.run(store, run_id="run")
        assert scope.cancelled_caught

    await within(work())
    statuses = {record.step_id: record.status for record in await store.list("run")}
    assert statuses["$flow"] == "started"
    if waiting == "thread":
        assert statuses["s"] == "success"
    async with Runner(store, "run"):
        pass


async def test_an_outcome_is_recorded_while_the_scope_cancels() -> None:
    """Once the function has returned, recording completes first, however slow the store."""
    store = FlakyStore()
    appending = asyncio.Event()

    async def slow(record: StepRecord) -> None:
        appending.set()
        await asyncio.sleep(0.1)

    async def work() -> None:
        with anyio.CancelScope() as scope:
            async with asyncio.TaskGroup() as group:
                group.create_task(cancel_when_appending(scope))
                async with Runner(store, "run") as runner:
                    await runner.step("s", lambda: 1)

    async def cancel_when_appending(scope: anyio.CancelScope) -> None:
        await appending.wait()
        scope.cancel()

    store.before = slow
    await within(work())
    assert [record.status for record in await store.list("run")] == ["success"]


async def test_entering_under_a_cancelled_scope_takes_no_lock() -> None:
    """What was taken by then is given back."""
    store = MemoryStore()

    async def work() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with Runner(store, "run"):
                await asyncio.sleep(60)

    await within(work())
    async with Runner(store, "run"):
        pass


def test_a_loop_that_shuts_down_gives_the_lock_back_after_the_last_step() -> None:
    """It cancels every task, also the one in which a runner waits for its steps."""
    told: list[str] = []

    class Telling(MemoryStore):
        @asynccontextmanager
        async def lock(self, run_id: str) -> AsyncIterator[Lease]:
            async with super().lock(run_id) as lease:
                yield lease
            told.append("given back")

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            for _ in range(20):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            told.append("ended")

    async def run(store: MemoryStore, began: asyncio.Event) -> None:
        async with Runner(store, "run") as runner:
            step = asyncio.ensure_future(runner.step("s", stubborn))
            await asyncio.sleep(0)
            began.set()
            await asyncio.Event().wait()
        await step

    async def main() -> None:
        began = asyncio.Event()
        main.task = asyncio.ensure_future(run(Telling(), began))  # type: ignore[attr-defined]
        await began.wait()
        main.task.cancel()  # type: ignore[attr-defined]
        for _ in range(5):
            await asyncio.sleep(0)  # it is leaving by then

    asyncio.run(main())
    assert told == ["ended", "given back"]
