"""`replay_check`: what today's code makes of recorded runs, without calling a step's function and without writing."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

import pytest

from durable_core import (
    ChildStopped,
    Flow,
    MemoryStore,
    NotFound,
    RunCancelled,
    Runner,
    RunSuspended,
    StepFailed,
    StepInterrupted,
    StepRecord,
    Store,
    control,
    flow,
    sync,
)
from durable_core.engine import asynchronous
from durable_core.testing import Difference, FakeClock, ReplayedRun, replay_check
from tests.core.conftest import Killed

called: list[str] = []


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    called.clear()


def work(name: str) -> str:
    called.append(name)
    return name


async def work_async(name: str) -> str:
    called.append(name)
    return name


def fail(name: str) -> NoReturn:
    called.append(name)
    raise ConnectionError("the bank is closed")


class Unwritable(Store):
    """Lets a store be read, and refuses whatever would change it."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def get(self, run_id: str, step_id: str) -> StepRecord | None:
        return await self._store.get(run_id, step_id)

    async def list(self, run_id: str) -> Sequence[StepRecord]:
        return await self._store.list(run_id)

    def runs(self, prefix: str = "") -> AsyncIterator[str]:
        return self._store.runs(prefix)

    async def append(self, record: StepRecord) -> StepRecord:
        raise AssertionError(f"append of {record}")

    async def clear(self, run_id: str) -> None:
        raise AssertionError(f"clear of {run_id}")

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Any]:
        raise AssertionError(f"lock of {run_id}")
        yield

    async def holder(self, run_id: str) -> None:
        return None

    async def holders(self, run_ids: Sequence[str]) -> dict[str, Any]:
        return {}

    async def set_wakeup(self, *args: Any) -> NoReturn:
        raise AssertionError("set_wakeup")

    async def take_wakeups(self, *args: Any, **options: Any) -> NoReturn:
        raise AssertionError("take_wakeups")

    async def clear_wakeups(self, *args: Any) -> NoReturn:
        raise AssertionError("clear_wakeups")


async def go(running: Awaitable[object]) -> None:
    """Run a flow as far as it comes."""
    with suppress(RunSuspended, StepFailed, StepInterrupted, ChildStopped, Killed):
        await running


async def one(flow: Flow[..., Any] | sync.Flow[..., Any], store: MemoryStore, run_id: str = "r", **options: Any) -> ReplayedRun:
    """Replay one run, and see that nothing was called and nothing written."""
    called.clear()
    before = await store.list(run_id)
    report = await replay_check(flow, Unwritable(store), [run_id], **options)
    assert called == []
    assert await store.list(run_id) == before
    return report.runs[0]


async def differences(flow: Flow[..., Any], store: MemoryStore, **options: Any) -> list[tuple[str, str | None]]:
    return [(each.what, each.step_id) for each in (await one(flow, store, **options)).differences]


# What fits


@flow(name="all", wait_limit=0, on_event=lambda event: called.append(event.type))
async def everything(runner: Runner, then: str) -> str:
    """Ask for everything that a flow can ask for."""
    await runner.step("plain", work, "plain")
    await asyncio.gather(runner.step("left", work_async, "left"), runner.step("right", work, "right"))
    await runner.map("map", work, ["a", "b"], key=str)
    await runner.first("first", quick=lambda: runner.step("quick", work_async, "quick"), never=lambda: runner.event("never"))
    await runner.until("until", work, "until", every=1)
    await runner.step("once", work, "once", at_most_once=True)
    with suppress(StepFailed):
        await runner.step("fails", fail, "fails")
    await runner.publish("progress", 1)
    await runner.scope("scope").step("plain", work, "plain")
    await runner.flow("child", child, waits=then == "child")
    asked = await runner.flow("asked", child, wait=False, waits=False)
    if then == "sleep":
        await runner.sleep("sleep", 60)
    if then == "approval":
        await runner.approval("approval", {"amount": 90}, timeout=60)
    if then == "event":
        await runner.event("event")
    if then == "retry":
        await runner.step("again", fail, "again", max_attempts=2, retry_delay=2)
    if then == "interrupted":
        await runner.step("dies", die, at_most_once=True)
    if then == "result":
        await runner.result("result", asked)
    return "done"


