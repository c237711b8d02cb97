"""Sleeping, asking people and waiting for events: what is first recorded holds, and nothing swallows a suspension."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable_core import (
    Clock,
    DeadlinePassed,
    Decision,
    DurableError,
    LockLost,
    MemoryStore,
    NestedStep,
    RunCancelled,
    Runner,
    RunSuspended,
    StepDrift,
    StepEvent,
    StepFailed,
    StepRecord,
    StepReused,
    control,
)
from durable_core._running import looking
from durable_core.testing import FakeClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def runner(store: MemoryStore, clock: FakeClock, **options: Any) -> Runner:
    return Runner(store, "run", clock=clock, **options)


async def test_a_sleep_of_a_day_survives_restarts(store: MemoryStore, clock: FakeClock) -> None:
    """The wake-up time is the one first recorded, whatever a later run computes."""
    began = clock.now()
    for _ in range(3):
        with pytest.raises(RunSuspended) as suspended:
            await runner(store, clock, wait_limit=0).sleep("cool-off", timedelta(days=1))
        assert suspended.value.until == began + timedelta(days=1)
        assert suspended.value.waiting_for == ("cool-off",)
        clock.advance(timedelta(hours=7))
    await runner(store, clock).sleep("cool-off", timedelta(days=1))
    assert timedelta(days=1) <= clock.now() - began <= timedelta(days=1, seconds=30)
    before = clock.now()
    await runner(store, clock).sleep("cool-off", timedelta(days=1))
    assert clock.now() == before


async def test_a_clock_that_jumps_back_makes_a_sleep_longer_not_endless(store: MemoryStore, clock: FakeClock) -> None:
    """Wake-up times compare the time of day, read again at least every 30 seconds."""
    began = clock.now()
    sleeping = asyncio.create_task(runner(store, clock).sleep("cool-off", timedelta(days=1)))
    while clock.now() - began < timedelta(hours=12):
        await asyncio.sleep(0)
    clock.jump(timedelta(hours=-1))
    await sleeping
    assert timedelta(0) <= clock.now() - (began + timedelta(days=1)) <= timedelta(seconds=30)
    assert clock.monotonic() == pytest.approx(timedelta(days=1, hours=1).total_seconds(), abs=31)


async def test_a_clock_that_jumps_forward_ends_a_sleep(store: MemoryStore, clock: FakeClock) -> None:
    """A machine that was suspended for a day wakes up late, not a day later."""
    waking = asyncio.create_task(clock.sleep(60))
    waking.add_done_callback(lambda _: clock.jump(timedelta(days=2)))
    await runner(store, clock).sleep("cool-off", timedelta(days=1))
    assert clock.monotonic() < 3600


async def test_sleep_until_a_moment(store: MemoryStore, clock: FakeClock) -> None:
    """An aware datetime is a wake-up time."""
    until = clock.now() + timedelta(hours=1)
    await runner(store, clock).sleep("until", until)
    assert clock.now() >= until
    assert (await store.list("run"))[0].until == until


async def test_no_wait_longer_than_thirty_seconds_between_two_looks_at_the_clock(store: MemoryStore) -> None:
    """However long the sleep."""
    pauses: list[float] = []

    class Counting(FakeClock):
        sleep_until = Clock.sleep_until

        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)
            await super().sleep(seconds)

    await runner(store, Counting()).sleep("a", timedelta(days=1))
    assert max(pauses) == 30
    pauses.clear()
    with pytest.raises(StepFailed):
        await runner(store, Counting()).approval("b", None, timeout=timedelta(hours=1))
    assert max(pauses) == 30


async def test_wait_limit_is_how_long_a_process_waits(store: MemoryStore, clock: FakeClock) -> None:
    """Then RunSuspended says what for, and until when."""
    with pytest.raises(RunSuspended, match=r"'run' waits for 'ask'.*2026-01-01T01:00:00") as suspended:
        await runner(store, clock, wait_limit=60).approval("ask", None, timeout=timedelta(hours=1))
    assert clock.monotonic() == pytest.approx(60, abs=3)
    assert not isinstance(suspended.value, Exception)


async def test_no_wait_is_longer_than_it_has_to_be(store: MemoryStore, clock: FakeClock) -> None:
    """The last pause ends with the wait: at its wake-up time or deadline, or when the process stops waiting."""
    await runner(store, clock).sleep("nap", 61)
    assert clock.monotonic() == pytest.approx(61)
    with pytest.raises(StepFailed):
        await runner(store, clock).approval("ask", timeout=7)
    assert clock.monotonic() == pytest.approx(68)
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=5).sleep("cool-off", timedelta(days=1))
    assert clock.monotonic() == pytest.approx(73)


@pytest.mark.parametrize("first", ["ask", "nap"])
async def test_a_suspension_tells_the_earliest_time(store: MemoryStore, clock: FakeClock, first: str) -> None:
    """Of all that is waited for, whichever was found to wait for too long first; what is over is not among them."""
    waits = {"ask": lambda: run.approval("ask", timeout=60), "nap": lambda: run.sleep("nap", 3600)}
    with pytest.raises(RunSuspended) as suspended:
        async with runner(store, clock, wait_limit=2) as run:
            await run.sleep("moment", 1)
            names = sorted(waits, key=lambda name: name != first)
            await asyncio.gather(*(waits[name]() for name in names), return_exceptions=True)
    asked = await store.get("run", "ask")
    assert asked is not None
    assert suspended.value.until == asked.until
    assert {*suspended.value.waiting_for} == {"ask", "nap"}


async def test_a_run_that_waits_is_not_reset(store: MemoryStore, clock: FakeClock) -> None:
    """What would be decided is gone then."""
    run = runner(store, clock)
    waiting = asyncio.create_task(run.approval("ask"))
    while not await store.list("run"):
        await asyncio.sleep(0)
    with pytest.raises(DurableError, match="'ask'"):
        await run.reset()
    await control.approve(store, "run", "ask", by="alice", clock=clock)
    assert (await waiting).approved


async def test_a_wait_that_is_over_does_not_keep_the_run_from_being_reset(store: MemoryStore, clock: FakeClock) -> None:
    """However it ended."""
    run = runner(store, clock, wait_limit=0)
    with pytest.raises(StepFailed):
        await run.approval("late", timeout=0)
    with pytest.raises(RunSuspended):
        await run.approval("ask")
    await run.reset()
    assert await store.list("run") == ()


async def test_events_of_waits(store: MemoryStore, clock: FakeClock) -> None:
    """A listener hears of the wait, of how it ended, and of its replay."""
    seen: list[tuple[str, str]] = []

    def listen(event: StepEvent) -> None:
        assert event.record
        seen.append((event.type, event.record.status))

    for _ in range(2):
        await runner(store, clock, on_event=listen).sleep("nap", 1)
        with pytest.raises(StepFailed):
            await runner(store, clock, on_event=listen).event("packed", timeout=1)
    assert seen == [
        ("step:wait", "waiting"),
        ("step:success", "success"),
        ("step:wait", "waiting"),
        ("step:failure", "failure"),
        ("step:replay", "success"),
        ("step:replay", "failure"),
    ]


async def test_no_wait_ends_before_it_began(store: MemoryStore, clock: FakeClock) -> None:
    """A clock that is set back makes no entry of less than no time."""
    past = clock.now() - timedelta(hours=2)
    await runner(store, clock, on_event=lambda event: clock.jump(-3600)).sleep("until", past)
    assert [record.duration for record in await store.list("run")] == [timedelta(0)] * 2


async def test_a_decision_that_came_since_the_log_was_read_is_found_at_once(store: MemoryStore, clock: FakeClock) -> None:
    """By a runner that doesn't wait at all, too."""
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).approval("ask")
    late = runner(store, clock, wait_limit=0)
    await late.step("a", lambda: 1)
    await control.approve(store, "run", "ask", by="alice", clock=clock)
    assert (await late.approval("ask")).approved


