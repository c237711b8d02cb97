"""Flows in flows: a child is a run of its own, and its parent waits, fails and is cancelled with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from durable_core import (
    Lease,
    LockLost,
    MemoryStore,
    RunBusy,
    RunCancelled,
    Runner,
    RunSuspended,
    StepDrift,
    StepFailed,
    StepInterrupted,
    StepRecord,
    control,
    flow,
)
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed


async def entries(store: MemoryStore, run_id: str, step_id: str) -> list[str]:
    return [record.status for record in await store.list(run_id) if record.step_id == step_id]


@flow
async def bill(runner: Runner, customer: str) -> str:
    return await runner.step("send", lambda: f"bill for {customer}")


@flow
async def order(runner: Runner, customer: str) -> str:
    return await runner.flow("bill", bill, customer=customer)


async def test_a_child_is_recorded_in_both_logs(store: FlakyStore) -> None:
    """As a run of its own, whose flow names its parent and who drives it."""
    for _ in range(2):
        assert await order.run(store, run_id="run", customer="c") == "bill for c"
    child = await store.get("run/bill", "$flow")
    assert child is not None
    assert child.status == "success"
    assert child.notes["parent"] == {"run": "run", "step": "bill"}
    assert child.notes["root"] == {"run": "run", "flow": "order"}
    assert await entries(store, "run", "bill") == ["waiting", "success"]
    first = (await store.list("run"))[1]
    assert first.kind == "flow"
    assert first.notes == {"run": "run/bill", "flow": "bill", "input": {"customer": "c"}}


async def test_three_hundred_children_at_once(store: FlakyStore) -> None:
    """Each under its own lock."""

    @flow
    async def many(runner: Runner) -> int:
        values = await asyncio.gather(*(runner.flow(f"bill-{number}", bill, customer=str(number)) for number in range(300)))
        return len(set(values))

    assert await many.run(store, run_id="run") == 300


@pytest.mark.parametrize("slow", [("run/right", "ask"), ("run/third", "$flow")], ids=["child", "result"])
async def test_all_children_that_wait_are_named_whoever_is_first(slow: tuple[str, str]) -> None:
    """Each asks its store for what came meanwhile; none of them suspends the parent before the others have been answered."""

    class Slow(FlakyStore):
        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            for _ in range(50 if (run_id, step_id) == slow else 0):
                await asyncio.sleep(0)
            return await super().get(run_id, step_id)

    @flow
    async def asks(runner: Runner) -> None:
        await runner.approval("ask")

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> None:
        third = await runner.flow("third", asks, wait=False)
        children = (runner.flow(name, asks) for name in ("left", "right"))
        await asyncio.gather(*children, runner.result("end", third, returns=type(None)))

    store = Slow()
    for _ in range(2):
        with pytest.raises(RunSuspended):
            await parent.run(store, run_id="run")
        waiting = await store.get("run", "$flow")
        assert waiting is not None
        named = {tuple(pair) for pair in waiting.notes["waiting_for"]}
        assert named == {("run/left", "ask"), ("run/right", "ask"), ("run/third", "$flow")}


async def test_a_child_that_waits_makes_its_parent_wait_and_cuts_no_sibling(store: FlakyStore, effects: Effects) -> None:
    """The parent's entry names what the child waits for; an answer lets both go on."""

    @flow
    async def asks(runner: Runner) -> str:
        return (await runner.approval("ask", timeout=timedelta(days=1))).by

    async def slow() -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        effects.happen("slow")

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> list[Any]:
        return list(await asyncio.gather(runner.flow("asks", asks), runner.step("slow", slow)))

    with pytest.raises(RunSuspended) as suspended:
        await parent.run(store, run_id="run")
    assert effects == {"slow": 1}
    assert suspended.value.waiting_for == ("asks",)
    assert suspended.value.until is not None
    waiting = await store.get("run", "$flow")
    assert waiting is not None
    assert waiting.notes["waiting_for"] == [["run/asks", "ask"]]
    await control.approve(store, "run/asks", "ask", by="alice")
    assert await parent.run(store, run_id="run") == ["alice", None]


