"""A cancellation that comes between any two calls of a run's store: it is told and obeyed, or it came too late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from durable_core import (
    Flow,
    MemoryStore,
    NotFound,
    Recovered,
    Refused,
    RunCancelled,
    Runner,
    RunSuspended,
    StepFailed,
    Store,
    control,
    current_step,
    flow,
)
from tests.every_store.killing import CALLS, WHEN, Killed, MeetingStore, When, World, fewer, kill

CHILDS = ("child-charge", "child-last")
TICK = 5  # seconds that each call takes, so that a run looks for a cancellation every now and then


class Order:
    """Steps, a loop that catches all, a wait, a suspension and a child: each effect is undone when the run is cancelled."""

    DONE: tuple[str, ...] = ("charge", "ship-0", "ship-1", "left", "right", *CHILDS, "last")
    COMES: tuple[tuple[str, str], ...] = (("", "go"), ("/child", "paid"), ("", "thanks"))
    """What it waits for."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.swallowed = 0
        self.told: list[str] = []
        self.bill, self.flow = self.flows()

    def flows(self) -> tuple[Flow[Any, Any], Flow[Any, Any]]:
        world = self.world

        @flow(clock=world.clock, wait_limit=0)
        async def bill(runner: Runner) -> None:
            done: list[str] = []
            try:
                await self.do(runner, "child-charge", done)
                await runner.event("paid")
                await self.do(runner, "child-last", done)
            except RunCancelled:
                await self.undo(runner, done)
                raise

        @flow(clock=world.clock, wait_limit=0)
        async def order(runner: Runner) -> str:
            done: list[str] = []
            try:
                await self.do(runner, "charge", done)
                for number in range(2):
                    try:
                        await self.do(runner, f"ship-{number}", done)
                    except Exception:
                        self.swallowed += 1
                both = [asyncio.create_task(self.do(runner, side, done)) for side in ("left", "right")]
                try:
                    await asyncio.gather(*both)
                finally:
                    await asyncio.wait(both)
                await runner.sleep("nap", 0)
                await runner.event("go")
                await runner.flow("child", bill)
                done.extend(CHILDS)
                await self.do(runner, "last", done)
                await runner.event("thanks")
            except RunCancelled:
                await self.undo(runner, done)
                raise
            return "done"

        return bill, order

    async def do(self, runner: Runner, name: str, done: list[str]) -> None:
        await runner.step(name, self.world.effects.happen_async, name)
        done.append(name)

    async def undo(self, runner: Runner, done: Sequence[str]) -> None:
        self.told.append(runner.run_id)
        for name in done:
            await runner.step(f"undo-{name}", self.world.effects.happen_async, f"undo-{name}", when_cancelled=True)

    async def to_the_end(self, store: Store) -> None:
        """Run it, and give it what it waits for, until it has ended."""
        for _ in range(12):
            try:
                await self.flow.run(store, run_id=self.world.run_id)
            except RunSuspended as suspended:
                await self.help_on(store, suspended)
            except StepFailed:
                return
            else:
                return
        raise AssertionError("it never ends")

    async def help_on(self, store: Store, suspended: RunSuspended) -> None:
        world = self.world
        for run_id, step_id in suspended.pairs:
            waiting = await world.store.get(run_id, step_id)
            if step_id == "$flow":
                with contextlib.suppress(StepFailed):
                    try:
                        await self.bill.run(store, run_id=run_id)
                    except RunSuspended as child:
                        await self.help_on(store, child)
            elif waiting is not None and waiting.kind == "event":
                await self.comes(run_id, step_id)
            elif waiting is not None and waiting.until is not None:
                world.clock.advance(max(waiting.until - world.clock.now(), timedelta()))

    async def comes(self, run_id: str, step_id: str) -> None:
        await control.send(self.world.store, run_id, step_id, clock=self.world.clock)