@flow(wait_limit=0)
async def child(runner: Runner, waits: bool) -> str:
    if waits:
        await runner.event("packed")
    return await runner.step("child", work, "child")


def die() -> NoReturn:
    raise Killed


WAITS = {
    "": (),
    "sleep": ("sleep",),
    "approval": ("approval",),
    "event": ("event",),
    "retry": ("again",),
    "interrupted": ("dies",),
    "result": ("result",),
    "child": ("child",),
}


@pytest.mark.parametrize("then", WAITS)
async def test_the_code_that_wrote_a_log_fits_it(then: str) -> None:
    """Every kind of step replays; a run that waits, also one whose time has passed by now, stops there and fits."""
    store = MemoryStore()
    await go(everything.options(clock=FakeClock()).run(store, "r", then=then))  # in January
    replayed = await one(everything, store)
    assert replayed.differences == ()
    assert replayed.stops_at == WAITS[then]
    assert replayed.ended == (then == "")


@pytest.mark.parametrize("entries", range(1, 30))
async def test_each_beginning_of_a_log_fits(entries: int) -> None:
    """A run that died after any of its appends is in flight, and fits: it stops at the first step without an outcome."""
    whole, store = MemoryStore(), MemoryStore()
    await go(everything.run(whole, "r", then=""))
    records = await whole.list("r")
    for record in records[:entries]:
        await store.append(record)
    replayed = await one(everything, store)
    assert replayed.differences == ()
    assert replayed.ended == (len(records) <= entries)
    assert bool(replayed.stops_at) == (len(records) - 1 > entries)


async def test_a_blocking_flow_replays() -> None:
    @sync.flow(name="blocking", wait_limit=0)
    def blocking(runner: sync.Runner) -> str:
        runner.step("plain", work, "plain")
        runner.approval("ok")
        return runner.step("more", work, "more")

    store = MemoryStore()
    await go(asynchronous(blocking).run(store, "r"))
    assert (await one(blocking, store)).stops_at == ("ok",)
    await control.approve(store, "r", "ok", by="alice")
    assert (await one(blocking, store)).stops_at == ("more",)


async def test_transactions_replay_on_any_store() -> None:
    """A log of a store with transactions may be replayed from an export, where there is no database."""

    @flow(name="pays")
    async def writes(runner: Runner) -> str:
        return await runner.step("debit", lambda: "debit")

    @flow(name="pays")
    async def pays(runner: Runner) -> str:
        return await runner.transaction("debit", debit)

    async def debit(connection: Any) -> str:
        return work("debit")

    store = MemoryStore()
    await writes.run(store, "r")
    assert await differences(pays, store) == []


async def test_a_run_that_was_cancelled_replays_to_its_end() -> None:
    @flow(wait_limit=0)
    async def undoes(runner: Runner) -> str:
        await runner.step("book", work, "book")
        try:
            await runner.event("packed")
        except RunCancelled:
            await runner.step("release", work, "release", when_cancelled=True)
            raise
        return "done"

    store = MemoryStore()
    await go(undoes.run(store, "r"))
    await control.cancel(store, "r")
    assert (await one(undoes, store)).stops_at == ("release",)
    await go(undoes.run(store, "r"))
    replayed = await one(undoes, store)
    assert replayed.ended
    assert replayed.differences == ()


async def test_code_that_awaits_something_of_its_own_between_steps_is_waited_for() -> None:
    """A sibling stops at once; the recorded steps that come after a pause of the flow's own are asked for all the same."""

    @flow(name="two", wait_limit=0)
    async def two(runner: Runner) -> None:
        async def slow() -> None:
            await runner.step("a", work, "a")
            await asyncio.sleep(0.02)
            await runner.step("b", work, "b")
            raise Killed

        async def other() -> None:
            while not runner.recorded("b"):
                await asyncio.sleep(0)
            await runner.event("c")

        async with asyncio.TaskGroup() as group:
            group.create_task(slow())
            group.create_task(other())

    @flow(name="two")
    async def now(runner: Runner) -> None:
        async def slow() -> None:
            await runner.step("a", work, "a")
            await asyncio.sleep(0.02)
            await runner.step("b", work, "b")

        async with asyncio.TaskGroup() as group:
            group.create_task(slow())
            group.create_task(runner.step("d", work, "d"))

    store = MemoryStore()
    with suppress(BaseExceptionGroup):
        await two.run(store, "r")
    assert [each.step_id for each in await store.list("r")][:3] == ["$flow", "a", "b"]
    replayed = await one(now, store)
    assert replayed.differences == ()
    assert replayed.stops_at == ("d",)


