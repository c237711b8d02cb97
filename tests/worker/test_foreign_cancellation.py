"""A `CancelledError` that nobody meant for the worker stops nothing, and makes no hot loop."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import timedelta

import pytest

from durable_core import Runner, control, flow
from durable_core.control import RunStatus
from durable_core.store import WakeUp
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


@flow
async def greet(runner: Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name}")


class StrayStore(MemoryStore):
    """Raises `CancelledError` where it is asked to, as a driver may whose own task was cancelled."""

    stray = False

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        if self.stray:
            self.stray = False
            raise asyncio.CancelledError
        return await super().take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_handler_of_ends_that_awaits_a_cancelled_task(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is called once, as one that raises anything else; the run's wake-ups are cleared."""
    store = MemoryStore(clock=clock)
    worker, told = Worker(store, [greet], clock=clock), []
    cancelled = asyncio.create_task(asyncio.sleep(60))
    cancelled.cancel()

    @worker.on_end
    async def end(run: RunStatus) -> None:
        told.append(run.run_id)
        await cancelled

    await greet.options(clock=clock).start(store, "one", name="Ada")
    await worker.sweep()
    await worker.sweep()
    assert told == ["one"]
    assert "on_end raised for run 'one'" in caplog.text


async def test_a_store_that_raises_it(clock: FakeClock) -> None:
    """The worker goes on working, and takes the run up at the next poll."""
    store = StrayStore(clock=clock)
    async with Worker(store, [greet], clock=clock):
        await greet.options(clock=clock).start(store, "one", name="Ada")
        store.stray = True
        async with asyncio.timeout(10):
            while store.stray:
                await asyncio.sleep(0.01)
            assert await control.result(store, "one", clock=clock) == "hello Ada"
