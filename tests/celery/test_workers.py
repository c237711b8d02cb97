"""Celery's workers drive runs: two real ones, one alone in its process and one with a pool of two."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from durable_core import control
from durable_core.store import OpenableStore, wakeups_of
from durable_core.sync import Store
from durable_core.sync import control as blocking
from tests.celery.conftest import Shop
from tests.celery.orders import ask, nap, parent, pdf, quick, without_asyncio


async def test_runs_that_are_asked_for_end(shop: Shop, store: OpenableStore) -> None:
    """`start` sends a task, and no sweep is needed; handlers of ends are called."""
    shop.two_workers()
    names = [f"run-{number}" for number in range(20)]
    for number, name in enumerate(names):
        await quick.start(store, name, number=number)
    await shop.ended(store, *names)
    assert [shop.effects[f"quick-{number}"] for number in range(20)] == [1] * 20
    shop.wait_until(lambda: all(shop.effects[f"{name}-told"] for name in names))


async def test_an_approval_lets_a_run_go_on_at_once(shop: Shop, store: OpenableStore) -> None:
    """A suspended run goes on within a second after somebody decided in a process that called `attach`; with children too."""
    shop.two_workers()
    took: list[timedelta] = []
    for number in range(3):
        await parent.start(store, f"run-{number}")
        await shop.stands(store, f"run-{number}", "waiting")
        await until_waiting(store, f"run-{number}/child")
        decision = await control.approve(store, f"run-{number}/child", "ok", by="alice")
        await shop.ended(store, f"run-{number}")
        end = await store.get(f"run-{number}", "$flow")
        assert end is not None
        took.append(end.ended_at - decision.ended_at)
    assert min(took) < timedelta(seconds=1), took


async def test_without_attach_the_next_sweep_finds_it(shop: Shop, store: OpenableStore, plain: OpenableStore) -> None:
    """A run that somebody let go on who knows nothing of Celery is found by the sweep."""
    shop.two_workers()
    await ask.start(store, "one", name="one")
    await until_waiting(store, "one")
    await control.approve(plain, "one", "ok", by="alice")
    await quick.start(plain, "two", number=2)
    shop.sweep()
    await shop.ended(store, "one", "two")


@pytest.mark.parametrize("settings", [{"sweep_every": 2.0}])
async def test_beat_sweeps_and_long_waits_end(shop: Shop, store: OpenableStore, plain: OpenableStore) -> None:
    """A long wait stands in the store meanwhile, and ends at its time; beat finds what others asked for."""
    workers = shop.two_workers()
    await nap.start(store, "one", seconds=7)
    await until_waiting(store, "one")
    shop.beat()
    await quick.start(plain, "two", number=2)
    await shop.ended(store, "one", "two")
    entries = {(record.step_id, record.revision): record for record in await store.list("one")}
    late = entries["nap", 1].ended_at - entries["nap", 0].until
    assert timedelta() <= late < timedelta(seconds=7)
    assert sum(worker.log.count("succeeded") for worker in workers) < 40


@pytest.mark.parametrize("settings", [{"sweep_every": 5.0}])
async def test_a_sweep_sends_a_task_before_its_time(shop: Shop, store: OpenableStore) -> None:
    """A long wait ends at its time, and not at the sweep after that: the one before it has sent a task."""
    shop.two_workers()
    await nap.start(store, "one", seconds=7)
    await until_waiting(store, "one")
    wait = await store.get("one", "nap")
    assert wait is not None
    assert wait.until is not None
    shop.wait_until(lambda: datetime.now(UTC) > wait.until - timedelta(seconds=4.5))
    shop.sweep()
    await shop.ended(store, "one")


async def test_early_and_doubled_tasks_do_nothing(shop: Shop, store: OpenableStore) -> None:
    """A task too many costs a look: nothing is driven, recorded or done twice."""
    shop.two_workers()
    await ask.start(store, "one", name="one")
    await until_waiting(store, "one")
    before = await store.list("one")
    for _ in range(30):
        shop.send("ask", "one")
        shop.send("quick", "not there")
    await quick.start(store, "two", number=2)
    for _ in range(30):
        shop.send("quick", "two")
    await shop.ended(store, "two")
    assert await store.list("one") == before
    await control.approve(store, "one", "ok", by="alice")
    await shop.ended(store, "one")
    assert shop.effects["one-decided"] == shop.effects["quick-2"] == 1


async def test_an_emptied_broker_loses_no_run(shop: Shop, store: OpenableStore) -> None:
    """The broker is emptied by hand; the sweep ends all runs, those that were asked for, suspended and decided."""
    worker = shop.worker("solo")
    worker.ready()
    for number in range(3):
        await ask.start(store, f"ask-{number}", name=f"ask-{number}")
        await until_waiting(store, f"ask-{number}")
    worker.kill()
    for number in range(3):
        await control.approve(store, f"ask-{number}", "ok", by="alice")
        await quick.start(store, f"quick-{number}", number=number)
    shop.broker.command("FLUSHALL")
    shop.two_workers()
    shop.sweep()
    await shop.ended(store, *(f"{kind}-{number}" for kind in ("ask", "quick") for number in range(3)))
    assert {shop.effects[f"ask-{number}-decided"] for number in range(3)} == {1}
    assert {shop.effects[f"quick-{number}"] for number in range(3)} == {1}


async def test_limits_hold_over_all_workers(shop: Shop, store: OpenableStore) -> None:
    """No more runs of a limit are driven at once than it allows; who finds no place looks again, and keeps no process busy."""
    shop.two_workers()
    names = [f"pdf-{number}" for number in range(10)]
    for number, name in enumerate(names):
        await pdf.start(store, name, number=number)
    await shop.ended(store, *names)
    now = most = 0
    for line, _ in shop.lines:
        now += line.startswith("pdf+") - line.startswith("pdf-") + line.startswith("pdf-") * line.endswith("-told")
        most = max(most, now)
    assert 1 <= most <= 2


async def test_a_run_asked_for_later_waits_in_the_store(shop: Shop, store: OpenableStore, plain: OpenableStore) -> None:
    """What is due beyond the next sweep is no task: it would only keep a worker's memory."""
    await quick.start(store, "one", at=3600, number=1)
    wakeups = wakeups_of(plain)
    assert wakeups is not None
    assert shop.broker.command("LLEN", "celery") == 0