async def test_an_interrupted_step_keeps_no_sibling_from_replaying() -> None:
    """A task group ends the others at the first error; what they had recorded is asked for before that."""

    @flow(name="two")
    async def two(runner: Runner) -> None:
        async def slow() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            await runner.step("plain", work_async, "plain")

        async with asyncio.TaskGroup() as group:
            group.create_task(runner.step("dies", die_later, at_most_once=True))
            group.create_task(slow())

    store = MemoryStore()
    with suppress(BaseExceptionGroup):
        await two.run(store, "r")
    assert [(each.step_id, each.status) for each in await store.list("r")][1:] == [("dies", "started"), ("plain", "success")]
    replayed = await one(two, store)
    assert (replayed.differences, replayed.stops_at) == ((), ("dies",))


async def die_later() -> NoReturn:
    while "plain" not in called:
        await asyncio.sleep(0)
    for _ in range(20):  # it is recorded
        await asyncio.sleep(0)
    raise Killed


@pytest.mark.parametrize("entries", range(1, 12))
async def test_a_race_fits_at_each_of_its_entries(entries: int) -> None:
    """A run that died before those who lost were withdrawn, or a child of theirs had ended, goes on with that."""

    @flow(name="race", wait_limit=0)
    async def race(runner: Runner) -> None:
        await runner.first(
            "quickest", nap=lambda: runner.sleep("nap", 60), mail=lambda: runner.approval("mail"), bill=lambda: bill(runner)
        )
        await runner.step("after", work, "after")

    async def bill(runner: Runner) -> None:
        await runner.flow("bill", child, waits=True)

    clock, whole, store = FakeClock(), MemoryStore(), MemoryStore()
    for _ in range(2):
        await go(race.options(clock=clock).run(whole, "r"))
        clock.advance(60)
    records = await whole.list("r")
    assert len(records) == 12
    for record in records[:entries]:
        await store.append(record)
    assert (await one(race, store)).differences == ()


async def test_what_an_earlier_life_asked_for_may_be_left_out() -> None:
    """A step that failed took the flow another way; after it was mended the flow does not go there any more."""

    pays: Callable[[str], str] = fail

    @flow(name="pay", wait_limit=0)
    async def pay(runner: Runner) -> None:
        paid = ""
        with suppress(StepFailed):
            paid = await runner.step("pay", pays, "pay", returns=str)
        await runner.step("thank" if paid else "apologise", work, "mail")
        await runner.event("answer")

    store = MemoryStore()
    await go(pay.run(store, "r"))
    await control.retry(store, "r", "pay")
    assert (await one(pay, store)).stops_at == ("pay",)
    assert (await one(pay, store)).differences == ()
    pays = work
    await go(pay.run(store, "r"))
    assert (await one(pay, store)).stops_at == ("answer",)
    assert (await one(pay, store)).differences == ()


# What does not fit


@flow(name="order", wait_limit=0)
async def order(runner: Runner, item: str) -> str:
    await runner.step("look-up", work, item)
    await runner.step("charge", work, item)
    if item == "waits":
        await runner.approval("ok", {"item": item})
    return await runner.step("ship", work, item)


async def ordered(item: str = "chair") -> MemoryStore:
    store = MemoryStore()
    await go(order.run(store, "r", item=item))
    return store


async def renamed(runner: Runner, item: str) -> str:
    await runner.step("look-up", work, item)
    await runner.step("charge-2", work, item)
    if item == "waits":
        await runner.approval("ok", {"item": item})
    return await runner.step("ship", work, item)


async def one_more_at_the_end(runner: Runner, item: str) -> str:
    value = await order(runner, item)
    await runner.step("mail", work, item)
    return value