async def test_a_decision_during_the_wait_ends_it(store: MemoryStore, clock: FakeClock) -> None:
    """A runner in process sees what another process appends."""
    seen: list[str] = []
    asking = runner(store, clock, on_event=lambda event: seen.append(event.type))
    waiting = asyncio.create_task(asking.approval("ask", {"amount": 90}))
    while not await store.list("run"):
        await asyncio.sleep(0)
    await control.reject(store, "run", "ask", by="bob", reason="duplicate", clock=clock)
    decision = await waiting
    assert (decision.approved, decision.by, decision.reason) == (False, "bob", "duplicate")
    assert seen == ["step:wait", "step:success"]


async def test_typed_values_are_shown_and_sent(store: MemoryStore, clock: FakeClock) -> None:
    """What is shown and what is sent may be anything that a step may return."""
    shown = datetime(2026, 5, 1, tzinfo=UTC)
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).approval("ask", shown)
    assert (await store.list("run"))[0].note == {"show": "2026-05-01T00:00:00Z"}
    await control.send(store, "run", "when", shown)
    assert await runner(store, clock).event("when", returns=datetime) == shown
    with pytest.raises(StepDrift, match="'when'"):
        await runner(store, clock).event("when", returns=int)


async def test_an_event_whose_value_nobody_needs(store: MemoryStore, clock: FakeClock) -> None:
    """With `returns=None` it is not read, whatever was sent."""
    await control.send(store, "run", "packed", {"box": 1}, clock=clock)
    assert await runner(store, clock).event("packed", returns=None) is None


