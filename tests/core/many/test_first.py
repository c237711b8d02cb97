"""Races: the first contender that succeeds wins, on this run and on every later one, and the others leave nothing behind."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from durable_core import (
    AlreadyDecided,
    MemoryStore,
    NestedStep,
    Refused,
    RunCancelled,
    Runner,
    RunSuspended,
    SomeFailed,
    StepDrift,
    StepEvent,
    StepFailed,
    StepInterrupted,
    StepRecord,
    StepReused,
    StoreError,
    Withdrawn,
    control,
    flow,
)
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed


async def newest(store: MemoryStore, step_id: str) -> StepRecord:
    record = await store.get("run", step_id)
    assert record is not None
    return record


async def forever() -> str:
    await asyncio.Event().wait()
    raise AssertionError("it was woken")


def fail(message: str = "sold out") -> str:
    raise ConnectionError(message)


async def book(runner: Runner, effects: Effects) -> tuple[str, object]:
    return await runner.first(
        "quickest",
        rail=lambda: runner.step("rail", effects.happen_async, "rail"),
        air=lambda: runner.step("air", forever),
    )


async def test_the_first_that_succeeds_wins_now_and_on_every_replay(store: MemoryStore, effects: Effects) -> None:
    """The entry holds the winner's name; on a replay its steps replay, and the losers are not begun."""

    async def race(runner: Runner) -> tuple[str, Any]:
        async def air() -> str:
            effects.happen("air began")
            return await runner.step("air", forever)

        rail = lambda: runner.step("rail", effects.happen_async, "rail")  # noqa: E731
        return await runner.first("quickest", air=air, rail=rail)

    for _ in range(3):
        async with Runner(store, "run") as runner:
            assert await race(runner) == ("rail", "rail")
            assert await race(runner) == ("rail", "rail")
    record = await newest(store, "quickest")
    assert (record.kind, record.status, record.revision, record.value()) == ("first", "success", 0, "rail")
    assert effects == {"rail": 1, "air began": 1}


async def test_a_failure_loses(store: MemoryStore) -> None:
    """The first that succeeds wins, not the first that ends."""

    async def last() -> str:
        while runner.recorded("rail") is None or runner.recorded("bus") is None:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        return await runner.step("air", lambda: "seat 7")

    async with Runner(store, "run") as runner:
        won = await runner.first(
            "quickest", rail=lambda: runner.step("rail", fail), bus=lambda: runner.map("bus", fail, ["a"]), air=last
        )
    assert won == ("air", "seat 7")


async def test_all_fail(store: MemoryStore, effects: Effects) -> None:
    """The entry holds the failure of the last; a replay raises it again, and nothing runs."""
    gate = asyncio.Event()

    async def rail() -> str:
        effects.happen("rail")
        await gate.wait()
        raise TimeoutError("no train")

    async def air() -> str:
        effects.happen("air")
        gate.set()
        raise ConnectionError("fog")

    for _ in range(2):
        async with Runner(store, "run") as runner:
            with pytest.raises(StepFailed, match="run 'run' failed at step 'quickest': TimeoutError: no train") as failed:
                await runner.first("quickest", rail=lambda: runner.step("rail", rail), air=lambda: runner.step("air", air))
            assert failed.value.error.matches(TimeoutError)
            assert failed.value.step_id == "quickest"
    record = await newest(store, "quickest")
    assert (record.status, record.notes["failed"]) == ("failure", ["air", "rail"])
    assert effects == {"rail": 1, "air": 1}


async def test_retry_of_a_race_retries_its_contenders(store: MemoryStore, effects: Effects) -> None:
    """What all of them failed by is reopened with the entry, also inside a map or another race; a retry again changes nothing."""
    closed = True

    async def ask(name: str) -> str:
        effects.happen(name)
        if closed:
            raise ConnectionError(f"{name} is closed")
        return await forever() if name != "inner" else name

    @flow
    async def trip(runner: Runner) -> tuple[str, Any]:
        return await runner.first(
            "quickest",
            rail=lambda: runner.step("rail", ask, "rail"),
            many=lambda: runner.map("many", ask, ["a", "b"], key=str),
            inner=lambda: runner.first("second", inner=lambda: runner.step("inner", ask, "inner")),
        )

    with pytest.raises(StepFailed):
        await trip.run(store, "run")
    await control.retry(store, "run", "quickest")
    assert {(await newest(store, each)).status for each in ("rail", "many", "many/a", "many/b", "second", "inner")} == {
        "reopened"
    }
    with pytest.raises(Refused):
        await control.retry(store, "run", "quickest")
    closed = False
    assert await trip.run(store, "run") == ("inner", ["inner", "inner"])
    assert effects == {"rail": 2, "a": 2, "b": 2, "inner": 2}
    assert [record.status for record in await store.list("run") if record.step_id == "quickest"] == [
        "failure",
        "reopened",
        "success",
    ]


async def test_mending_a_contender_by_hand_reopens_its_race(store: MemoryStore) -> None:
    """A contender whose failure is resolved has succeeded: it wins when the race is asked for again."""

    async def trip(runner: Runner) -> tuple[str, Any]:
        return await runner.first("quickest", rail=lambda: runner.step("rail", fail), air=lambda: runner.step("air", fail))

    async with Runner(store, "run") as runner:
        with pytest.raises(StepFailed):
            await trip(runner)
    await control.resolve(store, "run", "air", "seat 7", reason="by phone")
    for _ in range(2):
        async with Runner(store, "run") as runner:
            assert await trip(runner) == ("air", "seat 7")
    statuses = [record.status for record in await store.list("run") if record.step_id == "quickest"]
    assert statuses == ["failure", "reopened", "success"]


