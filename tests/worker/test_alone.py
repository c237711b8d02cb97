"""A run whose processes keep dying is driven alone, so that it takes no neighbours along."""

from __future__ import annotations

import asyncio

import pytest

from durable_core import Runner, control, flow
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


class Killed(BaseException):
    """The end of the process."""


class Deadly:
    """Flows of which one has killed its process, and a look at who is driven beside it."""

    def __init__(self, clock: FakeClock) -> None:
        self.driven: set[str] = set()
        self.beside: list[set[str]] = []
        self.kills = True

        @flow(clock=clock)
        async def deadly(runner: Runner) -> None:
            if self.kills:
                raise Killed
            await self._drive(runner, 1)
            await runner.step("s", _nothing)

        @flow(clock=clock)
        async def harmless(runner: Runner, seconds: float) -> None:
            await self._drive(runner, seconds)
            await runner.step("s", _nothing)

        async def pause(seconds: float) -> None:
            await clock.sleep(seconds)

        self._pause = pause
        self.deadly, self.harmless = deadly, harmless

    async def _drive(self, runner: Runner, seconds: float) -> None:
        self.driven.add(runner.run_id)
        try:
            if runner.run_id.startswith("deadly"):
                self.beside.append(self.driven - {runner.run_id})
            await runner.step("pause", self._pause, seconds)
            if runner.run_id.startswith("deadly"):
                self.beside.append(self.driven - {runner.run_id})
        finally:
            self.driven.discard(runner.run_id)

    async def kill(self, store: MemoryStore, run_id: str, times: int) -> None:
        """Let the run kill so many processes."""
        for _ in range(times):
            with pytest.raises(Killed):
                await self.deadly.run(store, run_id)


async def _nothing() -> None: ...


@pytest.mark.parametrize(("deaths", "beside"), [(1, True), (2, False)])
async def test_from_its_second_death_on_it_has_no_neighbours(
    store: MemoryStore, clock: FakeClock, deaths: int, *, beside: bool
) -> None:
    """A worker takes it when it has nothing else, and then takes nothing else until that is over."""
    flows = Deadly(clock)
    await flows.kill(store, "deadly", deaths)
    flows.kills = False
    for number in range(6):
        await flows.harmless.start(store, f"harmless-{number}", seconds=3)
    async with Worker(store, [flows.deadly, flows.harmless], clock=clock, poll=0.5, visibility_timeout=10):
        for number in range(40):
            await flows.harmless.start(store, f"later-{number}", seconds=3)
            await clock.sleep(5)
        assert (await control.status(store, "deadly")).status == "succeeded"
        for run_id in [run.run_id async for run in control.runs(store)]:
            assert (await control.result(store, run_id, clock=clock)) is None
    assert any(flows.beside) is beside


async def test_two_of_them_do_not_wait_for_each_other(store: MemoryStore, clock: FakeClock) -> None:
    """One round drives the first, and leaves the other to the next."""
    flows = Deadly(clock)
    for run_id in ("deadly-1", "deadly-2"):
        await flows.kill(store, run_id, 2)
    flows.kills = False
    async with asyncio.timeout(20):
        async with Worker(store, [flows.deadly], clock=clock, visibility_timeout=10):
            for run_id in ("deadly-1", "deadly-2"):
                await control.result(store, run_id, clock=clock)
    assert flows.beside == [set()] * 4


async def test_a_round_lets_the_others_end_first(store: MemoryStore, clock: FakeClock) -> None:
    """A single round has no time to wait until nothing else is due: it drives the run after what it has begun."""
    flows = Deadly(clock)
    await flows.kill(store, "deadly", 2)
    flows.kills = False
    await flows.harmless.start(store, "harmless", seconds=3)
    report = await Worker(store, [flows.deadly, flows.harmless], clock=clock).sweep()
    assert report.succeeded == 2
    assert flows.beside == [set(), set()]


async def test_a_busy_worker_drains_for_it_at_last(store: MemoryStore, clock: FakeClock) -> None:
    """One that always has something else lets that end after ten visibility timeouts."""
    flows = Deadly(clock)
    await flows.kill(store, "deadly", 2)
    flows.kills = False
    for number in range(200):
        await flows.harmless.start(store, f"harmless-{number}", seconds=7)
    async with Worker(store, [flows.deadly, flows.harmless], clock=clock, concurrency=2, visibility_timeout=5):
        began = clock.monotonic()
        await control.result(store, "deadly", clock=clock)
        assert 50 <= clock.monotonic() - began < 120
    assert flows.beside == [set(), set()]
