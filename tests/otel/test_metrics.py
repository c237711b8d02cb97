"""What is measured: attempts where they are made, and runs and approvals of a whole store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from durable_core import MemoryStore, Runner, RunSuspended, StepRecord, StoreError, flow
from durable_core.testing import FakeClock
from durable_otel import instrument, observe
from tests.otel.conftest import Seen


async def test_attempts_are_counted_and_timed(seen: Seen) -> None:
    """By flow, outcome and error, and by name where the step has one of its own: never by an id."""
    clock, tries = FakeClock(), iter([ConnectionError("no"), None])

    async def charge() -> None:
        await clock.sleep(3)
        if (error := next(tries)) is not None:
            raise error

    @flow(on_event=instrument(seen.tracers, seen.meters), clock=clock)
    async def settle(runner: Runner, order: str) -> None:
        await runner.step(f"charge-{order}", charge, name="charge", max_attempts=2)
        await runner.step(f"note-{order}", lambda: None)

    await settle.run(MemoryStore(), run_id="settle-4711", order="4711")
    points = seen.points("durable.step.duration")
    assert {
        point.attributes.get("durable.step.outcome"): point.sum for point in points if "durable.step.name" in point.attributes
    } == {
        "retry": 3.0,
        "success": 3.0,
    }
    counted = [(dict(point.attributes), point.value) for point in seen.points("durable.step.attempts")]
    named = {"durable.flow.name": "settle", "durable.step.name": "charge"}
    assert ({**named, "durable.step.outcome": "retry", "error.type": "ConnectionError"}, 1) in counted
    assert ({**named, "durable.step.outcome": "success"}, 1) in counted
    assert ({"durable.flow.name": "settle", "durable.step.outcome": "success"}, 1) in counted
    assert "4711" not in str(counted)


async def test_replays_and_waits_are_not_measured(seen: Seen) -> None:
    """Only attempts are."""
    store, tell = MemoryStore(), instrument(seen.tracers, seen.meters)
    for _ in range(2):
        async with Runner(store, run_id="run", on_event=tell) as runner:
            await runner.step("a", lambda: None)
            await runner.sleep("b", 0)
    assert [point.value for point in seen.points("durable.step.attempts")] == [1]


async def test_a_store_is_observed_until_the_block_is_left(seen: Seen) -> None:
    """Runs by flow and state, approvals, and the age of the oldest; nothing afterwards."""
    store = MemoryStore()
    asked = FakeClock(datetime.now(UTC) - timedelta(hours=2))

    @flow(clock=asked, wait_limit=0)
    async def asks(runner: Runner) -> None:
        await runner.approval("ok", {})

    with pytest.raises(RunSuspended):
        await asks.run(store, run_id="run")
    async with observe(store, seen.meters):
        (runs,), (approvals,) = seen.points("durable.runs"), seen.points("durable.approvals.waiting")
        assert (dict(runs.attributes), runs.value) == ({"durable.flow.name": "asks", "durable.run.state": "waiting"}, 1)
        assert (dict(approvals.attributes), approvals.value) == ({}, 1)
        assert 7200 <= seen.points("durable.approvals.oldest_age")[0].value < 7300
    assert [seen.points(name) for name in ("durable.runs", "durable.approvals.waiting", "durable.approvals.oldest_age")] == [
        []
    ] * 3


async def test_stores_are_observed_again_and_at_once(seen: Seen) -> None:
    """A program may observe a store anew, and several: the gauges are their sum, and the age that of the oldest of all."""

    @flow(wait_limit=0)
    async def asks(runner: Runner) -> None:
        await runner.approval("ok", {})

    one, two, now = MemoryStore(), MemoryStore(), datetime.now(UTC)
    for store, run_id, hours in ((one, "a", 1), (two, "b", 2), (two, "c", 3)):
        with pytest.raises(RunSuspended):
            await asks.options(clock=FakeClock(now - timedelta(hours=hours))).run(store, run_id=run_id)

    def seen_now() -> tuple[list[int], list[int], list[int]]:
        runs, approvals = seen.points("durable.runs"), seen.points("durable.approvals.waiting")
        hours = [round(point.value / 3600) for point in seen.points("durable.approvals.oldest_age")]
        return [point.value for point in runs], [point.value for point in approvals], hours

    for _ in range(2):
        async with observe(one, seen.meters):
            assert seen_now() == ([1], [1], [1])
    async with observe(one, seen.meters), observe(two, seen.meters):
        assert seen_now() == ([3], [3], [3])
    assert seen_now() == ([], [], [])


async def test_a_measure_leads_to_the_span_of_its_attempt(seen: Seen) -> None:
    """An exemplar is that of the attempt which was measured, so that a viewer opens the slow one."""
    async with Runner(MemoryStore(), run_id="run", on_event=instrument(seen.tracers, seen.meters)) as runner:
        await runner.step("a", lambda: None)
    (point,) = seen.points("durable.step.duration")
    (exemplar,) = point.exemplars
    assert exemplar.span_id == seen.span("step a").context.span_id


class Unsteady(MemoryStore):
    """A store that is away while `is_away`."""

    is_away = False

    async def flows(self, *args: object, **options: object) -> Sequence[StepRecord]:
        if self.is_away:
            raise StoreError("away")
        return await super().flows(*args, **options)  # type: ignore[arg-type]  # as given

    async def runs(self, prefix: str = "") -> AsyncIterator[str]:
        if self.is_away:
            raise StoreError("away")
        async for run_id in super().runs(prefix):
            yield run_id


async def test_a_store_that_is_away_is_logged_and_counted_again(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """Meanwhile nothing is reported, rather than what was true before."""
    store = Unsteady()

    async def reports(expected: bool) -> None:
        async with asyncio.timeout(10):
            while bool(seen.points("durable.approvals.waiting")) is not expected:
                await asyncio.sleep(0.005)

    with caplog.at_level(logging.ERROR, "durable_otel"):
        async with observe(store, seen.meters, every=0.01):
            await reports(True)
            store.is_away = True
            await reports(False)
            store.is_away = False
            await reports(True)
    assert "the runs of a store could not be counted" in caplog.text


async def test_what_to_count_and_how_often_is_checked_first(seen: Seen) -> None:
    """A URL in place of a store, and a time of nothing, are refused where the block is entered."""
    with pytest.raises(TypeError, match="store must be an open store, not its URL"):
        async with observe("sqlite:./runs.db", seen.meters):  # type: ignore[arg-type]  # people try it
            pass
    with pytest.raises(ValueError, match="every must be a finite number of seconds, more than 0"):
        async with observe(MemoryStore(), seen.meters, every=timedelta(0)):
            pass