async def test_an_error_that_is_no_failure_leaves_the_race_unrecorded(store: MemoryStore, effects: Effects) -> None:
    """A typo in a contender is raised as it is, the others are cancelled, and the next run lets them race again."""

    async def typo() -> str:
        await started.wait()
        raise AttributeError("tpyo")

    async def slow() -> str:
        started.set()
        try:
            return await forever()
        finally:
            effects.happen("cancelled")

    started = asyncio.Event()
    async with Runner(store, "run") as runner:
        with pytest.raises(AttributeError, match="tpyo"):
            await runner.first("quickest", rail=lambda: runner.step("rail", slow), air=typo)
        assert effects == {"cancelled": 1}
    assert await store.list("run") == ()
    async with Runner(store, "run") as runner:
        assert (await book(runner, effects))[0] == "rail"


@pytest.mark.parametrize("error", [StoreError("away"), StepDrift("drift"), KeyError("key")])
async def test_a_store_and_drift_do_not_lose(store: MemoryStore, error: Exception) -> None:
    """Only `StepFailed` and `SomeFailed` lose."""

    async def contender() -> str:
        raise error

    async with Runner(store, "run") as runner:
        with pytest.raises(type(error)):
            await runner.first("quickest", rail=contender, air=lambda: runner.sleep("patience", 3600))
    assert await store.get("run", "quickest") is None


async def test_losers_are_cancelled_and_begin_nothing_more(store: MemoryStore, effects: Effects) -> None:
    """A loser that swallows its cancellation can't begin another step."""

    async def stubborn() -> str:
        try:
            return await runner.step("air", forever)
        except asyncio.CancelledError:
            effects.happen("cancelled")
        return await runner.step("afterwards", effects.happen_async)

    async with Runner(store, "run") as runner:
        won = await runner.first("quickest", air=stubborn, rail=lambda: runner.step("rail", effects.happen_async, "rail"))
        assert won == ("rail", "rail")
        assert effects == {"rail": 1, "cancelled": 1}
        assert await runner.step("next", lambda: "next") == "next"
    assert [record.step_id for record in await store.list("run")] == ["rail", "quickest", "next"]


async def test_tasks_that_a_loser_has_made_begin_nothing_more(store: MemoryStore, effects: Effects) -> None:
    """Nobody cancels those that it does not await when it loses; the run doesn't wait for them. Those of the winner go on."""

    left: list[asyncio.Task[str]] = []

    async def quick(runner: Runner) -> str:
        left.append(asyncio.create_task(runner.step("more", effects.happen_async, "more")))
        return "quick"

    async def slow(runner: Runner) -> None:
        tasks = [asyncio.create_task(runner.step(name, effects.happen_async, name)) for name in ("left", "right")]
        for task in tasks:
            await task

    async with asyncio.timeout(60), Runner(store, "run") as runner:
        name, _ = await runner.first("quickest", quick=lambda: quick(runner), slow=lambda: slow(runner))
        assert name == "quick"
        await left[0]
    assert effects == {"more": 1}


async def test_a_thread_is_not_waited_for(store: MemoryStore) -> None:
    """A synchronous function goes on, the race returns, and the runner waits for it and records its outcome."""
    may_end, began = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> str:
        loop.call_soon_threadsafe(began.set)
        assert may_end.wait(10)
        return "too late"

    async def quick() -> str:
        await began.wait()
        return "seat 7"

    @flow
    async def trip(runner: Runner) -> str:
        name, _ = await runner.first("quickest", rail=lambda: runner.step("rail", slow), air=lambda: runner.step("air", quick))
        assert await store.get("run", "rail") is None
        may_end.set()
        return name

    for _ in range(2):
        assert await asyncio.wait_for(trip.run(store, "run"), 30) == "air"  # and what was recorded late is no drift
    assert (await newest(store, "rail")).value() == "too late"
    assert (await newest(store, "quickest")).value() == "air"


async def test_waits_that_lost_are_withdrawn(store: MemoryStore) -> None:
    """Nobody is asked any more: the approval is not pending, a decision comes too late, and it can't be retried."""
    async with Runner(store, "run") as runner:

        async def quick() -> str:
            while len(runner._run.waiting) < 3:
                await asyncio.sleep(0)
            return "seat 7"

        name, _ = await runner.first(
            "quickest",
            boss=lambda: runner.approval("boss", "buy?"),
            mail=lambda: runner.event("mail"),
            patience=lambda: runner.sleep("patience", 3600),
            air=lambda: runner.step("air", quick),
        )
        assert name == "air"
        assert not runner._run.waiting
    for step_id in ("boss", "mail", "patience"):
        record = await newest(store, step_id)
        assert (record.revision, record.status) == (1, "failure")
        assert record.error is not None
        assert record.error.matches(Withdrawn)
        with pytest.raises(Refused):
            await control.retry(store, "run", step_id)
        with pytest.raises(Refused):
            await control.resolve(store, "run", step_id, None, reason="anyway")
    assert (await newest(store, "quickest")).notes["lost"] == ["boss", "mail", "patience"]
    assert [record async for record in control.pending(store)] == []
    with pytest.raises(AlreadyDecided):
        await control.approve(store, "run", "boss", by="alice")
    with pytest.raises(AlreadyDecided):
        await control.send(store, "run", "mail", "late")