async def test_a_decision_for_a_child_lets_a_live_parent_go_on(store: FlakyStore) -> None:
    """At once, in the same process, on a store that has no watch."""
    store.watch = None  # type: ignore[assignment,method-assign]

    @flow
    async def asks(runner: Runner) -> str:
        return (await runner.approval("ask")).by

    @flow
    async def parent(runner: Runner) -> str:
        return await runner.flow("asks", asks)

    asked = asyncio.Event()

    def hear(record: StepRecord) -> None:
        if record.step_id == "$flow" and record.status == "waiting":
            asked.set()

    store.after = hear
    running = asyncio.create_task(parent.run(store, run_id="run"))
    await asked.wait()
    await control.approve(store, "run/asks", "ask", by="alice")
    async with asyncio.timeout(5):
        assert await running == "alice"


async def test_a_child_that_failed_fails_the_step(store: FlakyStore) -> None:
    """With the error of the child, which `matches` tells."""

    @flow
    async def fails(runner: Runner) -> None:
        await runner.step("pay", lambda: 1 / 0)

    @flow
    async def parent(runner: Runner) -> str:
        try:
            await runner.flow("fails", fails)
        except StepFailed as failed:
            return str(failed.error.matches(ZeroDivisionError))
        return "fine"

    assert await parent.run(store, run_id="run") == "True"
    assert await entries(store, "run", "fails") == ["waiting", "failure"]


async def test_a_child_that_crashed_crashes_its_parent(store: FlakyStore, effects: Effects) -> None:
    """Even where that catches every `Exception`; callers get the child's error, and mended, both go on."""
    typo = [True]

    @flow
    async def crashes(runner: Runner) -> str:
        await runner.step("a", effects.happen, "a")
        if typo:
            raise KeyError("typo")
        return "fine"

    @flow
    async def parent(runner: Runner) -> str:
        try:
            return await runner.flow("crashes", crashes)
        except Exception:
            return "swallowed"

    with pytest.raises(KeyError, match="typo"):
        await parent.run(store, run_id="run")
    for run_id in ("run", "run/crashes"):
        record = await store.get(run_id, "$flow")
        assert record is not None
        assert record.status == "reopened"
        assert record.error is not None
        assert record.error.matches(KeyError)
    typo.clear()
    assert await parent.run(store, run_id="run") == "fine"
    assert effects == {"a": 1}


async def test_a_child_that_is_parked_parks_its_parent(store: FlakyStore) -> None:
    """The parent waits for what mends the child."""

    @flow
    async def charges(runner: Runner) -> int:
        return await runner.step("charge", lambda: 1, at_most_once=True)

    @flow
    async def parent(runner: Runner) -> int:
        return await runner.flow("charges", charges)

    def kill(record: StepRecord) -> None:
        if record.step_id == "charge" and record.status != "started":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await parent.run(store, run_id="run")
    store.before = None
    with pytest.raises(StepInterrupted):
        await parent.run(store, run_id="run")
    record = await store.get("run", "$flow")
    assert record is not None
    assert record.status == "waiting"
    assert record.notes["waiting_for"] == [["run/charges", "charge"]]
    assert record.notes["parked"]["step"] == "charge"
    await control.resolve(store, "run/charges", "charge", 7, reason="seen")
    assert await parent.run(store, run_id="run") == 7


