"""Schedules through crashes, pauses and deploys: no tick twice, and none from the past."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from durable_core import StepRecord
from durable_core.errors import LockLost, StoreError
from durable_core.store import Lease
from durable_core.stores.memory import MemoryStore
from durable_worker import _schedules
from durable_worker._schedules import Schedules
from tests.worker.replicas import MINUTE, Killed, Place, Seen, settle, utc

BEGIN = utc("2026-06-01 12:00:30")
CALLS = 14  # more than a tick has


async def until(place: Place, moment: datetime, *replicas: Schedules, every: float = 10) -> None:
    """Let time pass, and replicas look."""
    while place.clock.now() < moment:
        for replica in replicas:
            await replica.tick()
        place.clock.advance(every)
    for replica in replicas:
        await replica.tick()


async def killed(replica: Schedules) -> bool:
    """Look once; tell whether the process was killed meanwhile."""
    try:
        await replica.tick()
    except BaseExceptionGroup as group:
        return group.split(Killed)[1] is None
    return False


@pytest.mark.parametrize("kill_at", range(1, CALLS))
@pytest.mark.parametrize("catch_up", ["none", "last"])
async def test_a_process_dies_between_two_calls_and_another_goes_on(kill_at: int, catch_up: str) -> None:
    """Each tick is started once, whichever call of the store was the last one; the first looks of all may be cut off, too."""
    place = Place(BEGIN)
    other = place.replica(catch_up=catch_up)
    await other.tick()
    place.clock.advance(40)
    assert await killed(place.replica(catch_up=catch_up, kill_at=kill_at)) is (kill_at < 12)
    await other.tick()
    place.clock.advance(60)
    await other.tick()
    assert place.started == [utc("2026-06-01 12:01"), utc("2026-06-01 12:02")]


@pytest.mark.parametrize("kill_at", range(1, 5))
async def test_a_process_dies_as_it_sees_a_schedule_for_the_first_time(kill_at: int) -> None:
    """What it recorded or not, the next one begins with the next tick."""
    place = Place(BEGIN)
    assert await killed(place.replica(kill_at=kill_at)) is (kill_at < 5)
    await until(place, utc("2026-06-01 12:02:30"), place.replica())
    assert place.started == [utc("2026-06-01 12:01"), utc("2026-06-01 12:02")]


@pytest.mark.parametrize("kill_at", range(1, CALLS))
async def test_a_process_dies_as_a_log_begins_anew(kill_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that nobody needs are cleared with the lock held; where that is cut off no tick comes twice."""
    monkeypatch.setattr(_schedules, "_MOST", 3)
    place = Place(BEGIN)
    first = place.replica()
    await until(place, utc("2026-06-01 12:03:30"), first)
    latest = await place.memory.get("$cron/settle", "$cron")
    assert latest is not None
    assert latest.revision == 3
    place.clock.advance(30)
    await killed(place.replica(kill_at=kill_at))
    await until(place, utc("2026-06-01 12:08:30"), place.replica())
    assert place.started == [utc("2026-06-01 12:01") + n * MINUTE for n in range(8)]
    assert len(await place.memory.list("$cron/settle")) <= 4


class Freezing(Seen):
    """A store without locks, whose process freezes before one call until it is thawed."""

    lock = None  # type: ignore[assignment]  # it has none

    def __init__(self, place: Place) -> None:
        super().__init__(place.memory, place.begun)
        self.freeze_at = 0
        self.thawed = asyncio.Event()
        self.frozen = asyncio.Event()

    async def _may_freeze(self) -> None:
        if self.calls + 1 == self.freeze_at:
            self.frozen.set()
            await self.thawed.wait()

    async def append(self, record: StepRecord) -> StepRecord:
        await self._may_freeze()
        return await super().append(record)

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        await self._may_freeze()
        return await super().get(run_id, step_id)