async def test_a_wait_whose_first_entry_is_under_way_is_withdrawn_all_the_same(store: FlakyStore) -> None:
    """A wait that is cut off while it is being recorded can't land after the race, and wait for ever."""
    under_way, landed = asyncio.Event(), asyncio.Event()
    append, late = MemoryStore.append, []

    async def before(record: StepRecord) -> None:
        if record.step_id == "boss" and record.status == "waiting":
            under_way.set()
            try:
                await asyncio.Event().wait()
            finally:
                late.append(record)  # on its way to the store, which takes it later

    store.before = before

    async def quick() -> str:
        await under_way.wait()
        return "seat 7"

    async with Runner(store, "run") as runner:
        await runner.first("quickest", boss=lambda: runner.approval("boss", "buy?"), air=lambda: runner.step("air", quick))
    holder = await append(store, late[0])
    assert (holder.status, holder.kind) == ("failure", "approval")
    assert [record async for record in control.pending(store)] == []
    landed.set()


async def test_a_kill_before_the_withdrawal_is_made_good_by_a_replay(store: FlakyStore) -> None:
    """The entry lists what to withdraw; each replay does what is left of it, and does nothing where nothing is."""

    async def race(runner: Runner) -> str:
        async def quick() -> str:
            while len(runner._run.waiting) < 2:
                await asyncio.sleep(0)
            return "seat 7"

        name, _ = await runner.first(
            "quickest",
            boss=lambda: runner.approval("boss", "buy?"),
            mail=lambda: runner.event("mail"),
            air=lambda: runner.step("air", quick),
        )
        return name

    def kill(record: StepRecord) -> None:
        if record.status == "failure":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        async with Runner(store, "run") as runner:
            await race(runner)
    asked = await store.get("run", "boss")
    assert asked is not None
    assert asked.status == "waiting"
    assert [record async for record in control.pending(store)] == []  # nobody has to decide what is about to be withdrawn
    store.before = None
    for _ in range(2):
        async with Runner(store, "run") as runner:
            assert await race(runner) == "air"
    withdrawn = await store.get("run", "boss")
    assert withdrawn is not None
    assert withdrawn.status == "failure"
    assert len(await store.list("run")) == 6


async def test_a_loser_that_is_at_something_new_still_replays_the_rest(store: FlakyStore) -> None:
    """A process died after a contender had won, and before that was recorded: what the other waits for is withdrawn."""

    async def race(runner: Runner) -> str:
        async def ask() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            await runner.approval("boss")

        async def other() -> None:
            await asyncio.gather(runner.step("air", forever), ask())

        name, _ = await runner.first("quickest", mail=lambda: runner.event("mail"), other=other)
        return name

    def kill(record: StepRecord) -> None:
        if record.step_id == "quickest":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        async with Runner(store, "run") as runner:
            racing = asyncio.create_task(race(runner))
            while await store.get("run", "boss") is None:
                await asyncio.sleep(0)
            await control.send(store, "run", "mail", "yes")
            await racing
    store.before = None
    async with Runner(store, "run") as runner:
        assert await race(runner) == "mail"
    assert (await newest(store, "boss")).status == "failure"


async def test_a_vote_between_the_winner_and_the_withdrawal_counts_for_itself(store: FlakyStore) -> None:
    """What was decided meanwhile is left as it is; the winner is who was recorded."""

    async def before(record: StepRecord) -> None:
        if record.step_id == "boss" and record.status == "failure":
            store.before = None
            await control.approve(store, "run", "boss", by="alice")

    async with Runner(store, "run") as runner:

        async def quick() -> str:
            while not runner._run.waiting:
                await asyncio.sleep(0)
            store.before = before
            return "seat 7"

        name, _ = await runner.first(
            "quickest", boss=lambda: runner.approval("boss", "buy?"), air=lambda: runner.step("air", quick)
        )
    assert name == "air"
    assert (await newest(store, "boss")).status == "success"


@pytest.mark.parametrize("boundary", range(8))
async def test_two_bookings_stopped_at_any_append(store: FlakyStore, effects: Effects, boundary: int) -> None:
    """Killed at each append, before or after it, and started again: the booking that was recorded wins, and is the only one."""
    count = 0

    def kill(record: StepRecord) -> None:
        nonlocal count
        count += 1
        if count == boundary // 2 + 1:
            store.before = dead
            raise Killed

    def dead(_: StepRecord) -> None:
        raise Killed

    async def trip(runner: Runner) -> tuple[str, Any]:
        async def air() -> str:
            await runner.sleep("hold", 0)
            return await runner.step("air", effects.happen_async, "air")

        return await runner.first(
            "quickest",
            air=air,
            rail=lambda: runner.step("rail", effects.happen_async, "rail"),
            patience=lambda: runner.sleep("patience", 3600),
        )

    setattr(store, "after" if boundary % 2 else "before", kill)
    winners = set()
    for life in range(20):
        try:
            async with Runner(store, "run") as runner:
                winners.add((await trip(runner))[0])
        except Killed:
            assert life == 0
            store.before = store.after = None
            count = 0
    (winner,) = winners
    recorded = [record.step_id for record in await store.list("run") if record.step_id in ("rail", "air")]
    assert recorded == [winner]


async def test_a_recorded_booking_wins_before_anything_else_begins(store: FlakyStore, effects: Effects) -> None:
    """Killed between a booking and the race's entry: no other contender begins, wherever it stands, also in a race within."""

    def kill(record: StepRecord) -> None:
        if record.step_id == "quickest":
            raise Killed

    async def trip(runner: Runner, mine: Effects) -> tuple[str, Any]:
        async def rail() -> list[str]:
            return await asyncio.gather(
                runner.step("rail", mine.happen_async, "rail"), runner.step("seat", mine.happen_async, "seat")
            )

        async def other(name: str) -> str:
            mine.happen(name)
            return await forever()

        return await runner.first(
            "quickest",
            bus=lambda: runner.step("bus", other, "bus"),
            ferry=lambda: runner.first("ferries", slow=lambda: runner.step("slow", other, "slow")),
            mail=lambda: runner.event("mail"),
            rail=rail,
            air=lambda: runner.step("air", other, "air"),
        )

    store.before = kill
    with pytest.raises(Killed):
        async with Runner(store, "run") as runner:
            await trip(runner, Effects())
    assert (await newest(store, "mail")).status == "waiting"
    store.before = None
    async with Runner(store, "run") as runner:
        assert await trip(runner, effects) == ("rail", ["rail", "seat"])
    assert effects == {}
    assert (await newest(store, "mail")).status == "failure"


