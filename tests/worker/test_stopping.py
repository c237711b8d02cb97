"""A worker that stops takes no more, lets running steps end, and hands its runs to others at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from durable_core import Runner, control, flow
from durable_core.errors import DurableError
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


class Slow:
    """A step that says when it began, and ends when the test says so."""

    def __init__(self) -> None:
        self.began, self.may_end = asyncio.Event(), asyncio.Event()
        self.ended = False

    async def work(self) -> None:
        self.began.set()
        await self.may_end.wait()
        self.ended = True


async def _nothing() -> None: ...


async def held(store: MemoryStore, *run_ids: str) -> list[str]:
    return [*await store.holders(run_ids)]


async def test_a_step_may_end_and_the_next_does_not_begin(store: MemoryStore, clock: FakeClock) -> None:
    """Others go on with the run after that step, by a wake-up that is due at once."""
    slow = Slow()

    @flow(clock=clock)
    async def two(runner: Runner) -> None:
        await runner.step("slow", slow.work)
        await runner.step("next", _nothing)

    await two.start(store, "run")
    async with Worker(store, [two]):
        await slow.began.wait()
        asyncio.get_running_loop().call_later(0.05, slow.may_end.set)
    steps = [record.step_id for record in await store.list("run")]
    assert slow.ended
    assert "next" not in steps
    assert not await held(store, "run")
    assert (await Worker(store, [two], clock=clock).sweep()).succeeded == 1


async def test_a_step_that_takes_too_long_is_cancelled(store: MemoryStore, clock: FakeClock) -> None:
    """After `shutdown_timeout`; the run is handed back all the same."""
    slow = Slow()

    @flow(clock=clock)
    async def one(runner: Runner) -> None:
        await runner.step("slow", slow.work)

    await one.start(store, "run")
    async with Worker(store, [one], shutdown_timeout=0.05):
        await slow.began.wait()
    assert not slow.ended
    assert not await held(store, "run")
    slow.may_end.set()
    assert (await Worker(store, [one], clock=clock).sweep()).succeeded == 1


@pytest.mark.parametrize("wait_limit", [None, 5])
async def test_a_wait_ends_at_once(store: MemoryStore, clock: FakeClock, wait_limit: float | None) -> None:
    """In a process that stops nobody waits: not for a limit of the flow's, nor for `shutdown_timeout`."""

    @flow(clock=clock, wait_limit=wait_limit)
    async def ask(runner: Runner) -> bool:
        return (await runner.approval("ok", {"amount": 90})).approved

    await ask.start(store, "run")
    async with asyncio.timeout(5):
        async with Worker(store, [ask], shutdown_timeout=60):
            while await store.get("run", "ok") is None:
                await asyncio.sleep(0)
    assert (await control.status(store, "run")).status == "waiting"
    assert not await held(store, "run")
    await control.approve(store, "run", "ok", by="ann", clock=clock)
    assert (await Worker(store, [ask], clock=clock).sweep()).succeeded == 1


async def test_children_are_handed_back_with_their_parents(store: MemoryStore, clock: FakeClock) -> None:
    """The step of a child that runs may end; neither lock is held after that, and no death is counted."""
    slow = Slow()

    @flow(clock=clock)
    async def kid(runner: Runner) -> None:
        await runner.step("slow", slow.work)
        await runner.step("next", _nothing)

    @flow(clock=clock)
    async def boss(runner: Runner) -> None:
        await runner.flow("kid", kid)

    await boss.start(store, "run")
    async with Worker(store, [boss, kid]):
        await slow.began.wait()
        asyncio.get_running_loop().call_later(0.05, slow.may_end.set)
    assert slow.ended
    assert not await held(store, "run", "run/kid")
    for run_id in ("run", "run/kid"):
        newest = await store.get(run_id, "$flow")
        assert newest is not None
        assert newest.status == "waiting"
        assert "handed_back" in newest.notes
    assert (await Worker(store, [boss, kid], clock=clock).sweep()).succeeded == 1


async def test_places_are_given_back(store: MemoryStore, clock: FakeClock) -> None:
    """Also those that runs waited for: nobody waits for one in a process that stops."""
    slow = Slow()

    @flow(clock=clock, concurrency=("pdf", 1))
    async def pdf(runner: Runner) -> None:
        await runner.step("slow", slow.work)

    await pdf.start(store, "one")
    await pdf.start(store, "two")
    async with asyncio.timeout(5):
        async with Worker(store, [pdf], shutdown_timeout=0.05) as worker:
            await slow.began.wait()
            while not worker._loop._waiting:
                await asyncio.sleep(0)
    assert not await held(store, "one", "two", "$limit/pdf/0")
    slow.may_end.set()
    assert (await Worker(store, [pdf], clock=clock).sweep()).succeeded == 2


async def test_a_worker_that_is_cancelled_hands_back_too(store: MemoryStore, clock: FakeClock) -> None:
    """A round that is cut off, as by a time limit around it."""
    slow = Slow()

    @flow(clock=clock)
    async def one(runner: Runner) -> None:
        await runner.step("slow", slow.work)

    await one.start(store, "run")
    task = asyncio.create_task(Worker(store, [one], shutdown_timeout=0).sweep())
    await slow.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await held(store, "run")
    slow.may_end.set()
    assert (await Worker(store, [one], clock=clock).sweep()).succeeded == 1


async def test_a_worker_works_again(store: MemoryStore, clock: FakeClock) -> None:
    """After a stop it may be started anew; twice at the same time is an error."""

    @flow(clock=clock)
    async def quick(runner: Runner) -> None: ...

    worker = Worker(store, [quick], clock=clock)
    for number in range(2):
        await quick.start(store, f"run-{number}")
        async with worker:
            await control.result(store, f"run-{number}", clock=clock)
            with pytest.raises(DurableError, match="this worker is already running"):
                await worker.__aenter__()
            with pytest.raises(DurableError, match="this worker is already running"):
                await worker.sweep()


async def test_a_stop_while_a_run_sleeps_between_attempts(store: MemoryStore, clock: FakeClock) -> None:
    """The next attempt is others', at its time."""
    tries = []

    async def fails() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not yet")

    @flow(clock=clock, wait_limit=None)
    async def again(runner: Runner) -> None:
        await runner.step("s", fails, max_attempts=3, retry_delay=3600)

    await again.start(store, "run")
    async with asyncio.timeout(5):
        async with Worker(store, [again]):
            while not tries or (await store.get("run", "s")) is None:
                await asyncio.sleep(0)
    clock.advance(timedelta(hours=2))
    assert (await Worker(store, [again], clock=clock).sweep()).succeeded == 1
    assert len(tries) == 2