async def test_a_decision_binds_to_what_was_shown(store: MemoryStore, clock: FakeClock) -> None:
    """Asked again with another payload, the run stops, decided or not, whatever on_drift says."""
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).approval("refund", {"amount": 90})
    for _ in range(2):
        with pytest.raises(StepDrift, match="'refund'"):
            await runner(store, clock, wait_limit=0).approval("refund", {"amount": 900})
        if (await store.list("run"))[-1].status == "waiting":
            await control.approve(store, "run", "refund", by="alice", clock=clock)
    assert (await runner(store, clock).approval("refund", {"amount": 90})).approved


async def test_what_another_runner_showed_at_the_same_time_is_not_decided_here(clock: FakeClock) -> None:
    """Of two that ask at once under one id one is recorded, and the other one stops."""

    class Rival(MemoryStore):
        asked = False

        async def append(self, record: StepRecord) -> StepRecord:
            if not self.asked:
                self.asked = True
                with pytest.raises(RunSuspended):
                    await runner(self, clock, wait_limit=0).approval("refund", {"amount": 900})
            return await super().append(record)

    store = Rival()
    with pytest.raises(StepDrift, match="now shows something else"):
        await runner(store, clock, wait_limit=0).approval("refund", {"amount": 90})
    assert [record.note["show"] for record in await store.list("run")] == [{"amount": 900}]


async def test_another_kind_than_recorded_stops_the_run(store: MemoryStore, clock: FakeClock) -> None:
    """A step can't become an approval, nor a sleep an event."""
    await runner(store, clock).step("a", lambda: 1)
    with pytest.raises(StepDrift, match="'step'.*'approval'"):
        await runner(store, clock).approval("a")
    with pytest.raises(StepDrift, match="'step'.*'sleep'"):
        await runner(store, clock).sleep("a", 1)
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).event("b")
    with pytest.raises(StepDrift, match="'event'.*'step'"):
        await runner(store, clock).step("b", lambda: 1)


async def test_except_exception_does_not_swallow_a_suspension(store: MemoryStore, clock: FakeClock) -> None:
    """A flow's own error handling takes no part in it."""
    with pytest.raises(RunSuspended):
        async with runner(store, clock, wait_limit=0) as run:
            try:
                await run.approval("ask")
            except Exception:
                raise AssertionError from None


async def test_a_bare_except_does_not_swallow_a_suspension(store: MemoryStore, clock: FakeClock) -> None:
    """Whatever is tried next is refused, and leaving the block raises it again."""
    with pytest.raises(RunSuspended):
        async with runner(store, clock, wait_limit=0) as run:
            with contextlib.suppress(BaseException):
                await run.approval("ask")
            with pytest.raises(RunSuspended):
                await run.step("next", lambda: 1)
    assert [record.step_id for record in await store.list("run")] == ["ask"]