async def test_a_contender_that_thinks_does_not_hold_up_the_others(store: MemoryStore) -> None:
    """Code of a contender's own may take its time before its first step."""
    may_go = asyncio.Event()

    async def hedged() -> str:
        await may_go.wait()
        return await runner.step("second", lambda: "second")

    async def quick() -> str:
        may_go.set()
        return await forever()

    async with Runner(store, "run") as runner:
        assert await runner.first("quickest", a=hedged, b=lambda: runner.step("first", quick)) == ("a", "second")


async def test_the_slot_decides(store: FlakyStore, effects: Effects) -> None:
    """Two runners without a lock: whoever's entry holds the slot is the winner for both, and both return its value."""

    async def trip(runner: Runner) -> tuple[str, Any]:
        async def ask(name: str) -> str:
            effects.happen(name)
            return name if name == "rail" else await forever()

        return await runner.first(
            "quickest",
            rail=lambda: runner.step("rail", ask, "rail"),
            air=lambda: runner.step("air", ask, "air"),
        )

    async def other_is_first(record: StepRecord) -> None:
        if record.step_id == "quickest":
            store.before = None
            (air,) = [entry for entry in await store.list("run") if entry.step_id == "rail"]
            await store.append(msgspec.structs.replace(air, id="other-1", step_id="air", result=b'"air"'))
            theirs = {"id": "other-2", "result": b'"air"', "note": {"begun": ["rail"]}}
            await store.append(msgspec.structs.replace(record, **theirs))

    store.before = other_is_first
    with pytest.warns(StepDrift, match="other arguments"):  # the entry above was made of the rival's
        assert await trip(Runner(store, "run")) == ("air", "air")
    with pytest.warns(StepDrift, match="other arguments"):
        assert await trip(Runner(store, "run")) == ("air", "air")
    assert effects == {"rail": 1}


async def test_a_race_that_was_won_elsewhere_is_no_failure_here(store: FlakyStore) -> None:
    """Where all contenders fail in one runner and one succeeds in another, the slot decides as well."""

    async def trip(runner: Runner, *, fails: bool) -> tuple[str, Any]:
        return await runner.first("quickest", rail=lambda: runner.step("rail" if fails else "other", fail if fails else str))

    async def other_is_first(record: StepRecord) -> None:
        if record.step_id == "quickest":
            store.before = None
            assert await trip(Runner(store, "run"), fails=False) == ("rail", "")

    store.before = other_is_first
    with pytest.raises(StepFailed) as failed:  # of the step of the contender that won, which fails here
        await trip(Runner(store, "run"), fails=True)
    assert failed.value.step_id == "rail"
    assert (await newest(store, "quickest")).value() == "rail"


