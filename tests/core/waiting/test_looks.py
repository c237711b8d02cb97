"""How a run that waits hears of a decision: told in this process, else in looks that all waits of a store share."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from durable_core import MemoryStore, RunCancelled, Runner, StepRecord, control, flow
from durable_core.testing import FakeClock


class Counted(MemoryStore):
    """Counts what it is asked, and answers looks in rounds; it has no watch."""

    poll_seconds = 0.05
    watch = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[int] = []
        self.gets = 0

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        self.gets += 1
        return await super().get(run_id, step_id)

    async def newer(self, known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        self.rounds.append(len({run_id for run_id, _, _ in known}))
        found = [await MemoryStore.get(self, run_id, step_id) for run_id, step_id, _ in known]
        return [r for r, (_, _, n) in zip(found, known, strict=True) if r is not None and r.revision > n]


async def waits(store: MemoryStore, runs: int, **options: Any) -> list[asyncio.Task[Any]]:
    """Begin runs that each wait for an event, and return once all do."""

    async def wait(n: int) -> Any:
        async with Runner(store, f"run-{n}", **options) as runner:
            return await runner.event("go")

    tasks = [asyncio.ensure_future(wait(n)) for n in range(runs)]
    while sum(len(run[0]) for run in store._runs.values()) < runs:
        await asyncio.sleep(0)
    return tasks


async def test_waiting_runs_share_their_looks() -> None:
    """However many wait, the store is asked once a round, and nothing else."""
    store = Counted()
    tasks = await waits(store, 200)
    while len(store.rounds) < 5:
        await asyncio.sleep(0.01)
    before = store.gets
    while len(store.rounds) < 8:
        await asyncio.sleep(0.01)
    assert store.rounds[-3:] == [200, 200, 200]
    assert store.gets == before
    for n in range(200):  # as another process would, which tells nobody here
        await store.append(StepRecord(run_id=f"run-{n}", step_id="go", revision=1, kind="event", result=b"%d" % n))
    assert await asyncio.gather(*tasks) == [*range(200)]


@pytest.mark.parametrize("act", ["send", "cancel"])
async def test_who_acts_in_this_process_is_heard_at_once(act: str) -> None:
    """No look at the store is waited for."""
    store = Counted()
    store.poll_seconds = 3600
    (task,) = await waits(store, 1)
    if act == "send":
        await control.send(store, "run-0", "go", 7)
        assert await asyncio.wait_for(task, 5) == 7
    else:
        await control.cancel(store, "run-0", reason="enough")
        with pytest.raises(RunCancelled, match="enough"):
            await asyncio.wait_for(task, 5)


async def test_a_round_that_fails_is_followed_by_others() -> None:
    """A store that is away for a moment ends no wait."""
    store = Counted()
    newer, failures = store.newer, [OSError("away")] * 3

    async def away(known: Sequence[tuple[str, str, int]]) -> Sequence[StepRecord]:
        if failures:
            raise failures.pop()
        return await newer(known)

    store.newer = away  # type: ignore[method-assign]
    tasks = await waits(store, 3)
    while failures:
        await asyncio.sleep(0.01)
    for n in range(3):
        await store.append(StepRecord(run_id=f"run-{n}", step_id="go", revision=1, kind="event", result=b"1"))
    assert await asyncio.wait_for(asyncio.gather(*tasks), 20) == [1, 1, 1]


class OnlyGets(MemoryStore):
    """A store of somebody else's, with the four methods and no way to look at many steps at once."""

    newer = None  # type: ignore[assignment]
    watch = None  # type: ignore[assignment]


async def test_a_store_without_rounds_is_asked_step_by_step() -> None:
    """Any store will do."""
    store = OnlyGets()
    (task,) = await waits(store, 1)
    await store.append(StepRecord(run_id="run-0", step_id="go", revision=1, kind="event", result=b"1"))
    assert await asyncio.wait_for(task, 20) == 1


async def test_a_sleep_of_thirty_days_takes_one_look_at_the_clock(clock: FakeClock) -> None:
    """With a clock that stands still, a wait sleeps to its deadline."""
    store = Counted()
    store.poll_seconds = 3600
    began = clock.now()
    async with Runner(store, "run", clock=clock) as runner:
        await runner.sleep("month", timedelta(days=30))
    assert clock.now() - began == timedelta(days=30)
    assert store.gets < 10


async def test_parallel_delays_pass_together(clock: FakeClock) -> None:
    """Five delays of an hour take one."""
    began = clock.now()
    async with Runner(MemoryStore(), "run", clock=clock) as runner:
        await asyncio.gather(*(runner.sleep(f"s-{n}", 3600) for n in range(5)))
    assert clock.now() - began == timedelta(hours=1)


async def test_a_wait_that_ends_leaves_nothing_behind() -> None:
    """No task, and nobody who is told."""
    store = Counted()
    before: Callable[[], set[asyncio.Task[Any]]] = asyncio.all_tasks
    tasks = await waits(store, 3)
    for n in range(3):
        await control.send(store, f"run-{n}", "go", n)
    await asyncio.gather(*tasks)
    for _ in range(10):
        await asyncio.sleep(0)
    assert before() == {asyncio.current_task()}


async def test_a_run_that_is_over_is_not_kept_by_those_that_wait() -> None:
    """The waits of a store share what looks for them, which began with the first of them."""
    store = MemoryStore()
    runners: list[weakref.ref[Runner]] = []

    @flow
    async def waits(runner: Runner) -> None:
        runners.append(weakref.ref(runner))
        await runner.event("word")

    running = {}
    for run_id in ("first", "second"):
        running[run_id] = asyncio.create_task(waits.run(store, run_id=run_id))
        while await store.get(run_id, "word") is None:
            await asyncio.sleep(0)
    await control.send(store, "first", "word")
    await running.pop("first")
    gc.collect()
    assert [runner() is None for runner in runners] == [True, False]
    await control.send(store, "second", "word")
    await running.pop("second")
