"""Any expression, zone, restarts, kills and clocks: exactly those ticks are started that were promised, each once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from durable_worker import _schedules
from tests.worker.replicas import MINUTE, Place, ticks, utc

ZONES = some.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "Asia/Kolkata", "Antarctica/Troll"])
BEGINS = some.sampled_from(
    ["2026-03-08 05:59:59", "2026-03-28 23:10", "2026-04-23 20:00:01", "2026-10-24 22:00", "2026-10-29 20:30", "2026-11-01 04:00"]
)
MINUTES = some.sampled_from(["*", "*/7", "0", "30", "0,30", "5-20/5", "59"])
HOURS = some.sampled_from(["*", "*", "*/2", "0", "2", "0-3", "1,2,3", "23"])
DAYS = some.sampled_from(["* * *", "* * *", "L * *", "1,29 * *", "* 3,10 *", "* * 0", "13 * sun", "* * sun#5"])
EXPRESSIONS = some.builds("{} {} {}".format, MINUTES, HOURS, DAYS)
SECONDS = some.sampled_from([0.5, 1, 20, 59, 60, 61, 300, 3600, 7000, 40_000])
ACTS = some.one_of(
    some.tuples(some.just("pass"), SECONDS),
    some.tuples(some.just("pass"), SECONDS),
    some.tuples(some.just("set back"), some.sampled_from([1, 61, 3600, 10_000])),
    some.tuples(some.just("restart"), some.integers(0, 2)),
    some.tuples(some.just("kill"), some.integers(1, 12)),
    some.tuples(some.just("clean"), some.just(0)),
)
THOROUGH = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def promised(listed: list[datetime], seen: datetime, now: datetime, young: timedelta, catch_up: str) -> Iterator[datetime]:
    """Yield the ticks that the first look after `seen` has to start."""
    missed = [tick for tick in listed if seen < tick <= now]
    yield from (tick for tick in missed if tick > now - young)
    if catch_up == "last" and missed and missed[-1] <= now - young:
        yield missed[-1]


async def live(
    expression: str, zone: str, begin: datetime, catch_up: str, young: int, acts: list[tuple[str, Any]], *, cleans: bool
) -> None:
    place = Place(begin)
    options = {"timezone": zone, "catch_up": catch_up, "young": young}
    replicas = [place.replica(expression, **options) for _ in range(3)]
    listed = ticks(expression, zone, begin, begin + timedelta(days=8))
    expected: set[datetime] = set()
    await replicas[0].tick()
    seen = begin
    for act, number in acts:
        if act == "pass":
            place.clock.advance(number)
        elif act == "set back":
            place.clock.jump(-number)
        elif act == "restart":
            replicas[number] = place.replica(expression, **options)
        elif act == "clean" and cleans:
            await place.clean()
        elif act == "kill" and not cleans:
            with suppress(BaseExceptionGroup):
                await place.replica(expression, kill_at=number, **options).tick()
        for replica in replicas:
            await replica.tick()
        now = place.clock.now()
        expected.update(promised(listed, seen, now, timedelta(seconds=young), catch_up))
        seen = max(seen, now)
        replicas.append(replicas.pop(0))
    assert place.started == sorted(expected)


@pytest.mark.parametrize("cleans", [True, False])
def test_what_is_started_is_what_was_promised(cleans: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks first after a tick starts it; a clock that was set back, a kill, or a run that was cleared adds none."""
    if cleans:
        monkeypatch.setattr(_schedules, "_MOST", 3)

    @given(
        expression=EXPRESSIONS,
        zone=ZONES,
        begin=BEGINS.map(utc),
        catch_up=some.sampled_from(["none", "last"]),
        young=some.sampled_from([30, 60, 600]),
        acts=some.lists(ACTS, min_size=3, max_size=14),
    )
    @THOROUGH
    def run(**chosen: Any) -> None:
        asyncio.run(live(**chosen, cleans=cleans))

    run()


def test_the_promise_is_not_empty() -> None:
    """What the test above expects is what its words say."""
    listed = [utc("2026-06-01 12:00") + n * MINUTE for n in range(10)]
    begin, now, young = listed[0], listed[7], timedelta(seconds=90)
    assert [*promised(listed, begin, now, young, "none")] == listed[6:8]
    assert [*promised(listed, begin, now, timedelta(0), "none")] == []
    assert [*promised(listed, begin, now, timedelta(0), "last")] == [listed[7]]
    assert [*promised(listed, now, now, young, "last")] == []