class Trip(Order):
    """A step that may happen once, long delays, rounds, and a child that is not waited for at once."""

    DONE = ("charge", "flaky", *CHILDS, "last")
    COMES = (("/child", "paid"), ("", "thanks"))

    def flows(self) -> tuple[Flow[Any, Any], Flow[Any, Any]]:
        world = self.world
        bill, _ = super().flows()

        async def look() -> Recovered[str] | None:
            return Recovered("charge") if world.effects["charge"] else None

        def flaky() -> str:
            if current_step().attempt == 1:
                raise OSError("no")
            return world.effects.happen("flaky")

        def ready() -> bool:
            return world.clock.now() > world.began + timedelta(hours=3)

        @flow(clock=world.clock, wait_limit=0)
        async def trip(runner: Runner) -> str:
            done: list[str] = []
            try:
                await runner.step("charge", world.effects.happen, "charge", at_most_once=True, recover=look)
                done.append("charge")
                child = await runner.flow("child", bill, wait=False)
                try:
                    await runner.step("flaky", flaky, max_attempts=2, retry_delay=3600)
                    done.append("flaky")
                except Exception:
                    self.swallowed += 1
                await runner.until("ready", ready, every=3600)
                await runner.result("result", child)
                done.extend(CHILDS)
                await self.do(runner, "last", done)
                await runner.event("thanks")
            except RunCancelled:
                await self.undo(runner, done)
                raise
            return "done"

        return bill, trip


class Met(NamedTuple):
    """What came of a run that somebody cancelled."""

    order: Order
    store: MeetingStore
    asked: bool
    """Whether the cancellation was recorded."""


async def meet_and_die(kind: type[Order], store: Store, at: int, killed: int) -> Met:
    """Cancel a run before one call, and kill it before a later one; then all that it waits for comes at once."""
    world = World(store, f"run-{at}-{killed}")
    order = kind(world)
    asked = False

    async def cancel() -> None:
        nonlocal asked
        with contextlib.suppress(NotFound, Refused):
            record = await control.cancel(store, world.run_id, reason="enough", clock=world.clock)
            asked = "cancelled" in record.notes
        meeting._at, meeting._meets = killed, kill

    meeting = Ticking(world, at, "before", cancel, calls=CALLS)
    try:
        await order.to_the_end(meeting)
    except Killed:
        order.told.clear()
        for child, step_id in kind.COMES:
            await order.comes(world.run_id + child, step_id)
        await order.to_the_end(world.store)
    return Met(order, meeting, asked)


async def meet(kind: type[Order], store: Store, at: int, when: When, calls: Sequence[str] = CALLS) -> Met:
    """Cancel a run before or after its call with number `at`."""
    world = World(store, f"run-{at}-{when}")
    order = kind(world)
    asked = False

    async def cancel() -> None:
        nonlocal asked
        with contextlib.suppress(NotFound, Refused):
            record = await control.cancel(store, world.run_id, reason="enough", clock=world.clock)
            asked = "cancelled" in record.notes

    meeting = Ticking(world, at, when, cancel, calls=calls)
    await order.to_the_end(meeting)
    return Met(order, meeting, asked)


class Ticking(MeetingStore):
    """Each call takes its time."""

    def __init__(self, world: World, *arguments: Any, **options: Any) -> None:
        super().__init__(world.store, *arguments, **options)
        self._clock = world.clock

    async def _call(self, method: str, *arguments: Any) -> Any:
        self._clock.advance(TICK)
        return await super()._call(method, *arguments)


