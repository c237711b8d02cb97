"""What handlers are told of each visit of a run, and what they carry over to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from durable_core import (
    DurableError,
    LockLost,
    MemoryStore,
    RunCancelled,
    Runner,
    RunSuspended,
    StepError,
    StepEvent,
    StepFailed,
    StepRecord,
    control,
    flow,
)
from durable_core.testing import FakeClock


class Heard:
    """A handler that keeps all that it is told."""

    def __init__(self) -> None:
        self.events: list[StepEvent] = []

    def __call__(self, event: StepEvent) -> None:
        self.events.append(event)


class Carrier:
    """A handler that numbers the visits, by what the one before carried over."""

    def __init__(self, carries: Any = None) -> None:
        self.found: list[dict[str, str] | None] = []
        self.heard: list[str] = []
        self._carries = carries

    def __call__(self, event: StepEvent) -> None:
        self.heard.append(event.type)
        if event.type == "run:visit":
            found = None if event.record is None else event.record.notes.get("carried")
            self.found.append(found)
            number = 1 if found is None else int(found["number"]) + 1
            event.carry.update(self._carries or {"number": str(number)})


def _of_run(carrier: Carrier) -> list[str]:
    return [type_ for type_ in carrier.heard if type_.startswith("run:")]


async def test_what_a_visit_carries_is_found_by_the_next(clock: FakeClock) -> None:
    """After a wait and after a crash, in another handler, and by a run that is asked for first."""
    store, crashes = MemoryStore(), iter([True, False])

    @flow(clock=clock, wait_limit=0)
    async def lives(runner: Runner) -> None:
        await runner.sleep("long", 60)
        if next(crashes):
            raise KeyError("typo")

    await lives.start(store, run_id="run")
    found = []
    for error in (RunSuspended, KeyError, None):
        carrier = Carrier()
        life = lives.options(on_event=carrier).run(store, run_id="run")
        if error is None:
            await life
        else:
            with pytest.raises(error):
                await life
        found += carrier.found
        clock.advance(600)
    assert found == [None, {"number": "1"}, {"number": "2"}]


async def test_what_a_visit_carries_survives_a_kill() -> None:
    """It is recorded with the visit's own start: a process that dies at once has left it."""
    store = MemoryStore()

    @flow(on_event=Carrier())
    async def dies(runner: Runner) -> None:
        (entry,) = await store.list("run")
        assert entry.notes["carried"] == {"number": "1"}

    await dies.run(store, run_id="run")


async def test_who_does_not_listen_keeps_what_was_carried(clock: FakeClock) -> None:
    """A visit without handlers, and a cancellation from outside, hand on what they find."""
    store, carrier = MemoryStore(), Carrier()

    @flow(clock=clock, wait_limit=0)
    async def lives(runner: Runner) -> None:
        await runner.sleep("long", 60)

    for handlers in (carrier, None):
        with pytest.raises(RunSuspended):
            await lives.options(on_event=handlers).run(store, run_id="run")
    await control.cancel(store, "run", reason="enough")
    assert (await store.list("run"))[-1].notes["carried"] == {"number": "1"}


async def test_only_texts_are_carried() -> None:
    """Anything else that a handler puts there is left out, and harms nothing."""
    store = MemoryStore()

    @flow(on_event=Carrier({"a": "text", "b": object(), 3: "c"}))
    async def plain(runner: Runner) -> int:
        return 1

    assert await plain.run(store, run_id="run") == 1
    assert [record.notes["carried"] for record in await store.list("run")] == [{"a": "text"}] * 2


async def test_a_visit_has_an_end_whatever_becomes_of_it(clock: FakeClock) -> None:
    """`run:stop` where nothing is recorded of how the run stands: it was cancelled from within the program, or lost its lock."""
    heard = Heard()
    began = asyncio.Event()

    @flow(on_event=heard)
    async def waits(runner: Runner) -> None:
        began.set()
        await asyncio.Event().wait()

    @flow(on_event=heard)
    async def loses(runner: Runner) -> None:
        raise LockLost("it is another's by now")

    task = asyncio.create_task(waits.run(MemoryStore(), run_id="run"))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(LockLost):
        await loses.run(MemoryStore(), run_id="run")
    assert [event.type for event in heard.events] == ["run:visit", "run:start", "run:stop"] * 2
    assert [type(heard.events[number].error) for number in (2, 5)] == [asyncio.CancelledError, LockLost]


async def test_a_run_that_is_cancelled_meanwhile_is_visited_again() -> None:
    """The visit in which somebody cancelled the run ends, and another begins, which finds what the first one carried."""
    store, carrier, is_first = MemoryStore(), Carrier(), iter([True, False])

    @flow(on_event=carrier)
    async def cancelled(runner: Runner) -> None:
        if next(is_first):
            await control.cancel(store, "run")
            raise KeyError("typo")
        await runner.step("a", lambda: None)

    with pytest.raises((StepFailed, RunCancelled)):
        await cancelled.run(store, run_id="run")
    assert _of_run(carrier) == ["run:visit", "run:start", "run:stop", "run:visit", "run:start", "run:end"]
    assert carrier.found == [None, {"number": "1"}]


