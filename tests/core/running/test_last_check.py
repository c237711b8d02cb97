"""The lock and the cancellation are checked last: after an intent was recorded, and once a thread is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from durable_core import Lease, LockLost, MemoryStore, RunCancelled, Runner, StepRecord, control
from tests.core.conftest import FlakyStore


class LosesItsLock(FlakyStore):
    """Its locks are lost when a test says so."""

    lost = False

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        yield Losable(self)


class Losable(Lease):
    def __init__(self, store: LosesItsLock) -> None:
        self._store = store

    def check(self) -> None:
        if self._store.lost:
            raise LockLost("lost")


async def test_an_intent_whose_acknowledgement_came_too_late_starts_nothing() -> None:
    """The append is tried again while another runner takes the run, asks, and pays: the first one finds its own entry."""
    charges: list[str] = []
    store = LosesItsLock()

    async def pay() -> str:
        charges.append("B" if store.lost else "A")
        return charges[-1]

    async def lose_the_answer(record: StepRecord) -> None:
        store.lost, store.after = True, None
        other = LosesItsLock()
        other._runs, other.append = store._runs, store.append  # type: ignore[misc, method-assign]
        async with Runner(other, "run") as rival:
            await rival.step("pay", pay, at_most_once=True, recover=lambda: None)
        raise ConnectionError("no answer")

    store.after = lose_the_answer
    async with Runner(store, "run") as runner:
        with pytest.raises(LockLost):
            await runner.step("pay", pay, at_most_once=True)
    assert charges == ["B"], "both have paid"


async def crowd(runner: Runner, then: Callable[[], object], **options: bool) -> tuple[int, list[BaseException | None]]:
    """Begin 200 synchronous steps, more than there are threads; do `then` while those wait, and let all go on."""
    began, go = list[int](), threading.Event()
    full = asyncio.Event()
    loop, count = asyncio.get_running_loop(), threading.Lock()

    def work() -> None:
        with count:
            began.append(1)
            if len(began) == 40:
                loop.call_soon_threadsafe(full.set)
        go.wait(60)

    steps = [asyncio.ensure_future(runner.step(f"s-{n}", work, **options)) for n in range(200)]  # type: ignore[arg-type]
    try:
        await full.wait()
        done = then()
        if asyncio.iscoroutine(done):
            await done
    finally:
        go.set()
    outcomes = await asyncio.gather(*steps, return_exceptions=True)
    return len(began), [outcome for outcome in outcomes if isinstance(outcome, BaseException)]


async def test_a_step_that_waited_for_a_thread_does_not_start_after_its_lock_was_lost() -> None:
    """Another runner may be at work when a thread comes free."""
    store = LosesItsLock()
    async with Runner(store, "run") as runner:
        began, errors = await crowd(runner, lambda: setattr(store, "lost", True))
    assert began == 40
    assert [type(error) for error in errors] == [LockLost] * 160


async def test_a_step_that_waited_for_a_thread_does_not_start_after_the_cancellation() -> None:
    """What `cancel` has returned for starts nothing new in this process."""
    store = MemoryStore()
    async with Runner(store, "run") as runner:
        await runner.step("first", lambda: None)
        began, errors = await crowd(runner, lambda: control.cancel(store, "run"))
    assert began == 40
    assert [type(error) for error in errors] == [RunCancelled] * 160


async def test_an_intent_is_recorded_once_a_thread_is_there() -> None:
    """Steps that never began are not found `started` after a crash."""
    store = MemoryStore()
    started: list[int] = []

    async def look() -> None:
        started.append(sum(record.status == "started" for record in await store.list("run")))

    async with Runner(store, "run") as runner:
        await crowd(runner, look, at_most_once=True)
    assert started == [40]