async def check(met: Met) -> str:
    """Return how the run ended, which is one of the two ways that are right."""
    order, world, effects = met.order, met.order.world, met.order.world.effects
    end = await world.newest()
    assert end is not None
    where = f"{met.store.met}: {dict(effects)}, told {order.told}, {await world.chain()}"
    # What was in flight when the process died: its effect may be there, and no entry tells of it.
    in_flight = {met.store.met[-1], "left", "right"} if met.store.is_dead else set()
    assert order.swallowed == 0, where
    assert all(effects[name] <= 1 + (name in in_flight) for name in effects), where
    if end.status == "success":
        assert all(effects[name] for name in order.DONE), where
        assert not any(effects[f"undo-{name}"] for name in order.DONE if f"undo-{name}" not in in_flight), where
        assert not order.told, where
        assert end.notes.get("cancelled", {}).get("late", False) == met.asked, where
        return "late" if met.asked else "done"
    assert end.error is not None, where
    assert end.error.matches(RunCancelled), where
    assert met.asked, where
    child = await world.newest("$flow", "/child")
    assert child is None or child.status in ("success", "failure"), where
    if child is not None and child.status == "success" and isinstance(order, Trip):
        in_flight |= {*CHILDS}  # what ended by itself, and its parent had not heard of
    assert all((effects[f"undo-{name}"] > 0) == (effects[name] > 0) for name in order.DONE if name not in in_flight), where
    assert world.run_id in order.told, where
    return "undone"


@pytest.mark.parametrize("kind", [Order, Trip])
@pytest.mark.parametrize("announced", [True, False], ids=["here", "elsewhere"])
async def test_a_cancellation_at_every_call_of_the_store(
    monkeypatch: pytest.MonkeyPatch, kind: type[Order], *, announced: bool
) -> None:
    """Whether the actor is in this process, which tells the run, or in another, so that it has to look."""
    if not announced:
        monkeypatch.setattr("durable_core._log.wakeups.telling", lambda store: store.append)
    store = MemoryStore()
    undisturbed = await meet(kind, store, 0, "before")
    assert await check(undisturbed) == "done"
    points = [(at, when) for at in range(1, undisturbed.store.count + 2) for when in WHEN]
    ends = [await check(met) for met in await asyncio.gather(*(meet(kind, store, at, when) for at, when in points))]
    assert set(ends) >= {"late", "undone"}


@pytest.mark.parametrize("kind", [Order, Trip])
async def test_a_cancelled_run_that_is_killed(monkeypatch: pytest.MonkeyPatch, kind: type[Order]) -> None:
    """Wherever it is cancelled and then killed, and though what it waited for has come when it is taken up."""
    monkeypatch.setattr("durable_core._log.wakeups.telling", lambda store: store.append)
    store = MemoryStore()
    calls = (await meet(kind, store, 0, "before")).store.count
    points = [(at, killed) for at in range(1, calls) for killed in range(at + 1 + at % 5, calls + 1, 5)]
    for met in await asyncio.gather(*(meet_and_die(kind, store, at, killed) for at, killed in points)):
        await check(met)


@pytest.mark.parametrize("kind", [Order, Trip])
async def test_a_run_whose_time_is_over_at_any_call(kind: type[Order]) -> None:
    """It is cancelled, or had done all its work, as by a person's request."""
    store, ends = MemoryStore(), []
    world = (await meet(kind, store, 0, "before")).order.world
    longest = int((world.clock.now() - world.began).total_seconds()) + 20
    for seconds in range(longest, 0, -(longest // 60)):
        world = World(store, f"run-{seconds}")
        order = kind(world)
        order.flow = order.flow.options(timeout=seconds)
        meeting = Ticking(world)
        await order.to_the_end(meeting)
        end = await world.newest()
        ends.append(await check(Met(order, meeting, end is not None and "cancelled" in end.notes)))
    assert set(ends) >= {"done", "undone"}


@pytest.mark.parametrize("kind", [Order, Trip])
async def test_a_cancellation_between_any_two_entries(store: Store, kind: type[Order]) -> None:
    """On every store."""
    undisturbed = await meet(kind, store, 0, "before", ["append"])
    points = fewer(range(1, undisturbed.store.count + 1), store)
    ends = [await check(met) for met in await asyncio.gather(*(meet(kind, store, at, "after", ["append"]) for at in points))]
    assert "undone" in ends