async def test_a_broker_that_is_away_fails_no_call(shop: Shop, store: OpenableStore) -> None:
    """A run is asked for all the same, and the sweep finds it when the broker is back."""
    shop.broker.kill()
    await quick.start(store, "one", number=1)
    shop.broker.start()
    shop.two_workers()
    shop.sweep()
    await shop.ended(store, "one")
    assert shop.effects["quick-1"] == 1


async def until_waiting(store: OpenableStore, run_id: str) -> None:
    """Wait until a run is suspended: its process let it go."""
    async with asyncio.timeout(60):
        while True:
            flow = await store.get(run_id, "$flow")
            if flow is not None and flow.status == "waiting" and flow.notes.get("waiting_for"):
                return
            await asyncio.sleep(0.02)


def test_a_program_without_asyncio(shop: Shop) -> None:
    """A blocking flow, asked for and decided by a program that blocks, is driven by Celery's workers."""
    shop.two_workers()
    with Store(shop.carrier.open_store()) as store:
        without_asyncio.start(store, "one", name="one")
        shop.wait_until(lambda: [record.run_id for record in blocking.pending(store)] == ["one"])
        blocking.approve(store, "one", "ok", by="alice")
        assert blocking.result(store, "one", timeout=60) == "one"
    assert (shop.effects["one-alice"], shop.effects["quick-7"]) == (1, 1)