async def test_a_suspended_runner_may_be_entered_again(store: MemoryStore, clock: FakeClock) -> None:
    """What it waited for may have come."""
    run = runner(store, clock, wait_limit=0)
    with pytest.raises(RunSuspended):
        async with run:
            await run.approval("ask")
    await control.approve(store, "run", "ask", by="alice", clock=clock)
    async with run:
        assert (await run.approval("ask")).approved


async def test_a_suspended_run_that_is_reset_begins_anew(store: MemoryStore, clock: FakeClock) -> None:
    """It waits for nothing any more."""
    run = runner(store, clock, wait_limit=0)
    with pytest.raises(RunSuspended):
        await run.approval("ask")
    await run.reset()
    assert await run.step("a", lambda: 1) == 1
    assert [record.step_id for record in await store.list("run")] == ["a"]


async def test_a_task_group_does_not_swallow_a_suspension(store: MemoryStore, clock: FakeClock) -> None:
    """What leaves the runner's block is the suspension, not a group around it."""
    with pytest.raises(RunSuspended, match="'ask'"):
        async with runner(store, clock, wait_limit=0) as run, asyncio.TaskGroup() as group:
            group.create_task(run.approval("ask"))
            group.create_task(run.event("packed"))


async def test_an_error_beside_a_suspension_is_not_swallowed_by_it(store: MemoryStore, clock: FakeClock) -> None:
    """Who catches what leaves the block has to hear of both."""
    with pytest.raises(BaseExceptionGroup) as both:
        async with runner(store, clock, wait_limit=0) as run:
            try:
                await run.approval("ask")
            except RunSuspended as suspended:
                raise BaseExceptionGroup("both", [suspended, ValueError("no")]) from None
    assert [type(error) for error in both.value.exceptions] == [RunSuspended, ValueError]


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_gather_does_not_swallow_a_suspension(store: MemoryStore, clock: FakeClock, return_exceptions: bool) -> None:
    """Not even when it returns exceptions as results."""
    with pytest.raises(RunSuspended):
        async with runner(store, clock, wait_limit=0) as run:
            await asyncio.gather(run.approval("ask"), run.step("a", lambda: 1), return_exceptions=return_exceptions)
    assert {record.step_id for record in await store.list("run")} == {"ask", "a"}


async def test_asyncio_timeout_does_not_swallow_a_suspension(store: MemoryStore, clock: FakeClock) -> None:
    """It turns cancellations into TimeoutError, and this is none."""
    with pytest.raises(RunSuspended):
        async with runner(store, clock, wait_limit=0) as run, asyncio.timeout(60):
            await run.approval("ask")


@pytest.mark.parametrize("how", ["group", "gather"])
async def test_a_sibling_in_the_middle_of_an_effect_is_finished_and_recorded_first(
    store: MemoryStore, clock: FakeClock, how: str
) -> None:
    """A wait never cuts a charge short."""
    asked, charged = asyncio.Event(), 0

    def listen(event: StepEvent) -> None:
        if event.type == "step:wait":
            asked.set()

    async def charge() -> str:
        nonlocal charged
        await asked.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        charged += 1
        return "charged"

    with pytest.raises(RunSuspended):
        async with runner(store, clock, wait_limit=0, on_event=listen) as run:
            if how == "gather":
                await asyncio.gather(run.step("charge", charge), run.approval("ask"))
            else:
                async with asyncio.TaskGroup() as group:
                    group.create_task(run.step("charge", charge))
                    group.create_task(run.approval("ask"))
    assert charged == 1
    assert {(record.step_id, record.status) for record in await store.list("run")} == {
        ("ask", "waiting"),
        ("charge", "success"),
    }