@pytest.mark.parametrize(
    "slot", [("run", "bill", 0), ("run/bill", "$flow", 0), ("run/bill", "send", 0), ("run/bill", "$flow", 1)]
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_parent_killed_anywhere_goes_on(store: FlakyStore, slot: tuple[str, str, int], when: str) -> None:
    """Also between the child's end and its own entry."""

    def kill(record: StepRecord) -> None:
        if (record.run_id, record.step_id, record.revision) == slot:
            raise Killed

    setattr(store, when, kill)
    with pytest.raises(Killed):
        await order.run(store, run_id="run", customer="c")
    setattr(store, when, None)
    assert await order.run(store, run_id="run", customer="c") == "bill for c"
    assert await entries(store, "run", "bill") == ["waiting", "success"]


@pytest.mark.parametrize("undoes", [False, True])
async def test_a_child_is_cancelled_with_its_parent(store: FlakyStore, effects: Effects, *, undoes: bool) -> None:
    """It is driven to its end, undoing what it did; then the parent is told."""

    @flow
    async def child(runner: Runner) -> None:
        await runner.step("charge", effects.happen, "charge")
        try:
            await runner.approval("ask")
        except RunCancelled:
            if undoes:
                await runner.step("refund", effects.happen, "refund", when_cancelled=True)
            raise

    @flow
    async def parent(runner: Runner) -> None:
        try:
            await runner.flow("child", child)
        except RunCancelled:
            await runner.step("tidy", effects.happen, "tidy", when_cancelled=True)
            raise

    asked = asyncio.Event()

    def hear(record: StepRecord) -> None:
        if record.step_id == "ask":
            asked.set()

    store.after = hear
    running = asyncio.create_task(parent.run(store, run_id="run"))
    await asked.wait()
    await control.cancel(store, "run", reason="enough")
    async with asyncio.timeout(5):
        with pytest.raises(StepFailed, match="enough"):
            await running
    assert effects == {"charge": 1, "tidy": 1, **({"refund": 1} if undoes else {})}
    for run_id in ("run", "run/child"):
        record = await store.get(run_id, "$flow")
        assert record is not None
        assert record.error is not None
        assert record.error.matches(RunCancelled)
    assert await entries(store, "run", "child") == ["waiting", "failure"]


async def test_a_child_that_begins_in_the_moment_of_the_cancellation_is_cancelled(store: FlakyStore, effects: Effects) -> None:
    """Between the parent's entry and the child's."""

    async def cancel(record: StepRecord) -> None:
        if record.step_id == "child":
            store.before = None
            await control.cancel(store, "run")

    @flow
    async def child(runner: Runner) -> None:
        await runner.step("charge", effects.happen, "charge")

    @flow
    async def parent(runner: Runner) -> None:
        await runner.flow("child", child)

    store.before = cancel
    with pytest.raises(StepFailed) as failed:
        await parent.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert not effects


async def test_a_child_that_is_asked_for_is_waited_for_later(store: FlakyStore) -> None:
    """`wait=False` returns its run id, and `result` its value."""

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> str:
        child = await runner.flow("bill", bill, wait=False, customer="c")
        assert child == "run/bill"
        with pytest.raises(ValueError, match="wait=False"):
            await runner.result("other", "run/other")
        return await runner.result("billed", child, returns=str)

    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    record = await store.get("run", "$flow")
    assert record is not None
    assert record.notes["waiting_for"] == [["run/bill", "$flow"]]
    assert await entries(store, "run/bill", "$flow") == ["waiting"]
    assert await bill.run(store, run_id="run/bill") == "bill for c"
    assert await parent.run(store, run_id="run") == "bill for c"
    assert await entries(store, "run", "billed") == ["waiting", "success"]


async def test_children_that_nobody_waited_for_are_cancelled_with_their_parent(store: FlakyStore, effects: Effects) -> None:
    """And driven to their end before the parent's."""

    @flow
    async def child(runner: Runner) -> None:
        try:
            await runner.step("charge", effects.happen, "charge")
            await runner.approval("ask")
        except RunCancelled:
            await runner.step("refund", effects.happen, "refund", when_cancelled=True)
            raise

    @flow
    async def parent(runner: Runner) -> None:
        run_id = await runner.flow("child", child, wait=False)

        async def begin_it() -> None:
            with pytest.raises(RunSuspended):
                await child.options(wait_limit=0).run(store, run_id=run_id)

        await runner.step("begin it", begin_it)
        await control.cancel(store, "run")
        await runner.step("more", effects.happen, "more")

    with pytest.raises(StepFailed) as failed:
        await parent.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"charge": 1, "refund": 1}
    assert (await entries(store, "run/child", "$flow"))[-1] == "failure"


