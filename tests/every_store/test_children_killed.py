"""A parent and its child, killed at every call of the store of either, and driven by two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import pytest

from durable_core import Runner, RunSuspended, StepFailed, StepRecord, Store, control, flow
from durable_core.store import Lease, lock_of
from tests.every_store.conftest import Opened
from tests.every_store.killing import CALLS, Act, Killed, Life, MeetingStore, World, chain_of, everywhere


def waiting_child(world: World) -> Sequence[Act]:
    """A child that charges, waits for an event, and ships, between two steps of its parent."""

    @flow(clock=world.clock)
    async def bill(runner: Runner) -> str:
        await runner.step("charge", world.effects.happen_async, "charge")
        paid = await runner.event("paid", returns=str)
        await runner.step("ship", world.effects.happen_async, "ship")
        return paid

    @flow(clock=world.clock, wait_limit=0)
    async def order(runner: Runner) -> str:
        await runner.step("before", world.effects.happen_async, "before")
        paid = await runner.flow("child", bill)
        await runner.step("after", world.effects.happen_async, "after")
        return paid

    async def begin(store: Store) -> None:
        with pytest.raises(RunSuspended):
            await order.run(store, run_id=world.run_id)

    async def pay(store: Store) -> None:
        await control.send(store, f"{world.run_id}/child", "paid", "in full", clock=world.clock)

    async def end(store: Store) -> None:
        assert await order.run(store, run_id=world.run_id) == "in full"

    return [Act(begin, "waiting"), Act(pay), Act(end)]


async def test_a_parent_killed_at_every_call_of_either_run(store: Store, opened: Opened) -> None:
    """Both end, with one outcome of the child in both logs; an effect happens again only where its entry was not there yet."""
    lives = await everywhere(waiting_child, store, CALLS)
    async with opened() as other:
        for lived in lives:
            world = lived.world
            parent, child = await other.list(world.run_id), await other.list(f"{world.run_id}/child")
            assert chain_of(parent, "child", world.began) == [
                "waiting 1 {flow input run}",
                "success 1 {flow input run}",
            ], lived.met
            assert chain_of(child, "charge", world.began) == ["success 1"], lived.met
            assert chain_of(child, "$flow", world.began)[-1] == "success 1 {input parent root}", lived.met
            assert chain_of(parent, "$flow", world.began)[-1] == "success 1 {input}", lived.met
            for step, run in (("before", ""), ("charge", "/child"), ("ship", "/child"), ("after", "")):
                assert world.effects[step] == 1 + lived.may_repeat(step, run), (step, lived.met)


def failed_child(world: World, *, step_first: bool = True) -> Sequence[Act]:
    """A child that fails, its parent with it, and the call that mends both."""
    broken = [True]

    async def ship() -> None:
        if broken:
            raise ConnectionError("no ship")
        world.effects.happen("ship")

    @flow(clock=world.clock)
    async def bill(runner: Runner) -> None:
        await runner.step("charge", world.effects.happen_async, "charge")
        await runner.step("ship", ship)

    @flow(clock=world.clock)
    async def order(runner: Runner) -> None:
        await runner.flow("child", bill)

    async def fail(store: Store) -> None:
        with pytest.raises(StepFailed, match="no ship"):
            await order.run(store, run_id=world.run_id)

    async def mend(store: Store) -> None:
        broken.clear()
        if step_first:
            await control.retry(store, f"{world.run_id}/child", "ship", clock=world.clock)
        else:
            await control.retry(store, world.run_id, clock=world.clock)

    async def end(store: Store) -> None:
        await order.run(store, run_id=world.run_id)

    return [Act(fail), Act(mend, "reopened"), Act(end)]


def failed_parent(world: World) -> Sequence[Act]:
    return failed_child(world, step_first=False)


@pytest.mark.parametrize("life", [failed_child, failed_parent])
async def test_a_failed_child_is_mended_with_its_parent(store: Store, life: Life) -> None:
    """By one call, of the child's step or of the parent, wherever in it who called was killed; nothing is charged twice."""
    for lived in await everywhere(life, store):
        world = lived.world
        assert world.effects["charge"] == 1 + lived.may_repeat("charge", "/child"), lived.met
        assert await world.chain("ship", "/child") == ["failure 1 ConnectionError", "reopened 1", "success 1"], lived.met
        assert (await world.chain())[-1].startswith("success"), lived.met
        assert (await world.chain("$flow", "/child"))[-1].startswith("success"), lived.met


class Watched(MeetingStore):
    """A store that tells when somebody asks for a child, and tries to lock it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked, self.tried = asyncio.Event(), asyncio.Event()

    async def append(self, record: StepRecord) -> StepRecord:
        holder = await super().append(record)
        if "/" in record.run_id:
            self.asked.set()
        return holder

    def lock(self, run_id: str) -> AbstractAsyncContextManager[Lease]:
        if "/" in run_id:
            self.tried.set()
        locks = lock_of(self._store)
        assert locks
        return locks.lock(run_id)


@pytest.mark.parametrize("waited_for", [True, False], ids=["waits", "asks"])
async def test_two_runners_compete_for_one_child(store: Store, *, waited_for: bool) -> None:
    """The parent, and somebody who runs the child by itself: each effect once, one outcome, which both get."""
    world, watched = World(store, "run"), Watched(store)

    @flow
    async def bill(runner: Runner) -> str:
        for number in range(3):
            await runner.step(f"charge-{number}", world.effects.happen_async, f"charge-{number}")
        return "billed"

    @flow
    async def order(runner: Runner) -> str:
        if waited_for:
            return await runner.flow("child", bill)
        return str(await runner.result("result", await runner.flow("child", bill, wait=False), returns=str))

    async def rival() -> str:
        await watched.asked.wait()
        return await bill.options(lock_wait=30).run(store, run_id="run/child")

    async with asyncio.timeout(30):
        assert await asyncio.gather(order.run(watched, run_id="run"), rival()) == ["billed", "billed"]
    assert world.effects == {f"charge-{number}": 1 for number in range(3)}
    assert (await world.chain("$flow", "/child"))[-1].startswith("success")


async def test_a_child_whose_rival_dies_is_driven_by_its_parent(store: Store) -> None:
    """The parent finds its lock held, and takes it over; what the rival had recorded stays."""
    world, watched = World(store, "run"), Watched(store)
    rival_charges = asyncio.Event()

    async def charge() -> None:
        world.effects.happen("tried")
        if world.effects["tried"] == 1:
            rival_charges.set()
            await watched.tried.wait()
            await world.die()
        world.effects.happen("charge")

    @flow(clock=world.clock)
    async def bill(runner: Runner) -> str:
        await runner.step("prepare", world.effects.happen_async, "prepare")
        await runner.step("charge", charge)
        return "billed"

    @flow(clock=world.clock)
    async def order(runner: Runner) -> str:
        return await runner.flow("child", bill)

    with pytest.raises(Killed):  # once it has asked for its child and begun it
        await order.run(MeetingStore(store, 3, "after"), run_id="run")
    async with asyncio.timeout(30):
        rival = asyncio.create_task(world.until_killed(bill, "/child"))
        await rival_charges.wait()
        assert await order.run(watched, run_id="run") == "billed"
        await rival
    assert world.effects == {"prepare": 1, "tried": 2, "charge": 1}