async def test_a_sibling_that_is_about_to_ask_is_recorded_first(clock: FakeClock) -> None:
    """Whoever runs the flow again later finds all that it waits for."""

    class Slow(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            for _ in range(50 if record.step_id == "packed" else 0):
                await asyncio.sleep(0)
            return await super().append(record)

    store = Slow()
    with pytest.raises(RunSuspended) as suspended:
        async with runner(store, clock, wait_limit=0) as run, asyncio.TaskGroup() as group:
            group.create_task(run.approval("ask"))
            group.create_task(run.event("packed"))
    assert {record.step_id for record in await store.list("run")} == {"ask", "packed"}
    assert {*suspended.value.waiting_for} == {"ask", "packed"}


async def test_a_sibling_that_still_asks_its_store_or_a_handler_is_named(clock: FakeClock) -> None:
    """A worker looks at what the suspension names and at nothing else, so that a decision on any other would not be seen."""

    async def turns(slow: bool) -> None:
        for _ in range(50 if slow else 0):
            await asyncio.sleep(0)

    class Slow(MemoryStore):
        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            await turns(step_id == "packed")
            return await super().get(run_id, step_id)

    async def hear(event: StepEvent) -> None:
        await turns((event.type, event.step_id) == ("step:wait", "paid"))

    store = Slow()
    for _ in range(2):  # the second run asks whether anything was decided
        with pytest.raises(RunSuspended) as suspended:
            async with runner(store, clock, wait_limit=0, on_event=hear) as run, asyncio.TaskGroup() as group:
                group.create_task(run.approval("ask"))
                group.create_task(run.event("packed"))
                group.create_task(run.event("paid"))
        assert {*suspended.value.waiting_for} == {"ask", "packed", "paid"}


async def test_a_deadline_that_passed_is_recorded_before_a_sibling_suspends_the_run(clock: FakeClock) -> None:
    """What follows it begins in the same run, in which nobody would look for it."""

    class Slow(MemoryStore):
        async def append(self, record: StepRecord) -> StepRecord:
            for _ in range(50 if record.status == "failure" else 0):
                await asyncio.sleep(0)
            return await super().append(record)

    async def shout(run: Runner) -> None:
        with contextlib.suppress(StepFailed):
            await run.event("packed", timeout=60)
        await run.step("shout", str)

    store = Slow()
    for _ in range(2):
        with pytest.raises(RunSuspended) as suspended:
            async with runner(store, clock, wait_limit=0) as run, asyncio.TaskGroup() as group:
                group.create_task(run.approval("ask"))
                group.create_task(shout(run))
        clock.advance(60)
    assert suspended.value.waiting_for == ("ask",)
    assert [record.step_id for record in await store.list("run")] == ["ask", "packed", "packed", "shout"]


async def test_a_deadline_in_the_past_still_asks_once(store: MemoryStore, clock: FakeClock) -> None:
    """The entries are those of every other wait."""
    with pytest.raises(StepFailed):
        await runner(store, clock, wait_limit=0).approval("ask", timeout=0)
    assert [record.status for record in await store.list("run")] == ["waiting", "failure"]


async def test_the_deadline_is_the_one_first_recorded(store: MemoryStore, clock: FakeClock) -> None:
    """A later run that computes another changes nothing."""
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).event("packed", timeout=60)
    clock.advance(61)
    with pytest.raises(StepFailed) as failed:
        await runner(store, clock).event("packed", timeout=timedelta(days=9))
    assert failed.value.error.matches(TimeoutError)
    with pytest.raises(StepFailed) as again:
        await runner(store, clock).event("packed", timeout=60)
    assert again.value == failed.value


async def test_a_failed_wait_can_be_retried(store: MemoryStore, clock: FakeClock) -> None:
    """Reopened, it asks again with a new deadline."""
    with pytest.raises(StepFailed):
        await runner(store, clock).approval("ask", "x", timeout=60)
    await control.retry(store, "run", "ask", clock=clock)
    with pytest.raises(RunSuspended) as suspended:
        await runner(store, clock, wait_limit=0).approval("ask", "x", timeout=60)
    assert suspended.value.until == clock.now() + timedelta(seconds=60)
    await control.approve(store, "run", "ask", by="alice", clock=clock)
    assert (await runner(store, clock).approval("ask", "x", timeout=60)).approved


async def test_one_id_is_one_wait(store: MemoryStore, clock: FakeClock) -> None:
    """A loop that forgot to number its waits is refused."""
    run = runner(store, clock)
    await run.sleep("pause", 1)
    with pytest.raises(StepReused):
        await run.sleep("pause", 2)
    with pytest.raises(StepReused):
        await run.step("pause", lambda: 1)
    await control.send(store, "run", "packed", 7)
    await run.event("packed")
    with pytest.raises(StepReused):
        await run.approval("packed")
    with pytest.raises(StepFailed):
        await run.approval("refund", {"amount": 90}, timeout=1)
    with pytest.raises(StepReused):
        await run.approval("refund", {"amount": 900}, timeout=1)