async def test_a_child_that_crashes_while_it_undoes_stops_its_parent(store: FlakyStore) -> None:
    """A child that nobody waited for is not driven over and over: its parent crashes, and goes on with it."""
    undoes = [False]

    @flow
    async def child(runner: Runner) -> None:
        if not undoes[0]:
            undoes[0] = True
            raise RuntimeError("a typo in what undoes")
        await runner.step("more", len, "more")

    async def begin_it() -> None:  # as another process would
        asked = await store.get("run/child", "$flow")
        assert asked is not None
        await store.append(msgspec.structs.replace(asked, id="begun", revision=1, status="started"))

    @flow
    async def parent(runner: Runner) -> None:
        await runner.flow("child", child, wait=False)
        await runner.step("begin it", begin_it, returns=None)
        await control.cancel(store, "run")
        await runner.step("more", len, "more")

    with pytest.raises(RuntimeError, match="a typo in what undoes"):
        await parent.run(store, run_id="run")
    assert (await control.status(store, "run")).status == "cancelling"
    with pytest.raises(StepFailed) as failed:
        await parent.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert (await control.status(store, "run/child")).status == "cancelled"


async def test_a_run_that_is_no_child_is_not_cancelled(store: FlakyStore) -> None:
    """It has the id of a child of a cancelled run, and is nobody else's business."""

    @flow
    async def waits(runner: Runner) -> None:
        await runner.sleep("long", timedelta(days=1))

    async def cancel(record: StepRecord) -> None:
        if record.step_id == "bill":
            store.before = None
            await control.cancel(store, "run")

    with pytest.raises(RunSuspended):
        await waits.options(wait_limit=0).run(store, run_id="run/bill")
    store.before = cancel
    with pytest.raises(StepFailed) as failed:
        await order.run(store, run_id="run", customer="c")
    assert failed.value.error.matches(RunCancelled)
    assert (await control.status(store, "run/bill")).status == "waiting"


async def test_a_child_that_is_waited_for_no_more_tells_of_other_input_each_time(store: FlakyStore) -> None:
    """The code has changed between two lives: the recorded input is used, and the entry says that it is that one."""
    customer, waits = "b", True

    @flow
    async def long(runner: Runner, customer: str) -> None:
        await runner.sleep("long", timedelta(days=1))

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> None:
        if waits:
            await runner.flow("child", long, customer=customer)
        await runner.flow("child", long, wait=False, customer=customer)
        await runner.event("never")

    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    customer, waits = "c", False
    for _ in range(2):
        with pytest.warns(StepDrift, match="other input"), pytest.raises(RunSuspended):
            await parent.run(store, run_id="run")


async def test_a_run_that_is_no_child_is_not_taken_for_one(store: FlakyStore) -> None:
    """Nothing of it runs."""
    await bill.run(store, run_id="run/bill", customer="c")
    with pytest.raises(StepDrift, match="is not a child"):
        await order.run(store, run_id="run", customer="c")


async def test_bad_calls_are_refused_before_anything_is_recorded(store: FlakyStore) -> None:
    """With one clear error each."""

    @flow
    async def other(runner: Runner) -> None: ...

    @flow
    async def parent(runner: Runner) -> None:
        with pytest.raises(TypeError, match="@flow"):
            await runner.flow("bill", bill.__wrapped__)  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="customer"):
            await runner.flow("bill", bill)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="'/'"):
            await runner.flow("a/b", bill, customer="c")
        assert len(await runner.history()) == 1

    await parent.run(store, run_id="run")
    await order.run(store, run_id="order", customer="c")

    @flow(name="order")
    async def renamed(runner: Runner, customer: str) -> None:
        await runner.flow("bill", other)

    crash = StepRecord(
        run_id="o", step_id="$flow", status="started", kind="flow", name="order", note={"input": {"customer": "c"}}
    )
    await store.append(crash)
    for record in await store.list("order"):
        if record.step_id == "bill":
            await store.append(StepRecord(**{**{n: getattr(record, n) for n in record.__struct_fields__}, "run_id": "o"}))
    with pytest.raises(StepDrift, match="flow 'bill', not 'other'"):
        await renamed.run(store, run_id="o", customer="c")