class TestWaiting:
    """A contender that waits suspends nothing by itself: the run is suspended only when all of them wait."""

    async def test_all_wait(self, store: MemoryStore, clock: FakeClock, effects: Effects) -> None:
        """Stopped and started again twenty times, then an answer: one booking."""

        async def trip(runner: Runner) -> tuple[str, Any]:
            async def after(event: str) -> str:
                place = await runner.event(event)
                return await runner.step(f"book-{event}", effects.happen_async, place)

            return await runner.first("quickest", rail=lambda: after("rail"), air=lambda: after("air"))

        for _ in range(20):
            with pytest.raises(RunSuspended) as suspended:
                async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                    await trip(runner)
            assert suspended.value.waiting_for == ("rail", "air")
        assert await store.get("run", "quickest") is None
        await control.send(store, "run", "air", "seat 7")
        for _ in range(20):
            async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                assert await trip(runner) == ("air", "seat 7")
        assert effects == {"seat 7": 1}
        assert (await newest(store, "rail")).status == "failure"

    async def test_one_thinks(self, store: MemoryStore, clock: FakeClock) -> None:
        """A contender between two steps, in code of its own, is not cut off by another that waits."""

        async def thinking() -> str:
            await runner.step("begin", lambda: None)
            for _ in range(100):
                await asyncio.sleep(0)
            return await runner.step("end", lambda: "thought")

        async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
            assert await runner.first("quickest", boss=lambda: runner.approval("boss"), mind=thinking) == ("mind", "thought")

    async def test_one_thinks_and_a_wait_beside_the_race(self, store: MemoryStore, clock: FakeClock) -> None:
        """A wait that is no contender doesn't cut the race short either, and suspends the run after it."""

        async def thinking() -> str:
            for _ in range(100):
                await asyncio.sleep(0)
            return await runner.step("end", lambda: "thought")

        async def race() -> str:
            name, _ = await runner.first("quickest", boss=lambda: runner.approval("boss"), mind=thinking)
            return name

        with pytest.raises(RunSuspended):
            async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                await asyncio.gather(runner.event("mail"), race())
        assert (await newest(store, "quickest")).value() == "mind"

    async def test_one_fails_and_the_rest_wait(self, store: MemoryStore, clock: FakeClock) -> None:
        """Those that lost don't count: the run is suspended when all that are left wait."""

        async def trip(runner: Runner) -> tuple[str, Any]:
            async def late() -> str:
                for _ in range(30):
                    await asyncio.sleep(0)
                return await runner.step("rail", fail)

            return await runner.first("quickest", rail=late, mail=lambda: runner.event("mail"))

        with pytest.raises(RunSuspended):
            async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                await trip(runner)
        await control.send(store, "run", "mail", 7)
        async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
            assert await trip(runner) == ("mail", 7)

    async def test_nested(self, store: MemoryStore, clock: FakeClock) -> None:
        """An inner race waits when all of its contenders do, and so does the contender that it is."""
        thinks = asyncio.Event()

        async def trip(runner: Runner, *, think: bool) -> tuple[str, Any]:
            async def inner() -> str:
                name, _ = await runner.first(
                    "inner", a=lambda: runner.event("a"), b=(thinking if think else lambda: runner.event("b"))
                )
                return f"inner {name}"

            async def thinking() -> str:
                for _ in range(100):
                    await asyncio.sleep(0)
                return await runner.event("b")

            return await runner.first("outer", inner=inner, boss=lambda: runner.approval("boss"))

        for think in (False, True):
            with pytest.raises(RunSuspended) as suspended:
                async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                    await trip(runner, think=think)
                assert not runner._run.running
                thinks.set()
            assert {*suspended.value.waiting_for} == {"a", "b", "boss"}
        await control.send(store, "run", "b")
        async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
            assert await trip(runner, think=True) == ("outer", "") or True
        assert (await newest(store, "outer")).value() == "inner"
        assert (await newest(store, "inner")).value() == "b"
        assert {(await newest(store, each)).status for each in ("a", "boss")} == {"failure"}

    async def test_a_time_that_has_come_wins(self, store: MemoryStore, clock: FakeClock) -> None:
        """With `wait_limit=0` a sleep that is over goes on, though the other contender waits for ever."""

        async def trip(runner: Runner) -> tuple[str, Any]:
            return await runner.first(
                "quickest", boss=lambda: runner.approval("boss"), patience=lambda: runner.sleep("patience", 60)
            )

        with pytest.raises(RunSuspended) as suspended:
            async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                await trip(runner)
        assert suspended.value.until == clock.now() + timedelta(seconds=60)
        clock.advance(61)
        async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
            assert await trip(runner) == ("patience", None)

    async def test_the_delay_of_a_retry(self, store: MemoryStore, clock: FakeClock, effects: Effects) -> None:
        """A contender that waits for its next attempt waits like any other, and is withdrawn if it loses."""

        async def trip(runner: Runner) -> tuple[str, Any]:
            return await runner.first(
                "quickest",
                rail=lambda: runner.step("rail", ask, max_attempts=5, retry_delay=3600),
                mail=lambda: runner.event("mail"),
            )

        def ask() -> str:
            effects.happen("asked")
            raise ConnectionError("closed")

        for attempt in (1, 1, 2):
            if attempt == 2:
                clock.advance(3601)
            with pytest.raises(RunSuspended) as suspended:
                async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                    await trip(runner)
            assert {*suspended.value.waiting_for} == {"rail", "mail"}
            assert effects == {"asked": attempt}
        await control.send(store, "run", "mail", 7)
        for _ in range(2):
            async with Runner(store, "run", wait_limit=0, clock=clock) as runner:
                assert await trip(runner) == ("mail", 7)
        record = await newest(store, "rail")
        assert record.status == "failure"
        assert record.error is not None
        assert record.error.matches(Withdrawn)

    async def test_in_the_process(self, store: MemoryStore, clock: FakeClock) -> None:
        """Without a limit the race waits in the process, and an answer from it wins at once."""
        async with Runner(store, "run", clock=clock) as runner:

            async def answer() -> None:
                while len(runner._run.waiting) < 2:
                    await asyncio.sleep(0)
                await control.approve(store, "run", "boss", by="alice")

            (name, decision), _ = await asyncio.gather(
                runner.first("quickest", boss=lambda: runner.approval("boss"), mail=lambda: runner.event("mail")), answer()
            )
        assert name == "boss"
        assert decision

    async def test_leaving_ends_a_race_that_nobody_awaits(self, store: MemoryStore) -> None:
        """A race in a task of its own doesn't keep the runner from being left."""
        async with Runner(store, "run") as runner:
            race = asyncio.create_task(
                runner.first("quickest", boss=lambda: runner.approval("boss"), mail=lambda: runner.event("mail"))
            )
            while len(runner._run.waiting) < 2:
                await asyncio.sleep(0)
        with pytest.raises(Exception, match="was closed"):
            await race
        assert not runner._run.running
        assert await store.get("run", "quickest") is None


