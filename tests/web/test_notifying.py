"""Telling of new approvals: at least once each, whoever does it and whoever dies."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest

from durable_core import MemoryStore, Runner, RunSuspended, StepFailed, StepRecord, Store, control, flow
from durable_core.testing import FakeClock
from durable_web import Notify, app
from durable_web._notifying import AGAIN, Notifier, mark_id
from tests.every_store.conftest import Opened
from tests.web.conftest import signed_in
from tests.web.flows import ask, payout


class Told:
    """A hook that remembers what it was called with, and fails as often as it is asked to."""

    def __init__(self, fails: int = 0) -> None:
        self.runs: list[str] = []
        self.fails = fails

    async def __call__(self, record: StepRecord) -> None:
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no mail server")
        self.runs.append(record.run_id)


async def test_each_new_approval_is_told_once(opened: Opened) -> None:
    """By one process or several at once; a vote, a decision or the end of a run tells nothing new."""
    told = Told()
    async with opened() as store, opened() as other:
        pages = [app(each, user=signed_in, notify=told) for each in (store, other)]
        for number in range(3):
            await ask(store, f"payout-{number}", quorum=2)
        done = await asyncio.gather(*(page.notify_once() for page in pages))
        assert (sorted(told.runs), sum(done)) == (["payout-0", "payout-1", "payout-2"], 3)
        await control.approve(store, "payout-0", "approve", by="alice")
        await control.reject(store, "payout-1", "approve", by="alice")
        assert [await page.notify_once() for page in pages] == [0, 0]
        assert await payout.run(store, run_id="payout-1") == "not paid"
    assert len(told.runs) == 3


async def test_a_hook_that_is_a_plain_function(memory: MemoryStore) -> None:
    """It gets what waits, in a thread: it may send an e-mail and take its time."""
    told: list[StepRecord] = []
    await ask(memory)
    page = app(memory, user=signed_in, notify=told.append)
    assert (await page.notify_once(), await page.notify_once()) == (1, 0)
    assert told[0].notes["show"]["amount"] == 90


async def test_a_hook_that_raises_is_called_again(memory: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """Not at once, but after a minute; it is logged, and keeps no other approval from being told."""
    clock, told = FakeClock(), Told(fails=1)
    notifier = Notifier(memory, told, clock)
    await ask(memory)
    assert await notifier.round() == 0
    assert "no mail server" in caplog.text
    await ask(memory, "payout-2")
    assert (await notifier.round(), told.runs) == (1, ["payout-2"])
    clock.advance(AGAIN.total_seconds())
    assert (await notifier.round(), told.runs) == (1, ["payout-2", "payout-1"])
    assert await notifier.round() == 0


async def test_who_dies_before_the_mark(memory: MemoryStore) -> None:
    """A call whose process died is made again by another, a minute after the claim and not before."""
    clock, told = FakeClock(), Told()
    dead = Notifier(memory, lambda record: None, clock)
    await ask(memory)
    append = memory.append

    async def dies(record: StepRecord) -> StepRecord:
        if record.status == "success":
            raise asyncio.CancelledError
        return await append(record)

    memory.append = dies  # type: ignore[method-assign]  # a crash at this very place
    with pytest.raises(asyncio.CancelledError):
        await dead.round()
    memory.append = append  # type: ignore[method-assign]
    other = Notifier(memory, told, clock)
    assert await other.round() == 0
    clock.advance(AGAIN - timedelta(seconds=1))
    assert await other.round() == 0
    clock.advance(1)
    assert (await other.round(), told.runs) == (1, ["payout-1"])


async def test_an_approval_that_is_asked_anew(memory: MemoryStore) -> None:
    """After its deadline passed and somebody retried it, people are told again."""
    clock, told = FakeClock(), Told()

    @flow(clock=clock, wait_limit=0)
    async def hurry(runner: Runner) -> None:
        await runner.approval("ok", timeout=10)

    notifier = Notifier(memory, told, clock)
    with pytest.raises(RunSuspended):
        await hurry.run(memory, run_id="run")
    assert await notifier.round() == 1
    clock.advance(11)
    with pytest.raises(StepFailed):
        await hurry.run(memory, run_id="run")
    await control.retry(memory, "run", clock=clock)
    with pytest.raises(RunSuspended):
        await hurry.run(memory, run_id="run")
    assert (await notifier.round(), told.runs) == (1, ["run", "run"])


async def test_the_log_stays_right_beside_it(store: Store) -> None:
    """What a notice records is none of the flow's: it shows as no step, is no drift, and goes along with a copy."""
    await ask(store)
    assert await app(store, user=signed_in, notify=Told()).notify_once() == 1
    assert (await control.status(store, "payout-1")).steps == 2
    await control.approve(store, "payout-1", "approve", by="alice")
    assert await payout.run(store, run_id="payout-1") == "paid by alice"
    copied = MemoryStore()
    await control.copy(store, "payout-1", copied)
    assert await copied.get("payout-1", mark_id("approve")) is not None


async def test_a_long_id(memory: MemoryStore) -> None:
    """A step's id may be as long as ids are."""
    told = Told()

    @flow(wait_limit=0)
    async def long(runner: Runner) -> None:
        await runner.approval("é" * 256)

    with pytest.raises(RunSuspended):
        await long.run(memory, run_id="run")
    page = app(memory, user=signed_in, notify=told)
    assert (await page.notify_once(), await page.notify_once()) == (1, 0)


@pytest.mark.parametrize("hook", [None, Told()], ids=["without", "with"])
async def test_as_long_as_the_page_is_served(memory: MemoryStore, hook: Told | None) -> None:
    """The lifespan looks for what is new, and ends with its context; without a hook it does nothing."""
    notify: Notify | None = hook
    page = app(memory, user=signed_in, notify=notify)
    await ask(memory)
    async with page.lifespan():
        if hook is None:
            assert len(asyncio.all_tasks()) == 1
            return
        async with asyncio.timeout(30):
            while not hook.runs:
                await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1


async def test_a_store_that_is_away_for_a_while(memory: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be looked at now is looked at again, and it is logged."""
    clock, told = FakeClock(), Told()
    await ask(memory)
    flows, away = memory.flows, True

    async def asked(*args: Any, **options: Any) -> Any:
        if away:
            raise ConnectionError("the store is away")
        return await flows(*args, **options)

    memory.flows = asked  # type: ignore[method-assign]  # a store that is away
    with caplog.at_level(logging.WARNING):
        async with Notifier(memory, told, clock).running(), asyncio.timeout(30):
            while "the store is away" not in caplog.text:
                await asyncio.sleep(0)
            away = False
            while not told.runs:
                await asyncio.sleep(0.001)
    assert told.runs == ["payout-1"]