async def test_a_child_drives_on_a_fake_clock(store: FlakyStore, clock: FakeClock) -> None:
    """It inherits its parent's clock; a sleep of an hour takes none."""

    @flow
    async def sleeps(runner: Runner) -> str:
        await runner.sleep("nap", 3600)
        return "awake"

    @flow(clock=clock)
    async def parent(runner: Runner) -> str:
        return await runner.flow("sleeps", sleeps)

    assert await parent.run(store, run_id="run") == "awake"


async def test_a_long_id_is_hashed_at_its_end(store: FlakyStore) -> None:
    """A child of a run with a long id has a valid one, the same on every run."""
    run_id = "r" * 510
    for _ in range(2):
        assert await order.run(store, run_id=run_id, customer="c") == "bill for c"
    first = (await store.list(run_id))[1]
    assert len(first.notes["run"]) == 512


async def test_an_input_may_have_any_name_but_those_of_run_and_start(store: FlakyStore) -> None:
    """Such as `name`, `flow` and `step_id`."""

    @flow
    async def greets(runner: Runner, name: str, flow: str, step_id: str) -> str:
        return f"{name} {flow} {step_id}"

    @flow
    async def parent(runner: Runner) -> str:
        return await runner.flow("greets", greets, name="a", flow="b", step_id="c")

    assert await parent.run(store, run_id="run") == "a b c"


async def test_a_child_that_somebody_else_left_waiting_is_taken_over(store: FlakyStore) -> None:
    """Whoever ran it by hand holds its lock no more."""
    asked, left = asyncio.Event(), asyncio.Event()

    @flow
    async def child(runner: Runner) -> str:
        asked.set()
        await left.wait()
        return (await runner.approval("ask")).by

    @flow(name="parent")
    async def waits(runner: Runner) -> str:
        return await runner.flow("child", child)

    store.poll_seconds = 0.01
    busy = asyncio.Event()

    def hear(record: StepRecord) -> None:
        if record.run_id == "run/child" and record.status == "started":
            busy.set()

    store.after = hear
    lineage = {"parent": {"run": "run", "step": "child"}, "root": {"run": "run", "flow": "parent"}}
    note = {"input": {}, **lineage}
    await store.append(StepRecord(run_id="run/child", step_id="$flow", status="waiting", kind="flow", name="child", note=note))
    by_hand = asyncio.create_task(child.options(wait_limit=0).run(store, run_id="run/child"))
    await asked.wait()
    running = asyncio.create_task(waits.run(store, run_id="run"))
    await busy.wait()
    left.set()
    with pytest.raises(RunSuspended):
        await by_hand
    await control.approve(store, "run/child", "ask", by="alice")
    async with asyncio.timeout(5):
        assert await running == "alice"


async def test_a_parent_that_lost_its_lock_does_not_wait_for_a_child_that_another_drives() -> None:
    """It stops at once, though the child never ends, which is cancelled with it."""

    class Lost(Lease):
        is_lost = False

        def check(self) -> None:
            if self.is_lost:
                raise LockLost("its time was over")

    class Driven(MemoryStore):
        is_driven = False

        @asynccontextmanager
        async def lock(self, run_id: str) -> AsyncIterator[Lease]:
            if run_id == "run/child" and self.is_driven:
                lease.is_lost = True
                raise RunBusy(run_id, holder="another", since=None)
            yield lease

    @flow
    async def child(runner: Runner) -> None:
        await runner.event("word")

    @flow(clock=FakeClock(), wait_limit=0)
    async def parent(runner: Runner) -> None:
        await runner.flow("child", child)

    lease, store = Lost(), Driven()
    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    await control.cancel(store, "run")
    store.is_driven = True
    async with asyncio.timeout(5):
        with pytest.raises(LockLost):
            await parent.run(store, run_id="run")