async def test_a_wait_inside_a_step_is_refused(store: MemoryStore, clock: FakeClock) -> None:
    """The step would be recorded as over while it waits."""
    run = runner(store, clock)

    async def ask() -> None:
        await run.approval("inner")

    with pytest.raises(NestedStep, match="'inner'"):
        await run.step("outer", ask)
    assert await run.history() == ()


async def test_a_store_that_is_away_for_a_moment_does_not_end_a_wait(clock: FakeClock) -> None:
    """It is asked again for `store_timeout` seconds."""

    class Away(MemoryStore):
        failures = 3.0
        poll_seconds = 0.01

        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            if self.failures > 0 and await self.list(run_id):
                self.failures -= 1
                raise OSError("away")
            return await super().get(run_id, step_id)

        async def newer(self, known: object) -> Any:
            if self.failures > 0:
                self.failures -= 1
                raise OSError("away")
            return ()

    store = Away()
    waiting = asyncio.ensure_future(runner(store, clock).event("a"))
    while store.failures:
        await asyncio.sleep(0.01)
    await control.send(store, "run", "a", 7)
    assert await waiting == 7


async def test_an_outage_ends_no_wait_however_long_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and the looks go on."""

    class Away(MemoryStore):
        rounds = 0
        poll_seconds = 0.001
        watch = None  # type: ignore[assignment]

        async def newer(self, known: Any) -> Any:
            self.rounds += 1
            if self.rounds == 1:
                raise asyncio.CancelledError  # of a task that somebody else cancelled
            if self.rounds < 50:
                raise OSError("away")
            return await super().newer(known)

    store = Away()
    waiting = asyncio.ensure_future(Runner(store, "run", store_timeout=0.001).event("a"))
    while store.rounds < 20:
        await asyncio.sleep(0.001)
    await store.append(StepRecord(run_id="run", step_id="a", revision=1, kind="event", result=b"7"))
    assert await asyncio.wait_for(waiting, 20) == 7
    assert len([record for record in caplog.records if "could not look" in record.getMessage()]) == 1


async def test_a_round_that_hangs_is_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that doesn't answer makes no wait deaf."""
    monkeypatch.setattr(looking, "_LONGEST", 0.01)

    class Hanging(MemoryStore):
        rounds = 0
        poll_seconds = 0.001
        watch = None  # type: ignore[assignment]

        async def newer(self, known: Any) -> Any:
            self.rounds += 1
            if self.rounds == 1:
                await asyncio.Event().wait()
            return await super().newer(known)

    store = Hanging()
    waiting = asyncio.ensure_future(Runner(store, "run").event("a"))
    while not store.rounds:
        await asyncio.sleep(0.001)
    await store.append(StepRecord(run_id="run", step_id="a", revision=1, kind="event", result=b"7"))
    assert await asyncio.wait_for(waiting, 20) == 7


