"""Looking at runs that somebody else names: what isn't known afterwards is looked at again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from durable_core import Runner, control, flow
from durable_core.errors import CorruptLog, StoreError
from durable_core.record import StepRecord
from durable_core.store import WakeUp
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker
from durable_worker._on_demand import OnDemand


@flow
async def greet(runner: Runner, name: str) -> str:
    return await runner.step("greet", lambda: f"hello {name}")


@flow(concurrency=("pdf", 1))
async def draw(runner: Runner) -> None:
    await runner.step("draw", lambda: None, returns=None)


class Store(MemoryStore):
    """May be away, or hold a damaged log."""

    error: Exception | None = None

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        if self.error is not None:
            raise self.error
        return await super().get(run_id, step_id)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(clock=clock)


@pytest.fixture
def loop(store: Store, clock: FakeClock) -> OnDemand:
    worker = Worker(store, [greet.options(clock=clock), draw.options(clock=clock)], clock=clock)
    return OnDemand(worker._loop, since=clock.now(), longest=54)


async def asked(store: Store, clock: FakeClock) -> None:
    """Ask for a run, and take the wake-ups of that away."""
    await greet.options(clock=clock).start(store, "one", name="Ada")
    await store.clear_wakeups(await taken(store))


async def taken(store: Store) -> Sequence[WakeUp]:
    return await store.take_wakeups(["greet", "draw", "gone"], limit=99, visibility_timeout=timedelta(seconds=1))


async def test_a_look_drives_a_run_to_its_end(store: Store, clock: FakeClock, loop: OnDemand) -> None:
    """A run that could go on goes on; a look at one that has ended, or that isn't there, does nothing."""
    await asked(store, clock)
    await loop.look("one", "greet")
    assert (await control.status(store, "one")).result == "hello Ada"
    before = await store.list("one")
    await loop.look("one", "greet")
    await loop.look("nobody", "greet")
    clock.advance(600)
    assert (await store.list("one"), await taken(store)) == (before, [])


async def test_a_busy_run_is_looked_at_again(store: Store, clock: FakeClock, loop: OnDemand) -> None:
    """Whose lock is held elsewhere is looked at later, the later the longer it stands so; many looks ask for one more."""
    await asked(store, clock)
    async with store.lock("one"):
        for _ in range(5):
            await loop.look("one", "greet")
        assert not await taken(store)
        clock.advance(1)
        (wakeup,) = await taken(store)
        await store.clear_wakeups([wakeup])
        clock.advance(3600)
        await loop.look("one", "greet")
        clock.advance(30)
        assert not await taken(store)
        clock.advance(25)
        assert [each.run_id for each in await taken(store)] == ["one"]
    await loop.look("one", "greet")
    assert (await control.status(store, "one")).status == "succeeded"


async def test_a_run_without_a_place_is_looked_at_again(store: Store, clock: FakeClock, loop: OnDemand) -> None:
    """A look waits for no place of a limit, which would keep a process from other runs."""
    await draw.options(clock=clock).start(store, "one")
    await store.clear_wakeups(await taken(store))
    async with asyncio.timeout(30), store.lock("$limit/pdf/0"):
        await loop.look("one", "draw")
    clock.advance(1)
    (wakeup,) = await taken(store)
    await loop.look("one", wakeup.flow)
    assert (await control.status(store, "one")).status == "succeeded"


async def test_a_flow_that_is_not_here_is_looked_at_again(store: Store, clock: FakeClock, loop: OnDemand) -> None:
    """While a deploy is under way another process has the flow; a look is no hot loop."""
    await loop.look("one", "gone")
    assert not await taken(store)
    clock.advance(54)
    assert [each.flow for each in await taken(store)] == ["gone"]


async def test_a_store_that_is_away_is_asked_again(store: Store, clock: FakeClock, loop: OnDemand) -> None:
    """Nothing is known of the run, so another look is asked for."""
    await asked(store, clock)
    store.error = StoreError("away")
    await loop.look("one", "greet")
    store.error = None
    clock.advance(54)
    assert [each.run_id for each in await taken(store)] == ["one"]


async def test_a_damaged_log_is_left_alone(
    store: Store, clock: FakeClock, loop: OnDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't be mended by looking: the sweep finds the run again, and here it is looked at after a minute."""
    await asked(store, clock)

    async def damaged(run_id: str) -> Sequence[StepRecord]:
        raise CorruptLog("line 3 is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(store, "list", damaged)
        await loop.look("one", "greet")
    await loop.look("one", "greet")
    assert (await control.status(store, "one")).status == "waiting"
    assert not await taken(store)
    clock.advance(61)
    assert [record.run_id async for record in loop.due()] == ["one"]
    await loop.look("one", "greet")
    assert (await control.status(store, "one")).status == "succeeded"


async def test_who_stops_hands_every_run_on(store: Store, clock: FakeClock, loop: OnDemand) -> None:
    """A look after the end drives nothing, and others are asked to look at once."""
    await asked(store, clock)
    await loop.end()
    await loop.look("one", "greet")
    assert (await control.status(store, "one")).status == "waiting"
    assert [each.run_id for each in await taken(store)] == ["one"]


def test_what_was_deployed_later_tries_parked_runs_once_more(store: Store) -> None:
    """The time of the deploy counts, not that of a process, since a pool makes new ones all the time."""
    since = datetime(2026, 1, 1, tzinfo=UTC)
    worker = Worker(store, [greet])
    assert OnDemand(worker._loop, since=since, longest=54)._began == since