async def test_reset_of_a_parent_runs_its_children_anew(store: FlakyStore, effects: Effects) -> None:
    """Children are cleared first, those of children too."""

    @flow
    async def inner(runner: Runner) -> None:
        await runner.step("work", effects.happen, "work")

    @flow
    async def middle(runner: Runner) -> None:
        await runner.flow("inner", inner)

    @flow
    async def outer(runner: Runner) -> None:
        await runner.flow("middle", middle)

    await outer.run(store, run_id="run")
    await bill.run(store, run_id="run/other", customer="c")  # no child of it
    runner = Runner(store, "run")
    await runner.reset()
    assert [run_id async for run_id in store.runs()] == ["run/other"]
    await outer.run(store, run_id="run")
    assert effects == {"work": 2}


async def test_a_parent_that_was_killed_after_its_child_had_been_cancelled_is_told(store: FlakyStore, effects: Effects) -> None:
    """By the child's outcome, which says that the child was cancelled because its parent was."""

    @flow
    async def child(runner: Runner) -> None:
        await control.cancel(store, "run")
        await runner.approval("ask")

    @flow
    async def parent(runner: Runner) -> None:
        await runner.step("charge", effects.happen, "charge")
        try:
            await runner.flow("child", child)
        except RunCancelled:
            await runner.step("refund", effects.happen, "refund", when_cancelled=True)
            raise

    def kill(record: StepRecord) -> None:
        if record.step_id == "child" and record.status == "failure":
            raise Killed

    store.after = kill
    with pytest.raises(Killed):
        await parent.run(store, run_id="run")
    store.after = None
    with pytest.raises(StepFailed) as failed:
        await parent.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"charge": 1, "refund": 1}


async def test_a_child_that_was_cancelled_alone_is_a_failed_step_for_ever(store: FlakyStore, effects: Effects) -> None:
    """Also on the replay of a parent that was cancelled later: what came after the failure is undone, too."""

    @flow
    async def child(runner: Runner) -> None:
        await control.cancel(store, "run/child")
        await runner.step("more", effects.happen, "more")

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> None:
        done = []
        try:
            try:
                await runner.flow("child", child)
            except StepFailed:
                done.append(await runner.step("instead", effects.happen, "instead"))
            await runner.event("go")
        except RunCancelled:
            for name in done:
                await runner.step(f"undo-{name}", effects.happen, "undo", when_cancelled=True)
            raise

    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    await control.cancel(store, "run")
    with pytest.raises(StepFailed):
        await parent.run(store, run_id="run")
    assert effects == {"instead": 1, "undo": 1}


async def test_waiting_for_a_run_that_crashed_costs_no_lives(store: FlakyStore) -> None:
    """A child waits for the end of a grandchild, which somebody runs in vain: the parent is suspended, and asks again later."""

    @flow
    async def crashes(runner: Runner) -> None:
        raise KeyError("amuont")

    @flow
    async def collects(runner: Runner) -> None:
        await runner.result("crashed", await runner.flow("crashes", crashes, wait=False))

    @flow(wait_limit=0)
    async def delegates(runner: Runner) -> None:
        await runner.flow("collects", collects)

    with pytest.raises(RunSuspended):
        await delegates.run(store, run_id="run")
    with pytest.raises(KeyError):
        await crashes.run(store, run_id="run/collects/crashes")
    async with asyncio.timeout(10):
        with pytest.raises(RunSuspended):
            await delegates.run(store, run_id="run")
    assert await entries(store, "run/collects", "$flow") == ["started", "waiting", "started", "waiting"]