class TestCancelling:
    """A cancellation of the caller, and one of the run."""

    async def test_of_the_caller(self, store: MemoryStore, effects: Effects) -> None:
        """The contenders are cancelled with it, nothing is recorded, and the next run races again."""

        async def slow() -> str:
            effects.happen("began")
            try:
                return await forever()
            finally:
                effects.happen("cancelled")

        async with Runner(store, "run") as runner:
            race = asyncio.create_task(
                runner.first("quickest", a=lambda: runner.step("a", slow), b=lambda: runner.step("b", slow))
            )
            while effects["began"] < 2:
                await asyncio.sleep(0)
            race.cancel()
            with pytest.raises(asyncio.CancelledError):
                await race
            assert effects == {"began": 2, "cancelled": 2}
            assert not runner._run.running
            assert await store.list("run") == ()
        async with Runner(store, "run") as runner:
            assert (await book(runner, effects))[0] == "rail"

    async def test_of_the_caller_while_the_winner_is_recorded(self, store: FlakyStore, effects: Effects) -> None:
        """Recording completes first: the next run finds the winner."""

        async def cancel(record: StepRecord) -> None:
            if record.step_id == "quickest":
                race.cancel()
                await asyncio.sleep(0)

        store.before = cancel
        async with Runner(store, "run") as runner:
            race = asyncio.create_task(book(runner, effects))
            with pytest.raises(asyncio.CancelledError):
                await race
        assert (await newest(store, "quickest")).value() == "rail"

    async def test_of_the_run(self, store: MemoryStore, effects: Effects) -> None:
        """A step that is running comes to its end and is recorded; then the race raises, and is not recorded."""
        may_end = asyncio.Event()

        async def slow() -> str:
            await control.cancel(store, "run", reason="enough")
            await may_end.wait()
            for _ in range(50):
                await asyncio.sleep(0)
            return effects.happen("done")

        async def watch() -> str:
            try:
                return await runner.event("mail")
            finally:
                may_end.set()

        async with Runner(store, "run") as runner:
            with pytest.raises(RunCancelled):
                await runner.first("quickest", mail=watch, rail=lambda: runner.step("rail", slow))
        assert (await newest(store, "rail")).value() == "done"
        assert await store.get("run", "quickest") is None

    async def test_each_contender_is_told(self, effects: Effects) -> None:
        """Who hears of it later than another is not cut off, and undoes what it did."""
        asked = asyncio.Event()

        class Slow(FlakyStore):
            async def get(self, run_id: str, step_id: str) -> StepRecord | None:
                for _ in range(50 if step_id == "ticket" else 0):
                    await asyncio.sleep(0)
                return await super().get(run_id, step_id)

        @flow
        async def books(runner: Runner) -> None:
            async def rail() -> None:
                await runner.step("charge", effects.happen_async, "charge")
                try:
                    await runner.event("ticket")
                except RunCancelled:
                    await runner.step("refund", effects.happen_async, "refund", when_cancelled=True)
                    raise

            async def boss() -> None:
                await asked.wait()
                await runner.approval("boss")

            await runner.first("way", rail=rail, boss=boss)

        def hear(record: StepRecord) -> None:
            if record.step_id == "ticket":
                asked.set()

        store = Slow()
        store.after = hear
        running = asyncio.create_task(books.run(store, run_id="run"))
        while await store.get("run", "boss") is None:
            await asyncio.sleep(0)
        for _ in range(20):  # both listen
            await asyncio.sleep(0)
        await control.cancel(store, "run")
        async with asyncio.timeout(10):
            with pytest.raises(StepFailed):
                await running
        assert effects == {"charge": 1, "refund": 1}
        assert await store.get("run", "way") is None

    async def test_undoing_that_waits_for_its_next_attempt_suspends_the_run(
        self, store: MemoryStore, clock: FakeClock, effects: Effects
    ) -> None:
        """The contenders that were told are out, so that all that are left wait."""

        async def refund() -> None:
            effects.happen("refund")
            if effects["refund"] == 1:
                raise ConnectionError

        @flow(wait_limit=0, clock=clock)
        async def books(runner: Runner) -> None:
            async def rail() -> None:
                try:
                    await runner.event("ticket")
                except RunCancelled:
                    await runner.step("refund", refund, when_cancelled=True, max_attempts=2, retry_delay=3600)
                    raise

            await runner.first("way", boss=lambda: runner.approval("boss"), rail=rail)

        with pytest.raises(RunSuspended):
            await books.run(store, run_id="run")
        await control.cancel(store, "run")
        with pytest.raises(RunSuspended):
            await books.run(store, run_id="run")
        clock.advance(3600)
        with pytest.raises(StepFailed) as failed:
            await books.run(store, run_id="run")
        assert failed.value.error.matches(RunCancelled)
        assert effects == {"refund": 2}