async def naps_at_the_end(runner: Runner, item: str) -> str:
    value = await order(runner, item)
    await runner.sleep("nap", 0)
    return value


async def without_charge(runner: Runner, item: str) -> str:
    await runner.step("look-up", work, item)
    if item == "waits":
        await runner.approval("ok", {"item": item})
    return await runner.step("ship", work, item)


async def reordered(runner: Runner, item: str) -> str:
    await runner.step("charge", work, item)
    await runner.step("look-up", work, item)
    if item == "waits":
        await runner.approval("ok", {"item": item})
    return await runner.step("ship", work, item)


async def other_kind(runner: Runner, item: str) -> str:
    await runner.sleep("look-up", 1)
    return await order(runner, item)


async def other_arguments(runner: Runner, item: str) -> str:
    await runner.step("look-up", work, item + "s")
    return await order_rest(runner, item)


async def order_rest(runner: Runner, item: str) -> str:
    await runner.step("charge", work, item)
    if item == "waits":
        await runner.approval("ok", {"item": item})
    return await runner.step("ship", work, item)


def number(item: str) -> int:
    return 1


async def other_type(runner: Runner, item: str) -> str:
    await runner.step("look-up", number, item)
    return await order_rest(runner, item)


async def other_show(runner: Runner, item: str) -> str:
    await runner.step("look-up", work, item)
    await runner.step("charge", work, item)
    if item == "waits":
        await runner.approval("ok", {"item": item, "amount": 90})
    return await runner.step("ship", work, item)


async def other_input(runner: Runner, item: int) -> str:
    return await order(runner, str(item))


async def raises(runner: Runner, item: str) -> str:
    await runner.step("look-up", work, item)
    return itme  # type: ignore[name-defined]  # noqa: F821


async def fails_now(runner: Runner, item: str) -> str:
    await order(runner, item)
    raise LookupError(item)


async def returns_a_number(runner: Runner, item: str) -> int:
    await order(runner, item)
    return 1


CASES: list[tuple[Callable[..., Any], list[tuple[str, str | None]], list[tuple[str, str | None]]]] = [
    (renamed, [("anew", "charge-2")], [("anew", "charge-2")]),
    (one_more_at_the_end, [("anew", "mail")], []),
    (naps_at_the_end, [("anew", "nap")], []),
    (without_charge, [("unasked", "charge")], [("unasked", "charge")]),
    (reordered, [], []),
    (other_kind, [("kind", "look-up")], [("kind", "look-up")]),
    (other_arguments, [("arguments", "look-up")], [("arguments", "look-up")]),
    (other_type, [("type", "look-up")], [("type", "look-up")]),
    (other_show, [], [("arguments", "ok")]),
    (other_input, [("input", None)], [("input", None)]),
    (raises, [("raises", None)], [("raises", None)]),
    (returns_a_number, [("type", "$flow")], []),
]


@pytest.mark.parametrize(("fn", "of_ended", "of_waiting"), CASES, ids=[fn.__name__ for fn, *_ in CASES])
async def test_each_difference_is_told(
    fn: Callable[..., Any], of_ended: list[tuple[str, str | None]], of_waiting: list[tuple[str, str | None]]
) -> None:
    """The first list is of a run that had ended, the second of one that waits for an approval."""
    today: Flow[..., Any] = flow(name="order")(fn)
    assert await differences(today, await ordered()) == of_ended
    assert await differences(today, await ordered("waits")) == of_waiting


async def test_an_end_of_another_kind_is_told() -> None:
    today: Flow[..., Any] = flow(name="order", fails_on=LookupError)(fails_now)
    assert await differences(today, await ordered()) == [("ends", None)]
    assert await differences(today, await ordered("waits")) == []


async def test_an_ended_run_that_would_stop_at_what_is_not_decided_is_told() -> None:
    """The approval lost to the failure of its sibling; a flow that awaits it would never end."""

    @flow(name="both")
    async def both(runner: Runner) -> None:
        await asyncio.gather(runner.approval("ok"), runner.step("fails", fail, "fails"))

    @flow(name="both")
    async def one_by_one(runner: Runner) -> None:
        with suppress(StepFailed):
            await runner.step("fails", fail, "fails")
        await runner.approval("ok")

    store = MemoryStore()
    await go(both.run(store, "r"))
    assert await differences(both, store) == []
    assert await differences(one_by_one, store) == [("ends", None)]


