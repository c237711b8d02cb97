"""Many runs that wait for the places of one limit keep no worker from the runs of other flows."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from durable_core import Runner, control, flow
from durable_core.record import StepRecord
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


@flow(concurrency=("pdf", 1))
async def draw(runner: Runner) -> None:
    await runner.sleep("draw", 3600)


@flow
async def greet(runner: Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name}")


class CountingStore(MemoryStore):
    """Counts at each time the looks at runs of the flow with a limit."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.looks = Counter[float]()

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        self.looks[self.clock.monotonic()] += run_id.startswith("draw") and step_id == "$flow"
        return await super().get(run_id, step_id)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_backlog_behind_a_limit_starves_no_other_flow(clock: FakeClock) -> None:
    """Where as many wait for a place as may, the worker takes some more of their flow with each poll, and not all at once."""
    store, patient = CountingStore(clock), draw.options(clock=clock, wait_limit=7200)
    await asyncio.gather(*(patient.start(store, f"draw {number}") for number in range(300)))
    store.looks.clear()
    async with Worker(store, [patient, greet], clock=clock, concurrency=2, poll=1):
        await clock.sleep(5)
        before = clock.monotonic()
        await greet.options(clock=clock).start(store, "one", name="Ada")
        assert await control.result(store, "one", clock=clock) == "hello Ada"
        assert clock.monotonic() - before <= 2
        await clock.sleep(10)
        first, *others = [number for _, number in sorted(store.looks.items())]
    assert first < 50  # two are driven, twenty wait
    assert 0 < max(others) <= 4