async def test_a_run_that_is_mended_meanwhile_stays_in_its_visit() -> None:
    """The function is called again, and nothing is recorded between."""
    store, carrier, fails = MemoryStore(), Carrier(), iter([True, False])

    async def flaky() -> None:
        if next(fails):
            raise ConnectionError("no answer")

    @flow(on_event=carrier)
    async def mended(runner: Runner) -> None:
        try:
            await runner.step("a", flaky)
        except StepFailed:
            await control.retry(store, "run", "a")
            raise

    await mended.run(store, run_id="run")
    assert _of_run(carrier) == ["run:visit", "run:start", "run:start", "run:end"]


class AskedMeanwhile(MemoryStore):
    """A store in which somebody asks for the run just before its first visit is recorded."""

    async def append(self, record: StepRecord) -> StepRecord:
        if record.step_id == "$flow" and record.revision == 0:
            note = {name: value for name, value in record.notes.items() if name != "carried"}
            await super().append(msgspec.structs.replace(record, id="rival", status="waiting", note=note))
        return await super().append(record)


async def test_a_visit_that_is_not_recorded_ends() -> None:
    """Where somebody asked for the run at the same moment, its first visit is told anew."""
    carrier = Carrier()

    @flow(on_event=carrier)
    async def plain(runner: Runner) -> None:
        return None

    await plain.run(AskedMeanwhile(), run_id="run")
    assert _of_run(carrier) == ["run:visit", "run:stop", "run:visit", "run:start", "run:end"]
    assert carrier.found == [None, None]


async def test_a_run_that_others_ended_has_no_open_visit() -> None:
    """Its visit ends as stopped where somebody else recorded the outcome meanwhile."""
    store, carrier = MemoryStore(), Carrier()

    @flow(on_event=carrier)
    async def ends(runner: Runner) -> None:
        outcome = {"kind": "flow", "name": "ends", "status": "failure", "error": StepError("KeyError")}
        await store.append(StepRecord(run_id="run", step_id="$flow", revision=1, **outcome))
        await runner.sleep("long", 60)

    with pytest.raises(DurableError):
        await ends.options(wait_limit=0).run(store, run_id="run")
    assert _of_run(carrier) == ["run:visit", "run:start", "run:stop"]


async def test_an_attempt_has_an_end_whatever_becomes_of_it() -> None:
    """`step:stop` where an attempt was cancelled; not after one that was told to end otherwise."""
    heard = Heard()
    async with Runner(MemoryStore(), run_id="run", on_event=heard) as runner:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await runner.step("slow", asyncio.sleep, 60)
        await runner.step("fast", asyncio.sleep, 0)
    assert [event.type for event in heard.events] == ["step:start", "step:stop", "step:start", "step:success"]
    assert (heard.events[1].step_id, heard.events[1].attempt, type(heard.events[1].error)) == ("slow", 1, asyncio.CancelledError)


async def test_events_have_the_time_of_the_runners_clock() -> None:
    """So a handler can tell how long things took, also under a `FakeClock`."""
    clock = FakeClock(datetime(2026, 5, 1, tzinfo=UTC))
    heard = Heard()
    async with Runner(MemoryStore(), run_id="run", on_event=heard, clock=clock) as runner:
        await runner.step("a", clock.sleep, 60)
    assert [event.at for event in heard.events] == [
        datetime(2026, 5, 1, tzinfo=UTC) + timedelta(minutes=minute) for minute in (0, 1)
    ]


async def test_what_begins_first_ends_last() -> None:
    """Several handlers are told in their order, and of ends in the reverse: so each finds what it began as it left it."""
    told: list[tuple[str, str]] = []

    def named(name: str) -> Callable[[StepEvent], None]:
        return lambda event: told.append((name, event.type))

    @flow(on_event=[named("one"), named("two")])
    async def pays(runner: Runner) -> int:
        return await runner.step("pay", lambda: 1)

    await pays.run(MemoryStore(), run_id="run")
    begins = [(name, type_) for type_ in ("run:visit", "run:start", "step:start") for name in ("one", "two")]
    ends = [(name, type_) for type_ in ("step:success", "run:end") for name in ("two", "one")]
    assert told == begins + ends


async def test_who_asks_for_a_run_leaves_something_for_its_first_visit() -> None:
    """`run:ask` is told before the run is asked for; by a parent, to its handlers where the child's flow has none of its own."""
    store, asks = MemoryStore(), Carrier({"who": "a request"})

    def ask(event: StepEvent) -> None:
        heard.append((event.type, event.run_id, event.step_id, event.name))
        if event.type == "run:ask":
            event.carry["who"] = "a request"

    heard: list[tuple[str, str, str, str]] = []

    @flow
    async def child(runner: Runner) -> None:
        return None

    @flow(on_event=ask)
    async def parent(runner: Runner) -> None:
        await runner.flow("later", child, wait=False)

    await parent.start(store, run_id="run")
    assert heard == [("run:ask", "run", "$flow", "parent")]
    await parent.options(on_event=asks).run(store, run_id="run")
    await child.options(on_event=asks).run(store, run_id="run/later")
    assert asks.found == [{"who": "a request"}, None]
    heard.clear()
    await parent.run(store, run_id="other")
    assert ("run:ask", "other/later", "$flow", "child") in heard
    assert [record.notes.get("carried") for record in await store.list("other/later")] == [{"who": "a request"}]
