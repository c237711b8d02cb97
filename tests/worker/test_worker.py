"""A worker takes up what was asked for, and drives it until it ends, waits or stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import pytest

from durable_core import Runner, StepRecord, control, flow
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


@flow
async def greet(runner: Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name}")


@flow
async def nap(runner: Runner, days: int = 3) -> str:
    await runner.sleep("nap", timedelta(days=days))
    return await runner.step("wake", lambda: "awake")


@flow
async def ask(runner: Runner) -> bool:
    decision = await runner.approval("ok", {"amount": 90})
    return decision.approved


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    return MemoryStore(clock=clock)


async def test_a_run_that_was_asked_for_ends(store: MemoryStore, clock: FakeClock) -> None:
    """`start` returns at once; a worker runs it with the recorded input."""
    await greet.options(clock=clock).start(store, "one", name="Ada")
    async with Worker(store, [greet], clock=clock):
        assert await control.result(store, "one", clock=clock) == "hello Ada"


async def test_a_long_sleep_frees_the_worker(store: MemoryStore, clock: FakeClock) -> None:
    """A run that sleeps for days is suspended, and goes on at its time."""
    await nap.options(clock=clock).start(store, "one")
    began = clock.now()
    async with Worker(store, [nap], clock=clock, poll=600):
        assert await control.result(store, "one", clock=clock) == "awake"
    assert timedelta(days=3) <= clock.now() - began < timedelta(days=3, hours=1)
    statuses = [record.status for record in await store.list("one") if record.step_id == "$flow"]
    assert statuses == ["waiting", "started", "waiting", "started", "success"]


async def test_one_round_does_what_is_due(store: MemoryStore, clock: FakeClock) -> None:
    """`sweep` returns when nothing more can be done now, and says what it did."""
    await greet.options(clock=clock).start(store, "one", name="Ada")
    await ask.options(clock=clock).start(store, "two")
    worker = Worker(store, [greet, ask], clock=clock)
    report = await worker.sweep()
    assert (report.succeeded, report.suspended) == (1, 1)
    await control.approve(store, "two", "ok", by="alice", clock=clock)
    report = await worker.sweep()
    assert (report.succeeded, report.suspended) == (1, 0)
    assert await control.result(store, "two", clock=clock) is True
    report = await worker.sweep()
    assert report.succeeded == 0


async def test_a_suspended_run_that_nothing_came_for_is_not_replayed(store: MemoryStore, clock: FakeClock) -> None:
    """A wake-up for nothing costs a look: the run's flow is not driven, and the wake-up is gone."""
    await ask.options(clock=clock).start(store, "one")
    worker = Worker(store, [ask], clock=clock)
    await worker.sweep()
    before = await store.list("one")
    await store.set_wakeup("one", "ask", clock.now())
    await worker.sweep()
    assert await store.list("one") == before
    clock.advance(3600)
    assert not await store.take_wakeups(["ask"], limit=9, visibility_timeout=timedelta(seconds=1))


async def test_several_wakeups_of_one_run_are_one_look(store: MemoryStore, clock: FakeClock) -> None:
    """Taken together, they begin the run once; none of them is shown again."""
    await ask.options(clock=clock).start(store, "one")
    for _ in range(4):
        await store.set_wakeup("one", "ask", clock.now())
    await Worker(store, [ask], clock=clock).sweep()
    assert [record.status for record in await store.list("one") if record.step_id == "$flow"].count("started") == 1
    clock.advance(3600)
    assert not await store.take_wakeups(["ask"], limit=9, visibility_timeout=timedelta(seconds=1))


async def test_a_crash_is_tried_again_and_parks(store: MemoryStore, clock: FakeClock) -> None:
    """A flow whose own code raises is tried after 1, 2, 4 … s; after `max_crashes` it is parked, and tells what would help."""
    tries: list[float] = []

    @flow(clock=clock)
    async def broken(runner: Runner) -> None:
        tries.append(clock.monotonic())
        raise ZeroDivisionError

    await broken.start(store, "one")
    async with Worker(store, [broken], clock=clock, max_crashes=4):
        while (await control.status(store, "one")).status != "parked":
            await clock.sleep(1)
    assert len(tries) == 4
    assert [round(after - before) for before, after in pairwise(tries)] == [1, 2, 4]
    # A worker that began later tries it once more.
    clock.advance(60)
    async with Worker(store, [broken], clock=clock, max_crashes=4):
        while len(tries) < 5 or (await control.status(store, "one")).status != "parked":
            await clock.sleep(1)
        await clock.sleep(1000)
    assert len(tries) == 5
    # By hand it counts anew.
    await control.retry(store, "one", clock=clock)
    async with Worker(store, [broken], clock=clock, max_crashes=4):
        await clock.sleep(1)
        while (await control.status(store, "one")).status != "parked":
            await clock.sleep(1)
    assert len(tries) == 9


async def test_a_stop_hands_the_runs_back(store: MemoryStore, clock: FakeClock) -> None:
    """A running step may end; the run is handed to others, and the next worker goes on at once."""
    gate, entered = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    async def slow() -> None:
        entered.set()
        await gate.wait()
        ran.append("slow")

    @flow(clock=clock)
    async def two_steps(runner: Runner) -> None:
        await runner.step("slow", slow)
        await runner.step("next", lambda: ran.append("next"))

    await two_steps.start(store, "one")
    async with Worker(store, [two_steps]) as worker:
        await entered.wait()
        stop = asyncio.create_task(worker._loop.stop())
        await asyncio.sleep(0)
        gate.set()
        await stop
    assert ran == ["slow"]
    assert (await control.status(store, "one")).status == "waiting"
    report = await Worker(store, [two_steps], clock=clock).sweep()
    assert report.succeeded == 1
    assert ran == ["slow", "next"]


async def test_looks_at_single_runs_are_reads_that_stores_combine(clock: FakeClock) -> None:
    """Runs that are taken up at once are read by `get`, of which a store sends many in one request, and by no request a run."""

    class Counting(MemoryStore):
        looks = 0

        async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
            self.looks += len(known) == 1
            return await super().newer(known)

    store = Counting(clock=clock)
    for number in range(20):
        await greet.options(clock=clock).start(store, f"run-{number}", name="Ada")
    assert (await Worker(store, [greet], clock=clock).sweep()).succeeded == 20
    assert store.looks == 0
