"""Which runs a worker takes: those of its flows, on any store, wherever they came from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from durable_core import Runner, StepRecord, control, flow, open_store
from durable_core.clock import Clock
from durable_core.errors import CorruptLog
from durable_core.events import StepEvent
from durable_core.store import WakeUp
from durable_core.stores.memory import MemoryStore
from durable_core.testing import FakeClock
from durable_worker import Worker


async def _nothing() -> None: ...


class Killed(BaseException):
    """The end of the process."""


async def test_runs_of_unknown_flows_stay(store: MemoryStore, clock: FakeClock) -> None:
    """They wait for a worker that has their flow; one that knows it by a former name takes them."""

    @flow(clock=clock)
    async def old_name(runner: Runner) -> str:
        return "old"

    @flow(clock=clock)
    async def new_name(runner: Runner) -> str:
        return "new"

    await old_name.start(store, "run")
    report = await Worker(store, [new_name], clock=clock).sweep()
    assert report.succeeded == 0
    assert (await control.status(store, "run")).status == "waiting"
    report = await Worker(store, [new_name], clock=clock, aliases={"old_name": new_name}).sweep()
    assert report.succeeded == 1
    run = await control.status(store, "run")
    assert (run.flow, run.result) == ("old_name", "new")


async def test_older_runs_are_left_to_somebody(store: MemoryStore, clock: FakeClock) -> None:
    """The sweep takes up what a process left that died, unless that was longer ago than `adopt`; `retry` lets it go on."""
    dies = True

    @flow(clock=clock)
    async def one(runner: Runner) -> None:
        if dies:
            raise Killed

    with pytest.raises(Killed):
        await one.run(store, "run")
    dies = False
    clock.advance(timedelta(days=2))
    assert (await Worker(store, [one], clock=clock).sweep()).succeeded == 0
    assert (await Worker(store, [one], clock=clock, adopt=timedelta(days=3)).sweep()).succeeded == 1


async def test_retry_takes_up_what_is_older(store: MemoryStore, clock: FakeClock) -> None:
    """By a wake-up, which knows no age."""
    dies = True

    @flow(clock=clock)
    async def one(runner: Runner) -> None:
        if dies:
            raise Killed

    with pytest.raises(Killed):
        await one.run(store, "run")
    dies = False
    clock.advance(timedelta(days=2))
    await control.retry(store, "run", clock=clock)
    assert (await Worker(store, [one], clock=clock).sweep()).succeeded == 1


@pytest.mark.parametrize("timeout", [None, timedelta(days=1)])
async def test_a_file_is_swept(tmp_path: Path, timeout: timedelta | None) -> None:
    """A store without wake-ups: what was asked for, and what was decided, goes on within five seconds."""

    @flow(wait_limit=0)
    async def ask(runner: Runner) -> bool:
        return (await runner.approval("ok", {"amount": 90}, timeout=timeout)).approved

    url = f"file:{tmp_path / 'runs'}"
    async with open_store(url) as store, open_store(url) as other, Worker(store, [ask]), asyncio.timeout(60):
        await ask.start(other, "run")
        while await other.get("run", "ok") is None or await other.holder("run") is not None:  # type: ignore[attr-defined]
            await asyncio.sleep(0.05)
        await control.approve(other, "run", "ok", by="ann")
        began = asyncio.get_running_loop().time()
        while (await control.status(other, "run")).status != "succeeded":
            await asyncio.sleep(0.05)
        assert asyncio.get_running_loop().time() - began < 5


class Damaged(MemoryStore):
    """The logs of some runs can't be read."""

    damaged = frozenset({"bad"})

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        self._check(run_id)
        return await super().get(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        self._check(run_id)
        return await super().list(run_id)

    def _check(self, run_id: str) -> None:
        if run_id in self.damaged:
            raise CorruptLog(f"the log of {run_id!r} is damaged")


async def test_a_damaged_log_is_told_and_left_alone(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """It is looked at after 1, 2, 4 … 60 minutes; others go on, and so does it once it is mended."""
    store, told = Damaged(clock=clock), list[StepEvent]()
    store.damaged = frozenset()

    @flow(clock=clock)
    async def one(runner: Runner) -> None:
        await runner.step("s", _nothing)

    await one.start(store, "bad")
    store.damaged = frozenset({"bad"})
    caplog.set_level(logging.CRITICAL, "durable_worker")
    async with Worker(store, [one], clock=clock, poll=1, visibility_timeout=10, on_event=told.append):
        await one.start(store, "good")
        await control.result(store, "good", clock=clock)
        await clock.sleep(3600)
        damage = [(event.type, event.run_id) for event in told if event.error is not None]
        assert 4 <= len(damage) <= 7
        assert {*damage} == {("run:crash", "bad")}
        store.damaged = frozenset()
        await clock.sleep(3600)
        assert (await control.status(store, "bad")).status == "succeeded"


async def test_a_damaged_log_hides_no_other_from_the_sweep(clock: FakeClock) -> None:
    """A run that no wake-up tells of is found beside one that can't be read."""
    store = Damaged(clock=clock)
    store.damaged = frozenset()

    @flow(clock=clock, wait_limit=0)
    async def gets(runner: Runner) -> None:
        await runner.event("go")

    for run_id in ("good", "bad"):
        await gets.start(store, run_id)
    await Worker(store, [gets], clock=clock).sweep()
    await store.append(
        StepRecord(
            run_id="good",
            step_id="go",
            revision=1,
            status="success",
            kind="event",
            result=b"1",
            started_at=clock.now(),
            ended_at=clock.now(),
        )
    )
    store.damaged = frozenset({"bad"})
    assert (await Worker(store, [gets], clock=clock).sweep()).succeeded == 1


@pytest.mark.parametrize("ahead", [-300, 300])
async def test_clocks_that_differ_make_no_hot_loop(store: MemoryStore, clock: FakeClock, ahead: float) -> None:
    """A worker whose clock is behind the store's by five minutes looks a few times, and goes on when its own time has come."""

    class Off(Clock):
        def now(self) -> datetime:
            return clock.now() + timedelta(seconds=ahead)

        def monotonic(self) -> float:
            return clock.monotonic()

        async def sleep(self, seconds: float) -> None:
            await clock.sleep(seconds)

    own = Off()

    @flow(clock=own)
    async def nap(runner: Runner) -> None:
        await runner.sleep("nap", 600)

    await nap.start(store, "run")
    sets = 0
    whole = store.set_wakeup

    async def counting(run_id: str, flow: str, at: datetime) -> WakeUp:
        nonlocal sets
        sets += 1
        return await whole(run_id, flow, at)

    store.set_wakeup = counting  # type: ignore[method-assign]
    async with Worker(store, [nap], clock=own):
        await clock.sleep(1300)
        assert (await control.status(store, "run")).status == "succeeded"
    assert sets < 15


async def test_a_child_that_crashes_does_not_wake_who_waits_for_its_end(store: MemoryStore, clock: FakeClock) -> None:
    """A child that was asked for, and is tried again and again, is driven by itself; its parent is driven when it has ended."""
    tries = []

    @flow(clock=clock)
    async def kid(runner: Runner) -> int:
        tries.append(1)
        if len(tries) < 5:
            raise ZeroDivisionError
        return 7

    @flow(clock=clock, wait_limit=0.5)
    async def boss(runner: Runner) -> int:
        child = await runner.flow("kid", kid, wait=False)
        return await runner.result("end", child, returns=int)

    await boss.start(store, "run")
    async with Worker(store, [boss, kid], clock=clock, max_crashes=9):
        while len(tries) < 4:
            await clock.sleep(0.6)
            await store.set_wakeup("run", "boss", clock.now())
        assert await control.result(store, "run", clock=clock) == 7
    starts = [record for record in await store.list("run") if record.step_id == "$flow" and record.status == "started"]
    assert len(starts) == 2


async def test_a_cancellation_that_its_flow_does_not_know_of(store: MemoryStore, clock: FakeClock) -> None:
    """Who asked for it died before the flow said so: the sweep finds it."""

    @flow(clock=clock, wait_limit=0)
    async def ask(runner: Runner) -> None:
        await runner.event("go")

    await ask.start(store, "run")
    worker = Worker(store, [ask], clock=clock)
    await worker.sweep()
    await store.append(
        StepRecord(
            run_id="run",
            step_id="$cancel",
            revision=0,
            status="success",
            kind="flow",
            note={"reason": "enough"},
            started_at=clock.now(),
            ended_at=clock.now(),
        )
    )
    assert (await worker.sweep()).cancelled == 1
    assert (await control.status(store, "run")).status == "cancelled"


async def test_ends_are_told(store: MemoryStore, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Handlers get the status of each run that ended, before its wake-up is cleared; what one raises is logged."""
    told: list[tuple[str, str, int]] = []

    @flow(clock=clock)
    async def divide(runner: Runner, by: int) -> float:
        return await runner.step("divide", _divide, by)

    worker = Worker(store, [divide], clock=clock)

    @worker.on_end
    def first(run: control.RunStatus) -> None:
        raise LookupError("no such customer")

    @worker.on_end
    async def second(run: control.RunStatus) -> None:
        clock.advance(3600)
        shown = await store.take_wakeups(["divide"], limit=9, visibility_timeout=timedelta(seconds=1))
        told.append((run.run_id, run.status, sum(each.run_id == run.run_id for each in shown)))

    await divide.start(store, "good", by=2)
    await worker.sweep()
    await divide.start(store, "bad", by=0)
    caplog.clear()
    report = await worker.sweep()
    assert (report.succeeded, report.failed) == (0, 1)
    assert [each[:2] for each in told] == [("good", "succeeded"), ("bad", "failed")]
    assert all(shown for _, _, shown in told)
    assert "on_end raised for run 'bad'" in caplog.text
    clock.advance(3600)
    assert not await store.take_wakeups(["divide"], limit=9, visibility_timeout=timedelta(seconds=1))


async def _divide(by: int) -> float:
    return 1 / by


@pytest.mark.parametrize(
    ("is_woken", "late"),
    [(lambda number: number == 0, "0"), (lambda number: number != 9, "9")],
    ids=["a wake-up", "a find"],
)
async def test_neither_the_finds_of_a_sweep_nor_the_wakeups_wait_for_all_of_the_other(
    store: MemoryStore, clock: FakeClock, is_woken: Callable[[int], bool], late: str
) -> None:
    """A wake-up doesn't wait until all is done that the sweep found, and what it found not until no wake-up is due."""
    order: list[str] = []

    @flow(clock=clock)
    async def one(runner: Runner) -> None:
        order.append(runner.run_id)

    for number in range(10):
        await one.start(store, str(number))
        clock.advance(1)
    asked = await store.take_wakeups(["one"], limit=99, visibility_timeout=timedelta(seconds=1))
    await store.clear_wakeups([each for each in asked if not is_woken(int(each.run_id))])
    clock.advance(1)
    assert (await Worker(store, [one], clock=clock, concurrency=1).sweep()).succeeded == 10
    assert order.index(late) < 2
