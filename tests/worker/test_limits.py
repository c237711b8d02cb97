"""`@flow(concurrency=…)`: so many runs of a name at once, over all workers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_core import Runner, control, flow, open_store
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


class Press:
    """Something of which only so many may be at work at once."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.at_work = self.most = self.done = 0

    async def work(self) -> None:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        await self._clock.sleep(1)
        self.at_work -= 1
        self.done += 1


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_hundred_runs_of_a_second_by_four(store: MemoryStore, clock: FakeClock, workers: int) -> None:
    """At most four at once, and nearly always four: they take no more than 30 s."""
    press = Press(clock)

    @flow(clock=clock, concurrency=("pdf", 4))
    async def pdf(runner: Runner) -> None:
        await runner.step("print", press.work)

    for number in range(100):
        await pdf.start(store, f"run-{number}")
    several = [Worker(store, [pdf], clock=clock) for _ in range(workers)]
    began = clock.monotonic()
    for worker in several:
        await worker.__aenter__()
    for number in range(100):
        await control.result(store, f"run-{number}", clock=clock)
    assert clock.monotonic() - began <= 30
    for worker in several:
        await worker.__aexit__(None, None, None)
    assert (press.most, press.done) == (4, 100)
    assert await store.holders([f"$limit/pdf/{place}" for place in range(4)]) == {}


async def test_runs_that_wait_for_a_place_take_no_room(store: MemoryStore, clock: FakeClock) -> None:
    """Others are driven meanwhile, however many wait."""
    press = Press(clock)

    @flow(clock=clock, concurrency=("pdf", 1))
    async def pdf(runner: Runner) -> None:
        await runner.step("print", press.work)

    @flow(clock=clock)
    async def quick(runner: Runner) -> None:
        await runner.step("s", _nothing)

    for number in range(60):
        await pdf.start(store, f"pdf-{number}")
    async with Worker(store, [pdf, quick], clock=clock, concurrency=2):
        await clock.sleep(2)
        await quick.start(store, "quick")
        began = clock.monotonic()
        await control.result(store, "quick", clock=clock)
        assert clock.monotonic() - began <= 2
        for number in range(60):
            await control.result(store, f"pdf-{number}", clock=clock)
    assert press.most == 1


async def _nothing() -> None: ...


async def test_a_function_gives_the_limit_by_the_input(store: MemoryStore, clock: FakeClock) -> None:
    """It gets the input by name; each customer has a limit of its own."""
    presses = {"ann": Press(clock), "bob": Press(clock)}

    def limit(customer: str) -> tuple[str, int]:
        return f"customer-{customer}", 1 if customer == "ann" else 3

    @flow(clock=clock, concurrency=limit)
    async def pdf(runner: Runner, customer: str) -> None:
        await runner.step("print", presses[customer].work)

    for number in range(6):
        for customer in presses:
            await pdf.start(store, f"{customer}-{number}", customer=customer)
    async with Worker(store, [pdf], clock=clock):
        for number in range(6):
            for customer in presses:
                await control.result(store, f"{customer}-{number}", clock=clock)
    assert (presses["ann"].most, presses["bob"].most) == (1, 3)


@pytest.mark.parametrize("limit", [lambda amount: 1 / 0, lambda amount: "pdf", lambda amount: ("pdf", 0)])
async def test_a_function_that_gives_none_parks_the_run(store: MemoryStore, clock: FakeClock, limit: Callable[..., Any]) -> None:
    """The others go on, and the run's status says why."""

    @flow(clock=clock, concurrency=limit)
    async def pdf(runner: Runner, amount: int) -> None: ...

    @flow(clock=clock)
    async def quick(runner: Runner) -> None: ...

    await pdf.start(store, "pdf", amount=1)
    await quick.start(store, "quick")
    report = await Worker(store, [pdf, quick], clock=clock).sweep()
    assert (report.parked, report.succeeded) == (1, 1)
    (entry,) = [each for each in await store.list("pdf") if each.notes.get("parked")]
    assert "concurrency= of flow 'pdf'" in entry.notes["parked"]["why"]


async def test_children_take_places_too(store: MemoryStore, clock: FakeClock) -> None:
    """Those of a parent that holds none; and one whose parent holds a place takes no second one."""
    press = Press(clock)

    @flow(clock=clock, concurrency=("pdf", 1))
    async def pdf(runner: Runner) -> None:
        await runner.step("print", press.work)

    @flow(clock=clock)
    async def order(runner: Runner) -> None:
        await runner.flow("pdf", pdf)

    @flow(clock=clock, concurrency=("pdf", 1))
    async def book(runner: Runner) -> None:
        await runner.flow("cover", pdf)

    for number in range(6):
        await order.start(store, f"order-{number}")
        await book.start(store, f"book-{number}")
    async with Worker(store, [pdf, order, book], clock=clock):
        for number in range(6):
            await control.result(store, f"order-{number}", clock=clock, timeout=500)
            await control.result(store, f"book-{number}", clock=clock, timeout=500)
    assert (press.most, press.done) == (1, 12)


async def test_nothing_is_kept_of_limits_that_nobody_waits_for(store: MemoryStore, clock: FakeClock) -> None:
    """A function may name one limit for each of a million customers."""

    @flow(clock=clock, concurrency=lambda customer: (customer, 1))
    async def bill(runner: Runner, customer: str) -> None:
        await runner.sleep("bill", 1)

    worker = Worker(store, [bill], clock=clock)
    for number in range(30):
        await bill.start(store, f"run {number}", customer=f"customer {number % 10}")
    assert (await worker.sweep()).succeeded == 30  # each once, though the sweep and a wake-up tell of it
    gc.collect()
    places = worker._loop.places
    assert (len(places._turns), len(places._freed)) == (0, 0)


async def test_runs_whose_children_need_each_others_places(tmp_path: Path) -> None:
    """Both are suspended, which frees the places, and don't come back at the same time for ever."""
    both = asyncio.Barrier(2)

    async def meet() -> None:
        await both.wait()

    @flow(concurrency=("pdf", 1))
    async def pdf(runner: Runner) -> None: ...

    @flow(concurrency=("mail", 1))
    async def mail(runner: Runner) -> None: ...

    @flow(concurrency=("pdf", 1), wait_limit=0)
    async def print_and_mail(runner: Runner) -> None:
        await runner.step("meet", meet)
        await runner.flow("mail", mail)

    @flow(concurrency=("mail", 1), wait_limit=0)
    async def mail_and_print(runner: Runner) -> None:
        await runner.step("meet", meet)
        await runner.flow("pdf", pdf)

    async with open_store(f"sqlite:{tmp_path / 'runs.db'}") as store:
        await print_and_mail.start(store, "one")
        await mail_and_print.start(store, "other")
        async with Worker(store, [pdf, mail, print_and_mail, mail_and_print]):
            for run_id in ("one", "other"):
                await control.result(store, run_id, timeout=20)
