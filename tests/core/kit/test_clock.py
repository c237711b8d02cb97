"""Time: the clock of the machine, and the one for tests in which a day passes in no time."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from durable_core.clock import Clock, SystemClock
from durable_core.testing import FakeClock

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = 3_600.0


def passed(clock: Clock) -> float:
    """Return the seconds of the day that have passed."""
    return (clock.now() - START).total_seconds()


class TestFakeClock:
    async def test_sleepers_wake_in_the_order_of_their_time(self) -> None:
        """Whoever sleeps for less wakes first, at the time it asked for, whatever the order in which they fell asleep."""
        clock, woken = FakeClock(START), list[tuple[str, float]]()

        async def sleeper(name: str, *naps: float) -> None:
            for nap in naps:
                await clock.sleep(nap)
                woken.append((name, passed(clock)))

        await asyncio.gather(sleeper("long", 100), sleeper("naps", 30, 30, 30, 30), sleeper("short", 45))
        assert woken == [("naps", 30), ("short", 45), ("naps", 60), ("naps", 90), ("long", 100), ("naps", 120)]
        assert clock.monotonic() == 120

    async def test_delays_that_run_at_once_take_the_time_of_one(self) -> None:
        """Five parallel delays of an hour take an hour."""
        clock = FakeClock(START)
        await asyncio.gather(*(clock.sleep(HOUR) for _ in range(5)))
        assert passed(clock) == clock.monotonic() == HOUR

    async def test_time_stands_still_while_somebody_works(self) -> None:
        """A task that goes on without sleeping, through several turns of the loop, sees the time at which it began."""
        clock = FakeClock(START)
        sleeper = asyncio.create_task(clock.sleep(HOUR))
        for _ in range(5):
            await asyncio.sleep(0)
            assert passed(clock) == 0
        await sleeper
        assert passed(clock) == HOUR

    async def test_a_month_passes_in_one_sleep(self) -> None:
        """Sleeping until a moment goes there at once, however far away it is."""
        clock, naps = FakeClock(START), list[float]()
        clock.sleep = naps.append  # type: ignore[assignment, method-assign]  # no nap on the way
        began = time.perf_counter()
        await clock.sleep_until(START + timedelta(days=30))
        assert time.perf_counter() - began < 1
        assert not naps
        assert passed(clock) == clock.monotonic() == timedelta(days=30).total_seconds()

    async def test_who_sleeps_for_a_time_and_who_sleeps_until_one_wake_in_order(self) -> None:
        """Both kinds of sleep share one time."""
        clock, woken = FakeClock(START), list[float]()

        async def until(seconds: float) -> None:
            await clock.sleep_until(START + timedelta(seconds=seconds))
            woken.append(passed(clock))

        async def nap(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(passed(clock))

        await asyncio.gather(until(40), nap(30), until(20), nap(10))
        assert woken == [10, 20, 30, 40]

    async def test_a_cancelled_sleeper_moves_no_time(self) -> None:
        """The time of a sleep that was given up is not waited for."""
        clock = FakeClock(START)
        given_up = asyncio.create_task(clock.sleep(10))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await clock.sleep(HOUR)
        assert passed(clock) == HOUR
        for _ in range(50):
            await asyncio.sleep(0)
        assert passed(clock) == HOUR

    async def test_advance_wakes_those_whose_time_has_come(self) -> None:
        """The test may let time pass itself; whoever is not due sleeps on for the rest."""
        clock, woken = FakeClock(START), list[tuple[float, float]]()

        async def nap(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append((seconds, passed(clock)))

        sleepers = [asyncio.create_task(nap(seconds)) for seconds in (5, 50)]
        sleepers.append(asyncio.create_task(clock.sleep_until(START + timedelta(seconds=20))))
        await asyncio.sleep(0)
        clock.advance(timedelta(seconds=20))
        for _ in range(4):
            await asyncio.sleep(0)
        assert woken == [(5, 20)]
        assert sleepers[2].done()
        await asyncio.gather(*sleepers)
        assert woken == [(5, 20), (50, 50)]

    async def test_a_jump_wakes_only_those_who_sleep_until_a_time_of_day(self) -> None:
        """Setting a machine's clock shortens no pause; setting it back makes the time of day come later."""
        clock = FakeClock(START)
        nap = asyncio.create_task(clock.sleep(30))
        until = asyncio.create_task(clock.sleep_until(START + timedelta(hours=1)))
        await asyncio.sleep(0)
        clock.jump(timedelta(hours=-1))
        await nap
        assert clock.monotonic() == 30
        assert not until.done()
        clock.jump(timedelta(hours=2))
        await until
        assert clock.monotonic() == 30

    async def test_it_goes_on_around_work_in_threads(self) -> None:
        """A sleeper wakes while others wait for a thread, and they see their results."""
        clock = FakeClock(START)

        async def work() -> int:
            found = 0
            for number in range(5):
                found += await asyncio.to_thread(pow, number, 2)
                await clock.sleep(1)
            return found

        results = await asyncio.gather(work(), work(), clock.sleep(HOUR))
        assert results == [30, 30, None]
        assert passed(clock) >= HOUR

    def test_it_serves_one_loop_after_another(self) -> None:
        """A clock outlives the loop that it was first used on, and the sleepers that were left there."""
        clock = FakeClock(START)

        async def leave() -> None:
            clock.sleeper = asyncio.create_task(clock.sleep(HOUR))  # type: ignore[attr-defined]
            await asyncio.sleep(0)

        asyncio.run(leave())
        asyncio.run(clock.sleep(7))
        assert passed(clock) == 7

    async def test_no_time_at_all_lets_others_run(self) -> None:
        """A sleep of nothing, or until a time that has come, gives others a turn and moves no time."""
        clock, turns = FakeClock(START), list[str]()

        async def other() -> None:
            turns.append("other")

        for pause in (clock.sleep(0), clock.sleep(-1), clock.sleep_until(START), clock.sleep_until(START - timedelta(days=1))):
            task = asyncio.create_task(other())
            await pause
            await task
        assert turns == ["other"] * 4
        assert passed(clock) == 0

    async def test_a_sleep_beyond_the_calendar(self) -> None:
        """It is refused where it is asked for."""
        with pytest.raises(OverflowError):
            await FakeClock(START).sleep(1e12)


class TestSleepUntil:
    async def test_the_time_of_day_is_read_again(self) -> None:
        """A clock of one's own sleeps at most 30 s at a time, and notices when it is set."""

        class Own(Clock):
            def __init__(self) -> None:
                self.naps: list[float] = []
                self.day = START

            def now(self) -> datetime:
                return self.day

            def monotonic(self) -> float:
                return sum(self.naps)

            async def sleep(self, seconds: float) -> None:
                self.naps.append(seconds)
                self.day += timedelta(seconds=seconds)
                if len(self.naps) == 2:
                    self.day += timedelta(hours=1)

        clock = Own()
        await clock.sleep_until(START + timedelta(hours=1, seconds=70))
        assert clock.naps == [30, 30, 10]
        await clock.sleep_until(START)
        assert clock.naps == [30, 30, 10]

    async def test_the_machines_clock(self) -> None:
        """It is there when it says so."""
        moment = datetime.now(UTC) + timedelta(milliseconds=20)
        await SystemClock().sleep_until(moment)
        assert datetime.now(UTC) >= moment