@pytest.mark.parametrize("freeze_at", range(1, CALLS))
async def test_without_locks_the_slots_decide(freeze_at: int) -> None:
    """A process that slept through two ticks, in the middle of one, goes on without harm."""
    place = Place(BEGIN)
    frozen, other = Freezing(place), Freezing(place)
    sleeper = Place(BEGIN, frozen, place.clock).replica()
    waker = Place(BEGIN, other, place.clock).replica()
    await sleeper.tick()
    frozen.freeze_at = frozen.calls + freeze_at
    place.clock.advance(40)
    look = asyncio.create_task(sleeper.tick())
    await asyncio.wait([look, waiting := asyncio.create_task(frozen.frozen.wait())], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await until(place, utc("2026-06-01 12:02:30"), waker)
    frozen.thawed.set()
    await look
    await until(place, utc("2026-06-01 12:04:30"), sleeper, waker)
    assert place.started == [utc("2026-06-01 12:01") + n * MINUTE for n in range(4)]


async def test_without_locks_the_slots_decide_what_is_recorded() -> None:
    """A process that lost the slot to a newer entry looks again, and leaves what it reads there."""
    place = Place(BEGIN)
    frozen, other = Freezing(place), Freezing(place)
    sleeper, waker = Place(BEGIN, frozen, place.clock).replica("*/2 * * * *"), Place(BEGIN, other, place.clock).replica()
    frozen.freeze_at = 3  # as it is about to record that it saw the schedule
    look = asyncio.create_task(sleeper.tick())
    await frozen.frozen.wait()
    await waker.tick()
    frozen.thawed.set()
    await look
    latest = await place.memory.get("$cron/settle", "$cron")
    assert latest is not None
    assert [version["expression"] for version in latest.value()] == ["* * * * *", "*/2 * * * *"]


async def test_a_process_that_lost_its_lock_starts_nothing() -> None:
    """Frozen for longer than its lease, it comes back after another has started the tick, and its run was cleaned up."""

    class Lost(Seen):
        @asynccontextmanager
        async def lock(self, run_id: str) -> AsyncIterator[Lease]:
            class Gone(Lease):
                def check(self) -> None:
                    raise LockLost("another holder took it over")

            yield Gone()

    place = Place(BEGIN)
    await place.replica().tick()
    place.clock.advance(40)
    assert await Place(BEGIN, Lost(place.memory, place.begun), place.clock).replica().tick() == 0
    assert place.started == []


async def test_a_lock_that_a_dead_process_still_holds_delays_a_tick() -> None:
    """A lease runs out after some time; the tick is young enough then."""
    place = Place(BEGIN)
    replica = place.replica()
    await replica.tick()
    place.clock.advance(31)
    async with place.memory.lock("$cron/settle"):
        assert await replica.tick() == 0
        place.clock.advance(30)
        assert await replica.tick() == 0
    assert await replica.tick() == 1
    assert place.started == [utc("2026-06-01 12:01")]


@pytest.mark.parametrize(
    ("catch_up", "away", "started"),
    [
        ("none", timedelta(minutes=59), []),
        ("none", timedelta(hours=1, seconds=29), ["13:30"]),
        ("none", timedelta(hours=1, seconds=31), ["13:30"]),
        ("none", timedelta(hours=1, minutes=1), []),
        ("none", timedelta(days=40, minutes=5), []),
        ("last", timedelta(minutes=59), []),
        ("last", timedelta(hours=1, minutes=1), ["13:30"]),
        ("last", timedelta(hours=7, minutes=5), ["19:30"]),
        ("last", timedelta(days=40, minutes=5), ["12:30"]),
    ],
)
async def test_what_was_missed(catch_up: str, away: timedelta, started: list[str]) -> None:
    """`none` starts what is younger than the visibility timeout, and `last` also the newest tick that was missed."""
    place = Place(utc("2026-06-01 12:30"))
    await place.replica("30 * * * *", catch_up=catch_up, timezone="UTC").tick()
    place.clock.advance(away)
    replica = place.replica("30 * * * *", catch_up=catch_up, timezone="UTC")
    await replica.tick()
    assert [f"{tick:%H:%M}" for tick in place.started] == started
    await until(place, place.clock.now() + timedelta(hours=1), replica, every=30)
    assert len(place.started) == len(started) + 1


async def test_nothing_is_started_from_before_the_first_look() -> None:
    """A schedule begins when it is first seen, whatever it would have caught up with."""
    place = Place(BEGIN)
    assert await place.replica(catch_up="last", young=3600).tick() == 0
    assert place.started == []


async def test_runs_that_were_cleaned_up_do_not_come_back() -> None:
    """The schedule's own log knows what was started, in other processes too."""
    place = Place(BEGIN)
    replica = place.replica(young=3600, catch_up="last")
    await until(place, utc("2026-06-01 12:05:30"), replica)
    await place.clean()
    await until(place, utc("2026-06-01 12:08:30"), replica, place.replica(young=3600, catch_up="last"))
    assert place.started == [utc("2026-06-01 12:01") + n * MINUTE for n in range(8)]


async def test_two_versions_of_a_schedule_run_side_by_side() -> None:
    """While a deploy is under way, each version's ticks are started by the workers that have it, those of both once."""
    place = Place(BEGIN)
    old, new = place.replica("*/2 * * * *"), place.replica("*/3 * * * *")
    await until(place, utc("2026-06-01 12:12:30"), old, new)
    assert [tick.minute for tick in place.started] == [2, 3, 4, 6, 8, 9, 10, 12]
    await until(place, utc("2026-06-01 12:18:30"), new)
    assert [tick.minute for tick in place.started][8:] == [15, 18]


@pytest.mark.parametrize("catch_up", ["none", "last"])
async def test_a_schedule_that_is_changed_and_changed_back_starts_nothing_from_the_past(catch_up: str) -> None:
    """What the version before would have started meanwhile was not missed."""
    place = Place(BEGIN)
    options: dict[str, Any] = {"catch_up": catch_up}
    await until(place, utc("2026-06-01 12:03:30"), place.replica("*/2 * * * *", **options))
    await place.clean()
    await until(place, utc("2026-06-01 12:20:30"), place.replica("*/5 * * * *", **options))
    await place.clean()
    await until(place, utc("2026-06-01 12:23:30"), place.replica("*/2 * * * *", **options))
    assert [tick.minute for tick in place.started] == [2, 5, 10, 15, 20, 22]


async def test_another_zone_is_another_version() -> None:
    """Nine o'clock in London is not made up for when a schedule moves there at noon."""
    place = Place(utc("2026-06-01 06:00"))
    await until(place, utc("2026-06-01 12:00"), place.replica("0 9 * * *", catch_up="last"), every=300)
    replica = place.replica("0 9 * * *", timezone="Europe/London", catch_up="last")
    await until(place, utc("2026-06-02 12:00"), replica, every=300)
    assert place.started == [utc("2026-06-01 07:00"), utc("2026-06-02 08:00")]


async def test_the_same_schedule_written_otherwise_is_not_changed() -> None:
    """Spaces, names of days and `@` words are not compared."""
    place = Place(utc("2026-06-01 06:00"))
    await place.replica("@daily", catch_up="last").tick()
    place.clock.advance(timedelta(days=2))
    assert await place.replica("  0 0  * * *", catch_up="last").tick() == 1


@pytest.mark.parametrize("catch_up", ["none", "last"])
async def test_a_schedule_with_a_new_name_starts_nothing_from_the_past(catch_up: str) -> None:
    """Another name is another schedule."""
    place = Place(BEGIN)
    await until(place, utc("2026-06-01 12:02:30"), place.replica(catch_up=catch_up))
    place.clock.advance(timedelta(hours=1))
    replica = place.replica(name="new", catch_up=catch_up)
    await until(place, utc("2026-06-01 13:03:00"), replica)
    assert sorted(place.begun)[:1] == ["new@2026-06-01T13:03Z"]
    assert len(place.started) == 3


async def test_a_schedule_that_was_taken_out_and_put_in_again_starts_nothing_from_the_past() -> None:
    """Without `catch_up`, what it did not start meanwhile is left out."""
    place = Place(BEGIN)
    await until(place, utc("2026-06-01 12:02:30"), place.replica())
    await place.clean()
    place.clock.advance(timedelta(days=3))
    await until(place, utc("2026-06-04 12:04:00"), place.replica())
    assert place.started[2:] == [utc("2026-06-04 12:02"), utc("2026-06-04 12:03"), utc("2026-06-04 12:04")]


async def test_clocks_that_differ_and_a_clock_that_is_set_back() -> None:
    """The schedule goes on from the latest tick that was started; who is behind waits, and warns if it is by much."""
    place = Place(BEGIN)
    ahead = place.replica()
    late = Place(BEGIN - timedelta(hours=1), Seen(place.memory, place.begun)).replica(catch_up="last")
    await until(place, utc("2026-06-01 12:02:30"), ahead)
    assert await late.tick() == 0
    place.clock.jump(timedelta(minutes=-2))
    await until(place, utc("2026-06-01 12:04:30"), ahead)
    assert place.started == [utc("2026-06-01 12:01") + n * MINUTE for n in range(4)]


async def test_a_clock_that_was_far_ahead_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Ticks until then are taken as done; a warning says what to do if that clock was wrong, and doing it helps."""
    place = Place(BEGIN)
    replica = place.replica()
    await replica.tick()
    place.clock.jump(timedelta(days=1000))
    await replica.tick()
    place.clock.jump(timedelta(days=-1000))
    with caplog.at_level(logging.WARNING, "durable_worker"):
        await until(place, utc("2026-06-01 12:02:30"), replica)
    assert caplog.text.count("by a clock that is ahead of this one") == 1
    assert "clear the log '$cron/settle'" in caplog.text
    assert place.started == [utc("2029-02-25 12:00")]
    await place.memory.clear("$cron/settle")
    await until(place, utc("2026-06-01 12:04:30"), place.replica())
    assert place.started[:2] == [utc("2026-06-01 12:03"), utc("2026-06-01 12:04")]


class Away(MemoryStore):
    """A store that is away when it is told to be, as a whole or for one run."""

    gone: str | None = None

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        if self.gone is not None and run_id.startswith(self.gone):
            raise StoreError("the store is away")
        return await super().get(run_id, step_id)


async def test_a_store_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log for each outage, and the tick is started once the store is back."""
    store = Away()
    place = Place(BEGIN, store)
    replica = place.replica()
    await replica.tick()
    for _ in range(2):
        store.gone = ""
        await until(place, place.clock.now() + timedelta(seconds=50), replica, every=0.5)
        store.gone = None
        await until(place, place.clock.now() + timedelta(seconds=20), replica, every=0.5)
    assert caplog.text.count("schedule 'settle' could not continue") == 2
    runs = [run_id async for run_id in store.runs("settle@")]
    assert sorted(runs) == ["settle@2026-06-01T12:01Z", "settle@2026-06-01T12:02Z"]


async def test_one_bad_schedule_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """A log that can't be read, and an input that fails: both are logged, and the others start their runs."""
    store = Away()
    store.gone = "$cron/unreadable"
    place = Place(BEGIN, store)
    schedules = place.replica(name="good")

    def fails(tick: datetime) -> dict[str, Any]:
        if tick.minute == 1:
            raise LookupError("no such day")
        return {"day": 5} if tick.minute == 2 else {"day": "ok"} if tick.minute == 3 else None  # type: ignore[return-value]

    options: dict[str, Any] = {"timezone": "UTC", "catch_up": "none"}
    schedules.add("* * * * *", settle, name="failing", input=fails, **options)
    schedules.add("* * * * *", settle, name="unreadable", input=None, **options)
    await until(place, utc("2026-06-01 12:04:30"), schedules)
    runs = [run_id async for run_id in store.runs() if not run_id.startswith("$")]
    assert sorted(runs) == ["failing@2026-06-01T12:03Z", *(f"good@2026-06-01T12:0{n}Z" for n in range(1, 5))]
    assert caplog.text.count("is left out, its input failed") == 3
    for told in (
        "no such day",
        "input 'day' of flow 'settle' does not fit its annotation str",
        "must be a mapping of the flow's parameters, not None",
    ):
        assert told in caplog.text
    assert caplog.text.count("schedule 'unreadable' could not continue") == 1


async def test_a_run_that_is_there_with_other_input_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A function of the tick may return something else in the next life; the run that was asked for keeps its input."""
    place = Place(BEGIN)
    await place.replica().tick()
    place.clock.advance(40)
    await killed(place.replica(input=lambda tick: {"day": "first"}, kill_at=10))
    assert place.started == [utc("2026-06-01 12:01")]
    assert await place.replica(input=lambda tick: {"day": "second"}).tick() == 0
    known = await place.memory.get("settle@2026-06-01T12:01Z", "$flow")
    assert known is not None
    assert known.notes["input"] == {"day": "first"}
    assert not caplog.records


async def test_a_run_is_woken_whose_starter_died(caplog: pytest.LogCaptureFixture) -> None:
    """Killed after the run was recorded and before a worker was woken: the next look wakes one at once."""
    place = Place(BEGIN)
    other = place.replica()
    await other.tick()
    place.clock.advance(40)
    await killed(place.replica(kill_at=8))
    assert place.started == [utc("2026-06-01 12:01")]
    assert await place.memory.take_wakeups(["settle"], limit=9, visibility_timeout=MINUTE) == []
    await other.tick()
    (woken,) = await place.memory.take_wakeups(["settle"], limit=9, visibility_timeout=MINUTE)
    assert woken.run_id == "settle@2026-06-01T12:01Z"


async def test_a_look_costs_nothing_while_no_time_has_come() -> None:
    """The store is asked when a tick is due, once by each replica and again by the one that starts it."""
    place = Place(BEGIN)
    store = Seen(place.memory, place.begun)
    replica = Place(BEGIN, store, place.clock).replica("@hourly")
    await replica.tick()
    seen = store.calls
    await until(place, utc("2026-06-01 12:59:50"), replica, every=0.5)
    assert store.calls == seen
    await until(place, utc("2026-06-01 13:00:00"), replica)
    assert store.calls > seen


async def test_the_log_of_a_schedule_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins anew after so many entries, with what it knew."""
    monkeypatch.setattr(_schedules, "_MOST", 10)
    place = Place(BEGIN)
    replicas = [place.replica(), place.replica("*/7 * * * *")]
    longest = 0
    while place.clock.now() < BEGIN + timedelta(hours=2):
        for replica in replicas:
            await replica.tick()
        longest = max(longest, len(await place.memory.list("$cron/settle")))
        place.clock.advance(30)
    assert longest == 11
    assert len(place.started) == 120
    latest = await place.memory.get("$cron/settle", "$cron")
    assert latest is not None
    assert {version["first_seen"] for version in latest.value()} == {"2026-06-01T12:00:30Z"}