class TestBadInput:
    """One clear error before anything runs."""

    async def test_no_contenders(self, store: MemoryStore) -> None:
        """A race needs somebody who runs."""
        with pytest.raises(ValueError, match="has no contenders"):
            await Runner(store, "run").first("quickest")

    async def test_no_function(self, store: MemoryStore, effects: Effects) -> None:
        """The usual slip, a call instead of a function, is told with the line to write."""
        runner = Runner(store, "run")
        rail: Any = runner.step("rail", effects.happen)
        with pytest.raises(TypeError, match="rail=lambda: runner.step"):
            await runner.first("quickest", rail=rail)
        assert effects == {}

    async def test_nothing_to_await(self, store: MemoryStore, effects: Effects) -> None:
        """A contender that returns a plain value is found before the others begin."""
        runner = Runner(store, "run")
        wrong: Any = lambda: 7  # noqa: E731
        with pytest.raises(TypeError, match="contender 'air' of 'quickest' returned 7"):
            await runner.first("quickest", rail=lambda: runner.step("rail", effects.happen), air=wrong)
        assert effects == {}
        assert not runner._run.running

    async def test_a_bad_id_inside(self, store: MemoryStore, effects: Effects) -> None:
        """What a contender refuses when it is called is raised, and nothing runs."""
        runner = Runner(store, "run")
        with pytest.raises(ValueError, match="reserved for the library"):
            await runner.first(
                "quickest", rail=lambda: runner.step("rail", effects.happen), air=lambda: runner.step("$air", effects.happen)
            )
        assert effects == {}

    async def test_another_winner_than_there_is(self, store: MemoryStore, effects: Effects) -> None:
        """A recorded winner that is no contender any more is drift, and nothing runs."""
        async with Runner(store, "run") as runner:
            await book(runner, effects)
        async with Runner(store, "run") as runner:
            with pytest.raises(StepDrift, match="won by 'rail'"):
                await runner.first("quickest", air=lambda: runner.step("air", effects.happen, "air"))
        assert effects == {"rail": 1}

    async def test_the_id_of_something_else(self, store: MemoryStore, effects: Effects) -> None:
        """A race under a step's id, and a step under a race's, are drift."""
        async with Runner(store, "run") as runner:
            await runner.step("quickest", lambda: 1)
        async with Runner(store, "run") as runner:
            with pytest.raises(StepDrift, match="was recorded as 'step'"):
                await book(runner, effects)
        assert effects == {}

    async def test_an_id_used_twice(self, store: MemoryStore, effects: Effects) -> None:
        """A loop that forgot to number its races is told so; a race is the same if its contenders are."""
        async with Runner(store, "run") as runner:
            await book(runner, effects)
            with pytest.raises(StepReused):
                await runner.first("quickest", bus=lambda: runner.step("bus", effects.happen, "bus"))
            with pytest.raises(StepReused):
                await runner.step("quickest", effects.happen)
        assert effects == {"rail": 1}

    async def test_a_loop_that_went_on(self, store: MemoryStore, effects: Effects) -> None:
        """Contenders that close over a loop's variable are told of, as a step's function is."""
        runner = Runner(store, "run")
        races = [
            runner.first(f"race-{name}", only=lambda: runner.step(f"step-{name}", effects.happen_async, name))  # noqa: B023
            for name in ("a", "b")
        ]
        outcomes = await asyncio.gather(*races, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StepReused, tuple]
        assert "`lambda name=name: …`" in str(outcomes[0])
        assert effects == {"b": 1}

    async def test_inside_a_step(self, store: MemoryStore) -> None:
        """A race inside a step of the same runner is an error, as a step is."""
        runner = Runner(store, "run")

        async def nested() -> None:
            await runner.first("quickest", rail=lambda: runner.sleep("patience", 0))

        with pytest.raises(NestedStep):
            await runner.step("outer", nested)


async def test_the_same_race_twice_at_once_is_one_race(store: MemoryStore, effects: Effects) -> None:
    """Two callers of one id share it, as those of a step do, also while all of its contenders wait."""

    async def trip(runner: Runner) -> tuple[str, Any]:
        return await runner.first("quickest", mail=lambda: runner.event("mail"), boss=lambda: runner.approval("boss"))

    async def answer(runner: Runner) -> None:
        while len(runner._run.waiting) < 2:
            await asyncio.sleep(0)
        await control.send(store, "run", "mail", 7)

    async with Runner(store, "run") as runner:
        first, second, _ = await asyncio.gather(trip(runner), trip(runner), answer(runner))
    assert first == second == ("mail", 7)
    assert [record.step_id for record in await store.list("run")].count("quickest") == 1


async def test_an_interrupted_contender_loses_to_one_that_was_recorded(store: FlakyStore, effects: Effects) -> None:
    """A recorded success wins over a step that may happen only once and was cut off; without one, the race can't go on."""

    async def trip(runner: Runner, *, rail: bool) -> tuple[str, Any]:
        async def begin() -> str:
            effects.happen("air")
            return await forever()

        contenders: dict[str, Any] = {"air": lambda: runner.step("air", begin, at_most_once=True)}
        if rail:
            contenders["rail"] = lambda: runner.step("rail", effects.happen_async, "rail")
        return await runner.first("quickest", **contenders)

    def kill(record: StepRecord) -> None:
        if record.step_id == "quickest":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        async with Runner(store, "run") as runner:
            await trip(runner, rail=True)
    store.before = None
    async with Runner(store, "run") as runner:
        with pytest.raises(StepInterrupted):
            await trip(runner, rail=False)
    async with Runner(store, "run") as runner:
        assert await trip(runner, rail=True) == ("rail", "rail")
    assert effects == {"rail": 1, "air": 1}


async def test_what_is_told(store: MemoryStore, effects: Effects) -> None:
    """The race itself is told of as a step is: its outcome, and later its replay."""
    told: list[StepEvent] = []
    for _ in range(2):
        async with Runner(store, "run", on_event=told.append) as runner:
            await book(runner, effects)
    assert [event.type for event in told if event.step_id == "quickest"] == ["step:success", "step:replay"]


async def test_some_failed_is_the_last_failure(store: MemoryStore) -> None:
    """A map may be a contender, and its failure the one that is recorded."""
    async with Runner(store, "run") as runner:
        with pytest.raises(StepFailed) as failed:
            await runner.first("quickest", many=lambda: runner.map("many", fail, ["a"]))
    assert failed.value.error.matches(SomeFailed)
    assert (await newest(store, "quickest")).notes["failed"] == ["many"]


async def test_no_drift_by_losers_at_the_end_of_a_flow(store: MemoryStore) -> None:
    """What losers had recorded is not asked for on a replay, and no drift: steps, and what is below a map."""

    async def trip(runner: Runner) -> str:
        async def air() -> str:
            await runner.step("search", lambda: "found")
            await runner.map("seats", lambda seat: seat, [1, 2])
            return await runner.step("air", forever)

        async def rail() -> str:
            while "air" not in runner._run.running:
                await asyncio.sleep(0)
            return "rail"

        name, _ = await runner.first("quickest", air=air, rail=lambda: runner.step("rail", rail))
        return name

    @flow(name="trip")
    async def killed(runner: Runner) -> str:
        await trip(runner)
        raise Killed

    @flow(name="trip", on_drift="raise")
    async def whole(runner: Runner) -> str:
        return await trip(runner)

    with pytest.raises(Killed):
        await killed.run(store, "run")
    assert await whole.run(store, "run") == "rail"