async def test_steps_that_are_meant_to_be_new_or_gone_are_expected() -> None:
    for fn, step_id in ((renamed, "charge-2"), (one_more_at_the_end, "mail"), (without_charge, "charge")):
        today: Flow[..., Any] = flow(name="order")(fn)
        assert await differences(today, await ordered(), expected=[step_id]) == []
        assert await differences(today, await ordered(), expected=["other"]) != []


async def test_code_that_hangs_is_told() -> None:
    @flow(name="order")
    async def hangs(runner: Runner, item: str) -> None:
        await asyncio.Event().wait()

    @flow(name="order")
    async def stops_and_hangs(runner: Runner, item: str) -> None:
        await runner.step("look-up", work, item)
        await runner.step("charge", work, item)
        task = asyncio.create_task(runner.approval("ok", {"item": item}))
        await asyncio.wait([task])
        await asyncio.Event().wait()

    assert await differences(hangs, await ordered(), seconds=0.05) == [("hangs", None)]
    assert await differences(stops_and_hangs, await ordered("waits"), seconds=0.5) == []


async def test_a_blocking_flow_that_hangs_is_left_behind() -> None:
    """Nothing ends its thread; the loop, and the program that checks, can end all the same."""
    goes_on = threading.Event()

    @sync.flow(name="order")
    def hangs(runner: sync.Runner, item: str) -> None:
        runner.step("look-up", work, item)
        goes_on.wait(60)

    before = asyncio.all_tasks()
    assert await differences(asynchronous(hangs), await ordered(), seconds=0.05) == [("hangs", None)]
    assert asyncio.all_tasks() == before
    goes_on.set()


async def test_code_that_leaves_the_program_is_told() -> None:
    """It ends neither the loop nor the replay of other runs."""

    @flow(name="order")
    async def leaves(runner: Runner, item: str) -> None:
        await runner.step("look-up", work, item)
        sys.exit(0)

    store = await ordered()
    await go(order.run(store, "s", item="table"))
    report = await replay_check(leaves, store)
    assert [[each.what for each in run.differences] for run in report.runs] == [["raises"], ["raises"]]
    assert "SystemExit: 0" in report.runs[0].differences[0].why


async def test_all_runs_of_the_flow_are_replayed_and_counted() -> None:
    store = await ordered()
    await go(order.run(store, "s", item="waits"))
    await go(child.run(store, "other", waits=False))
    told: list[ReplayedRun] = []
    report = await replay_check(order, Unwritable(store), on_run=told.append)
    assert {run.run_id for run in report.runs} == {"r", "s"}
    assert [*report.runs] == told
    report.check()
    assert str(report) == "2 of 2 runs fit"
    misfit = await replay_check(flow(name="order")(renamed), store)
    with pytest.raises(AssertionError, match=r"0 of 2 runs fit\nrun 's': 'charge-2' would run anew, before what is recorded"):
        misfit.check()
    with pytest.raises(AssertionError, match="no run was replayed"):
        (await replay_check(order, MemoryStore())).check()


async def test_a_run_of_another_flow_is_told_and_one_that_is_not_there_is_not_found() -> None:
    store = await ordered()
    assert await differences(child, store) == [("input", None)]
    with pytest.raises(NotFound, match="'nobody'"):
        await replay_check(order, store, ["nobody"])


async def test_several_ids_are_no_text() -> None:
    with pytest.raises(TypeError, match=r"write \['r'\]"):
        await replay_check(order, MemoryStore(), "r")
    with pytest.raises(TypeError, match="decorated with @flow"):
        await replay_check(renamed, MemoryStore())  # type: ignore[arg-type]


async def test_a_difference_says_what_and_where() -> None:
    replayed = await one(flow(name="order")(one_more_at_the_end), await ordered())
    assert replayed.differences == (Difference("anew", "mail", "'mail' would run anew, and the run had ended without it"),)
    assert replayed.stops_at == ("mail",)
    assert replayed.replayed == 3