async def test_a_run_that_fails_by_a_child_that_was_cancelled_was_not_cancelled_itself(store: FlakyStore) -> None:
    """It failed, by that step."""

    @flow
    async def waits(runner: Runner) -> None:
        await runner.event("word")

    @flow(wait_limit=0)
    async def delegates(runner: Runner) -> None:
        await runner.flow("waits", waits)

    with pytest.raises(RunSuspended):
        await delegates.run(store, run_id="run")
    await control.cancel(store, "run/waits")
    with pytest.raises(StepFailed):
        await delegates.run(store, run_id="run")
    assert [(run.run_id, run.status, run.failed) async for run in control.runs(store)] == [
        ("run/waits", "cancelled", ()),
        ("run", "failed", ("waits",)),
    ]


async def test_a_child_that_begins_while_its_parent_is_cancelled_is_cancelled_too(store: FlakyStore, effects: Effects) -> None:
    """The request came when there was no run yet to hand it on to."""
    told = asyncio.Event()

    async def work() -> None:
        effects.happen("work")
        await told.wait()

    @flow
    async def works(runner: Runner) -> None:
        for number in range(10):
            await runner.step(f"work-{number}", work)

    @flow
    async def delegates(runner: Runner) -> None:
        await runner.flow("works", works)

    async def cancel(record: StepRecord) -> None:
        if (record.run_id, record.step_id) == ("run/works", "$flow"):
            store.before = None
            await control.cancel(store, "run")
            for _ in range(20):  # the request is handed on meanwhile, or would be
                await asyncio.sleep(0)

    def go_on(record: StepRecord) -> None:
        if record.run_id == "run/works" and "cancelled" in record.notes:
            told.set()

    store.before, store.after = cancel, go_on
    async with asyncio.timeout(10):
        with pytest.raises(StepFailed) as failed:
            await delegates.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"work": 1}
    assert await entries(store, "run/works", "$flow") == ["started", "reopened", "failure"]


async def test_a_child_is_cancelled_whose_asking_was_not_recorded(store: FlakyStore) -> None:
    """The process was killed in between, and the parent cancelled then: it never hears of the child by its own log."""

    @flow
    async def asks(runner: Runner) -> None:
        await runner.flow("bill", bill, wait=False, customer="c")

    def kill(record: StepRecord) -> None:
        if record.step_id == "bill":
            store.before = None
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await asks.run(store, run_id="run")
    await control.cancel(store, "run")
    with pytest.raises(StepFailed):
        await asks.run(store, run_id="run")
    assert await entries(store, "run/bill", "$flow") == ["waiting", "failure"]


async def test_a_cancellation_is_handed_on_to_no_run_but_a_child(store: FlakyStore) -> None:
    """The id of a child was used for a run of its own: that one goes on, and the other ends."""
    await bill.start(store, run_id="run/bill", customer="b")
    with pytest.raises(StepDrift):
        await order.run(store, run_id="run", customer="c")
    await control.cancel(store, "run")
    with pytest.raises(StepFailed):
        await order.run(store, run_id="run")
    assert (await control.status(store, "run")).status == "cancelled"
    assert await bill.run(store, run_id="run/bill") == "bill for b"


async def test_a_child_that_was_cleared_is_not_waited_for(store: FlakyStore) -> None:
    """Nobody will ever end it: the run is parked, and says so."""

    @flow(wait_limit=0)
    async def collects(runner: Runner) -> str:
        child = await runner.flow("bill", bill, wait=False, customer="c")
        await runner.event("word")
        return await runner.result("billed", child, returns=str)

    with pytest.raises(RunSuspended):
        await collects.run(store, run_id="run")
    await store.clear("run/bill")
    await control.send(store, "run", "word")
    with pytest.raises(StepDrift, match="it was cleared"):
        await collects.run(store, run_id="run")
    assert (await control.status(store, "run")).status == "parked"