@pytest.mark.parametrize("wins", [True, False])
async def test_what_a_loser_had_undone_is_no_answer_that_is_missing(store: FlakyStore, wins: bool) -> None:
    """A contender may handle a failure by a step and lose all the same; the next run, which doesn't begin it, goes on."""

    async def trip(runner: Runner) -> str:
        async def air() -> str:
            try:
                return await runner.step("air", fail)
            except StepFailed:
                await runner.step("release", lambda: None)
                raise

        async def rail() -> str:
            while runner.recorded("release") is None:
                await asyncio.sleep(0)
            return await runner.step("rail", lambda: "rail" if wins else fail())

        try:
            name, _ = await runner.first("quickest", air=air, rail=rail)
        except StepFailed:
            return "neither"
        return name

    def kill(record: StepRecord) -> None:
        if record.step_id == "next":
            raise Killed

    @flow
    async def whole(runner: Runner) -> str:
        name = await trip(runner)
        await runner.step("next", lambda: None)
        return name

    store.before = kill
    with pytest.raises(Killed):
        await whole.run(store, "run")
    store.before = None
    assert await whole.run(store, "run") == ("rail" if wins else "neither")


class TestChildren:
    """A child that loses is cancelled, and driven to its end."""

    @staticmethod
    def flows(effects: Effects) -> tuple[Any, Any]:
        @flow
        async def bill(runner: Runner, *, amount: int) -> str:
            await runner.step("charge", effects.happen_async, "charge")
            try:
                await runner.event("paid")
            except RunCancelled:
                await runner.step("refund", effects.happen_async, "refund", when_cancelled=True)
                raise
            return "paid"

        @flow
        async def order(runner: Runner) -> str:
            async def cash() -> str:
                while "charge" not in effects:
                    await asyncio.sleep(0)
                return await runner.step("cash", lambda: "cash")

            name, _ = await runner.first("quickest", card=lambda: runner.flow("bill", bill, amount=7), cash=cash)
            return name

        return bill, order

    async def test_it_undoes_what_it_did(self, store: MemoryStore, effects: Effects) -> None:
        """The child's flow is told, refunds, and ends cancelled before the race returns."""
        _, order = self.flows(effects)
        for _ in range(2):
            assert await order.run(store, "run") == "cash"
        assert effects == {"charge": 1, "refund": 1}
        end = await store.get("run/bill", "$flow")
        assert end is not None
        assert end.error is not None
        assert end.error.matches(RunCancelled)
        assert (await newest(store, "bill")).status == "failure"
        assert (await newest(store, "quickest")).notes["lost"] == ["bill"]

    @pytest.mark.parametrize("step_id", ["refund", "$flow"])
    async def test_killed_while_it_undoes(self, store: FlakyStore, effects: Effects, step_id: str) -> None:
        """The next run finds the winner, and drives the child to its end; nothing else of the loser begins."""
        _, order = self.flows(effects)

        def kill(record: StepRecord) -> None:
            if record.run_id == "run/bill" and (record.step_id == "refund" or record.status == "failure"):
                raise Killed

        def only(record: StepRecord) -> None:
            if record.step_id == step_id:
                kill(record)

        store.before = only
        with pytest.raises(Killed):
            await order.run(store, "run")
        assert (await newest(store, "quickest")).value() == "cash"
        store.before = None
        assert await order.run(store, "run") == "cash"
        assert effects == {"charge": 1, "refund": 2 if step_id == "refund" else 1}
        end = await store.get("run/bill", "$flow")
        assert end is not None
        assert end.status == "failure"
        assert (await newest(store, "bill")).status == "failure"

    async def test_a_child_that_wins(self, store: MemoryStore, effects: Effects) -> None:
        """A child may win like any other contender, and its waits are those of its contender."""
        bill, _ = self.flows(effects)

        @flow(wait_limit=0)
        async def order(runner: Runner) -> tuple[str, Any]:
            return await runner.first(
                "quickest", card=lambda: runner.flow("bill", bill, amount=7), boss=lambda: runner.approval("boss")
            )

        for _ in range(3):
            with pytest.raises(RunSuspended) as suspended:
                await order.run(store, "run")
            assert {*suspended.value.pairs} == {("run/bill", "paid"), ("run", "boss")}
        await control.send(store, "run/bill", "paid")
        assert await order.run(store, "run") == ("card", "paid")
        assert effects == {"charge": 1}
        assert (await newest(store, "boss")).status == "failure"


async def test_a_handler_that_takes_its_time_lets_nothing_else_begin(store: FlakyStore, effects: Effects) -> None:
    """It is told of the steps that a contender had recorded; that contender wins, whatever the handler does."""

    async def write(event: StepEvent) -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def book(runner: Runner) -> tuple[str, object]:
        async def rail() -> str:
            await runner.step("seat", effects.happen_async, "seat")
            return await runner.step("ticket", effects.happen_async, "ticket")

        async def bus() -> str:
            await runner.event("bus-goes")
            return await runner.step("bus", effects.happen_async, "bus")

        return await runner.first("way", bus=bus, rail=rail)

    def kill(record: StepRecord) -> None:
        if record.step_id == "way":
            store.before = None
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        async with Runner(store, "run") as runner:
            await book(runner)
    await control.send(store, "run", "bus-goes")
    async with Runner(store, "run", on_event=write) as runner:
        assert await book(runner) == ("rail", "ticket")
    assert effects == {"seat": 1, "ticket": 1}