async def test_a_wait_hears_of_its_decision_while_a_sibling_runs_past_the_limit(store: MemoryStore) -> None:
    """The sibling may be the one that needs the decision."""

    async def needs_it() -> str:
        while (record := await store.get("run", "ask")) is None or record.status == "waiting":
            await asyncio.sleep(0.001)
        await heard.wait()
        return "done"

    heard = asyncio.Event()
    async with Runner(store, "run", wait_limit=0.01) as run:

        async def ask() -> bool:
            decision = await run.approval("ask")
            heard.set()
            return decision.approved

        both = asyncio.gather(ask(), run.step("needs-it", needs_it))
        await asyncio.sleep(0.05)
        await control.approve(store, "run", "ask", by="alice")
        assert await asyncio.wait_for(both, 20) == [True, "done"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda run: run.sleep("a", -1), ValueError, "duration.*not -1"),
        (lambda run: run.sleep("a", float("nan")), ValueError, "not nan"),
        (lambda run: run.sleep("a", float("inf")), ValueError, "not inf"),
        (lambda run: run.sleep("a", "1 day"), TypeError, "'1 day'"),
        (lambda run: run.sleep("a", datetime(2026, 1, 1)), ValueError, "no time zone"),
        (lambda run: run.sleep("a", timedelta.max), ValueError, "duration"),
        (lambda run: run.sleep("", 1), ValueError, "step_id ''"),
        (lambda run: run.sleep("$a", 1), ValueError, "reserved for the library"),
        (lambda run: run.approval("a", timeout=-1), ValueError, "timeout.*not -1"),
        (lambda run: run.approval("a", timeout=float("nan")), ValueError, "not nan"),
        (lambda run: run.approval("a", quorum=0), ValueError, "not 0"),
        (lambda run: run.approval("a", quorum=True), TypeError, "not True"),
        (lambda run: run.approval("a", quorum=2, approvers=["alice"]), ValueError, "at most 1.*not 2"),
        (lambda run: run.approval("a", quorum=2, approvers=["alice", "alice"]), ValueError, "at most 1.*not 2"),
        (lambda run: run.approval("a", approvers=["alice", ""]), TypeError, "not ''"),
        (lambda run: run.approval("a", approvers="alice"), TypeError, r"\['alice'\]"),
        (lambda run: run.approval("a", approvers=[]), ValueError, "approvers"),
        (lambda run: run.approval("a", approvers=[7]), TypeError, "not 7"),
        (lambda run: run.approval("a", {"f": lambda: 1}), TypeError, "f"),
        (lambda run: run.approval("a", float("nan")), TypeError, "nan"),
        (lambda run: run.event("a", returns=complex), TypeError, "complex"),
        (lambda run: run.event("a", timeout="soon"), TypeError, "'soon'"),
    ],
)
async def test_bad_input(store: MemoryStore, clock: FakeClock, call: Any, error: type[Exception], match: str) -> None:
    """Each gets one clear error, and nothing is recorded."""
    run = runner(store, clock, wait_limit=0)
    with pytest.raises(error, match=match):
        await call(run)
    assert await store.list("run") == ()


async def test_cancelling_a_run_ends_its_waits_and_starts_no_step(store: MemoryStore, clock: FakeClock) -> None:
    """A runner in process notices; a later run does at once; what was decided is still replayed."""

    def one() -> int:
        return 1

    run = runner(store, clock)
    assert await run.step("a", one) == 1
    waiting = asyncio.create_task(run.approval("ask"))
    sleeping = asyncio.create_task(run.sleep("nap", timedelta(days=1)))
    while len(await store.list("run")) < 3:
        await asyncio.sleep(0)
    await control.cancel(store, "run", reason="customer left", clock=clock)
    for task in (waiting, sleeping):
        with pytest.raises(RunCancelled, match="customer left"):
            await task
    for again in (run, runner(store, clock)):
        assert await again.step("a", one) == 1
        with pytest.raises(RunCancelled, match="customer left") as cancelled:
            await again.step("b", lambda: 1)
        assert cancelled.value.reason == "customer left"
        with pytest.raises(RunCancelled):
            await again.approval("ask")


async def test_a_cancelled_run_asks_nobody(store: MemoryStore, clock: FakeClock) -> None:
    """Nothing is recorded of a wait that did not begin."""
    await runner(store, clock).step("a", lambda: 1)
    await control.cancel(store, "run", clock=clock)
    for wait in (lambda run: run.approval("ask"), lambda run: run.event("packed"), lambda run: run.sleep("nap", 1)):
        with pytest.raises(RunCancelled):
            await wait(runner(store, clock))
    assert [record.step_id for record in await store.list("run")] == ["a", "$cancel"]


async def test_a_run_that_is_busy_notices_its_cancellation_before_its_next_step(store: MemoryStore) -> None:
    """The store is asked again and again, for a hundredth of the run's time."""
    ran = 0

    async def work() -> None:
        nonlocal ran
        ran += 1
        if ran == 3:
            await control.cancel(store, "run")
        await asyncio.sleep(0.01)

    run = Runner(store, "run")
    with pytest.raises(RunCancelled):
        for number in range(10):
            await run.step(f"work-{number}", work)
    assert ran == 3


def test_decision_is_what_people_read() -> None:
    """A small frozen value."""
    decision = Decision(True, "alice", None, datetime(2026, 1, 1, tzinfo=UTC))
    assert repr(decision).startswith("Decision(approved=True, by='alice', reason=None, at=")


