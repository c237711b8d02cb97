"""Schedules when clocks change: three replicas start each tick of cronsim's list once, in both nights of Berlin."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from durable_core import Runner, control, flow, open_store
from durable_core.store import runs_of
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker
from durable_worker._cron import Cron
from tests.worker.replicas import MINUTE, Place, tick_of, ticks, utc

# Clocks go from 2:00 to 3:00 at 01:00 UTC of the first night, and from 3:00 to 2:00 at 01:00 UTC of the other.
NIGHTS = {"spring": utc("2026-03-28 18:00:30"), "autumn": utc("2026-10-24 18:00:30")}
NIGHT = timedelta(hours=15)
COUNTS = {
    "* * * * *": {"spring": 900, "autumn": 900},
    "@hourly": {"spring": 15, "autumn": 15},
    "30 2 * * *": {"spring": 1, "autumn": 1},
    "0 9 * * *": {"spring": 1, "autumn": 1},
    "0,30 1-3 * * *": {"spring": 4, "autumn": 6},
    "*/20 2 * * *": {"spring": 0, "autumn": 6},
    "15 */2 * * *": {"spring": 7, "autumn": 8},
}


@pytest.mark.parametrize(
    ("expression", "spring", "autumn"),
    [
        ("30 2 * * *", ["01:00"], ["00:30"]),  # 3:00; the first 2:30
        ("0 9 * * *", ["07:00"], ["08:00"]),
        ("0 */2 * * *", ["01:00:skipped", "02:00"], ["00:00", "01:00"]),
    ],
)
def test_fixed_times_come_once_and_hourly_ones_in_both_hours(expression: str, spring: list[str], autumn: list[str]) -> None:
    """A fixed time fires once in autumn and at the next possible minute in spring; one with a star fires where it fits."""
    for day, times in (("2026-03-29", spring), ("2026-10-25", autumn)):
        found = [
            f"{tick:%H:%M}" for tick in ticks(expression, "Europe/Berlin", utc(f"{day} 00:00") - MINUTE, utc(f"{day} 09:00"))
        ]
        for time in times:
            assert (time.partition(":skipped")[0] in found) is not time.endswith("skipped")


@pytest.mark.parametrize("night", NIGHTS)
@pytest.mark.parametrize("expression", COUNTS)
async def test_three_replicas_start_each_tick_once(expression: str, night: str) -> None:
    """Whoever looks, and in whatever order: what was asked for is cronsim's list, each once."""
    begin = NIGHTS[night]
    place = Place(begin)
    replicas = [place.replica(expression) for _ in range(3)]
    while place.clock.now() < begin + NIGHT:
        await asyncio.gather(*(replica.tick() for replica in replicas))
        place.clock.advance(25)
        replicas.append(replicas.pop(0))
    expected = ticks(expression, "Europe/Berlin", begin, begin + NIGHT)
    assert place.started == expected
    assert len(expected) == COUNTS[expression][night]


@pytest.mark.parametrize("night", NIGHTS)
@pytest.mark.parametrize("scheme", ["file", "sqlite"])
async def test_three_replicas_on_a_real_store(scheme: str, night: str, tmp_path: Path) -> None:
    """Each replica has the files open for itself, and the operating system's locks are between them."""
    begin = NIGHTS[night] + timedelta(hours=5)
    clock = FakeClock(begin)
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(f"{scheme}:{tmp_path / 'runs'}")) for _ in range(3)]
        replicas = [Place(begin, store, clock).replica() for store in stores]
        asked = sum([await replica.tick() for replica in replicas])
        while clock.now() < begin + timedelta(hours=4):
            clock.advance(50)
            asked += sum(await asyncio.gather(*(replica.tick() for replica in replicas)))
            replicas.append(replicas.pop(0))
        expected = ticks("* * * * *", "Europe/Berlin", begin, clock.now())
        listing = runs_of(stores[0])
        assert listing is not None
        assert sorted([tick_of(run_id) async for run_id in listing.runs("settle@")]) == expected
        assert asked == len(expected) == 240


@pytest.mark.parametrize("night", NIGHTS)
async def test_three_workers_run_each_tick_once(night: str) -> None:
    """From tick to effect: workers that work by themselves through the night, each with its own schedule."""
    calls: Counter[str] = Counter()

    @flow
    async def count(runner: Runner) -> None:
        await runner.step("count", lambda: calls.update([runner.run_id]), returns=None)

    begin = NIGHTS[night] + timedelta(hours=5)
    clock = FakeClock(begin)
    store = MemoryStore(clock=clock)
    workers = [Worker(store, [count], clock=clock, poll=poll) for poll in (7, 11, 13)]
    for worker in workers:
        worker.cron("* * * * *", count, timezone="Europe/Berlin")
    async with workers[0], workers[1], workers[2]:
        await clock.sleep(timedelta(hours=3).total_seconds())
    expected = ticks("* * * * *", "Europe/Berlin", begin, clock.now() - MINUTE)
    assert sorted(map(tick_of, calls))[: len(expected)] == expected
    assert {*calls.values()} == {1}
    statuses = {run.status async for run in control.runs(store)}
    assert statuses == {"succeeded"}


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Africa/Cairo", "America/Havana", "Antarctica/Troll"])
def test_ticks_are_the_same_wherever_one_begins(zone: str) -> None:
    """The next tick after any minute around a change of clocks is the next one of a list that began before."""
    for begin in map(utc, ("2026-03-07 20:00", "2026-03-28 12:00", "2026-04-23 12:00", "2026-10-24 12:00", "2026-10-31 20:00")):
        for expression in ("30 2 * * *", "0 0 * * *", "*/20 1-3 * * *", "0 * * * *", "0 0 1 * *"):
            cron = Cron(expression, zone)
            listed = ticks(expression, zone, begin, begin + timedelta(days=3))
            moment = begin
            while moment < begin + timedelta(hours=20):
                rest = [tick for tick in listed if tick > moment]
                if rest:
                    assert cron.after(moment) == rest[0]
                moment += timedelta(minutes=7)


@pytest.mark.parametrize("expression", ["* * * * *", "30 2 * * *", "@hourly", "0 0 1 * *", "0 12 29 2 *", "*/7 3 * * 1"])
def test_the_newest_tick_is_found_without_walking(expression: str) -> None:
    """Of a year or of a minute that was missed: it is the last one of the list."""
    cron = Cron(expression, "Europe/Berlin")
    until = utc("2026-10-25 01:17:20")
    for missed in (timedelta(seconds=20), timedelta(minutes=3), timedelta(hours=5), timedelta(days=8), timedelta(days=40)):
        listed = ticks(expression, "Europe/Berlin", until - missed, until)
        assert cron.newest(until - missed, until) == (listed[-1] if listed else None)
    assert cron.newest(until - timedelta(days=3000), until) is not None


def test_a_run_id_tells_the_two_hours_apart() -> None:
    """2:30 comes twice in autumn; in UTC it is 00:30 and 01:30."""
    both = ticks("30 * * * *", "Europe/Berlin", utc("2026-10-25 00:00"), utc("2026-10-25 02:00"))
    assert both == [utc("2026-10-25 00:30"), utc("2026-10-25 01:30")]
    assert isinstance(both[0], datetime)