class SlowStore(MemoryStore):
    """Answers an append after the loop has turned, as every real store does."""

    async def append(self, record: StepRecord) -> StepRecord:
        await asyncio.sleep(0)
        return await super().append(record)


async def test_two_callers_share_one_wait(clock: FakeClock) -> None:
    """Both get the decision, from one chain of entries."""
    store = SlowStore()

    async def decide() -> None:
        while not await store.list("run"):
            await asyncio.sleep(0)
        await control.approve(store, "run", "ask", by="alice", clock=clock)

    async with runner(store, clock) as run:
        one, other, _ = await asyncio.gather(run.approval("ask", 1), run.approval("ask", 1), decide())
    assert one == other
    assert [record.status for record in await store.list("run")] == ["waiting", "success"]


async def test_nobody_waits_on_once_the_runner_was_left(store: MemoryStore, clock: FakeClock) -> None:
    """A wait that `gather` left behind when a sibling failed ends, instead of asking the store for ever."""

    def fail() -> None:
        raise OSError

    with pytest.raises(StepFailed):
        async with runner(store, clock) as run:
            waiting = asyncio.ensure_future(run.approval("ask"))
            await asyncio.gather(waiting, run.step("fail", fail))
    with pytest.raises(LockLost, match="was closed"):
        await waiting


async def test_a_wait_that_was_reopened_elsewhere_asks_again(store: MemoryStore, clock: FakeClock) -> None:
    """Another machine's clock found the deadline passed, and somebody gave it another try: people can decide again."""
    run = runner(store, clock, wait_limit=600)
    waiting = asyncio.create_task(run.approval("ask", timeout=500))
    while not await store.list("run"):
        await asyncio.sleep(0)
    ahead = FakeClock(clock.now() + timedelta(seconds=501))
    with pytest.raises(DeadlinePassed):
        await control.approve(store, "run", "ask", by="alice", clock=ahead)
    await control.retry(store, "run", "ask", clock=clock)
    while len(await store.list("run")) < 4:
        await asyncio.sleep(0)
    await control.approve(store, "run", "ask", by="alice", clock=clock)
    assert (await waiting).by == "alice"


async def test_a_reopened_step_is_not_asked_for_as_another_kind(store: MemoryStore, clock: FakeClock) -> None:
    """Nor is a decision asked for again with now shows something else."""

    def fail() -> None:
        raise OSError

    with pytest.raises(StepFailed):
        await runner(store, clock).step("a", fail)
    with pytest.raises(StepFailed):
        await runner(store, clock).approval("b", {"amount": 90}, timeout=1)
    for step_id in ("a", "b"):
        await control.retry(store, "run", step_id, clock=clock)
    with pytest.raises(StepDrift, match="'step'.*'approval'"):
        await runner(store, clock, wait_limit=0).approval("a")
    with pytest.raises(StepDrift, match="now shows something else"):
        await runner(store, clock, wait_limit=0).approval("b", {"amount": 9000})


async def test_a_cancellation_is_looked_for_however_slow_the_store(clock: FakeClock) -> None:
    """An answer that took long once doesn't put the next look off by more than two seconds."""

    class Slow(MemoryStore):
        async def list(self, run_id: str) -> Any:
            clock.advance(20)
            return await super().list(run_id)

    store = Slow()
    async with runner(store, clock) as run:
        await run.step("a", lambda: 1)
        await control.cancel(store, "run")
        clock.advance(2)
        with pytest.raises(RunCancelled):
            await run.step("b", lambda: 1)


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("is_step_first", [True, False])
async def test_a_step_that_ends_while_a_wait_begins_to_wait_for_it(
    store: MemoryStore, clock: FakeClock, turns: int, *, is_step_first: bool
) -> None:
    """Whichever turn of the loop the last step ends in, the wait hears of it, and suspends the run."""

    async def work() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    with pytest.raises(RunSuspended):
        async with asyncio.timeout(10), runner(store, clock, wait_limit=0) as run:
            both = [run.step("work", work), run.event("mail")]
            await asyncio.gather(*(both if is_step_first else reversed(both)))
