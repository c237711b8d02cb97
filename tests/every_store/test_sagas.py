"""What a flow did is undone once, on every store, wherever its process was killed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest

from durable_core import RunCancelled, Runner, RunSuspended, StepDrift, StepFailed, StepInterrupted, Store, control, flow
from tests.every_store.killing import CALLS, Act, Life, World, everywhere


def cancelled_saga(world: World, *, once: bool = False) -> Sequence[Act]:
    """Charge, wait, and give back when the run is cancelled."""

    @flow(clock=world.clock, wait_limit=0)
    async def order(runner: Runner) -> None:
        try:
            await runner.step("charge", world.effects.happen_async, "charge")
            await runner.event("go")
        except RunCancelled:
            await runner.step("refund", world.effects.happen_async, "refund", when_cancelled=True, at_most_once=once)
            raise

    async def begin(store: Store) -> None:
        with contextlib.suppress(RunSuspended):
            await order.run(store, run_id=world.run_id)

    async def end(store: Store) -> None:
        with pytest.raises(StepFailed, match="called it off") as failed:
            try:
                await order.run(store, run_id=world.run_id)
            except StepInterrupted:
                if world.effects["refund"]:
                    await control.resolve(store, world.run_id, "refund", "refund", reason="seen in the bank's list")
                else:
                    await control.retry(store, world.run_id, "refund")
                await order.run(store, run_id=world.run_id)
        assert failed.value.error.matches(RunCancelled)

    async def cancel(store: Store) -> None:
        await control.cancel(store, world.run_id, reason="the customer called it off", clock=world.clock)

    return [Act(begin, "waiting"), Act(cancel), Act(end)]


def refund_once(world: World) -> Sequence[Act]:
    return cancelled_saga(world, once=True)


async def test_what_a_cancelled_run_charged_is_given_back_once(store: Store) -> None:
    """One refund is recorded; it happens again only where the process died between the refund and its entry."""
    for lived in await everywhere(cancelled_saga, store, CALLS):
        world = lived.world
        assert await world.chain("refund") == ["success 1 {answered told_at}"], lived.met
        assert world.effects["refund"] == 1 + lived.may_repeat("refund"), lived.met
        assert world.effects["charge"] == 1 + lived.may_repeat("charge"), lived.met
        assert (await world.chain())[-1] == "failure 1 RunCancelled {cancelled input}", lived.met


async def test_a_refund_that_may_happen_once_happens_once(store: Store) -> None:
    """An interrupted one parks the cancelled run until somebody has looked."""
    for lived in await everywhere(refund_once, store):
        world = lived.world
        assert world.effects["refund"] == 1, lived.met
        assert (await world.chain("refund"))[-1].startswith("success"), lived.met
        assert (await world.chain())[-1] == "failure 1 RunCancelled {cancelled input}", lived.met


@pytest.mark.parametrize("when", ["before", "in", "after"])
async def test_killed_in_the_refund(store: Store, when: str) -> None:
    """Before the bank has heard of it, while it answers, and after that: the refund is recorded once."""
    world = World(store, "run")
    killed: list[bool] = []

    async def refund() -> None:
        if when == "before" and not killed:
            killed.append(True)
            await world.die()
        world.effects.happen("asked")
        if when == "in" and not killed:
            killed.append(True)
            await world.die()
        world.effects.happen("refund")
        if when == "after" and not killed:
            killed.append(True)
            await world.die()

    @flow(clock=world.clock)
    async def order(runner: Runner) -> None:
        try:
            await runner.step("charge", world.effects.happen_async, "charge")
            await control.cancel(store, world.run_id)
            await runner.step("ship", world.effects.happen_async, "ship")
        except RunCancelled:
            await runner.step("refund", refund, when_cancelled=True)
            raise

    await world.until_killed(order)
    with pytest.raises(StepFailed):
        await order.run(store, run_id="run")
    assert await world.chain("refund") == ["success 1 {answered told_at}"]
    assert world.effects == {
        "charge": 1,
        "asked": 1 + (when != "before"),
        "refund": 1 + (when == "after"),
    }


def answered(world: World, *, once: bool = False) -> Sequence[Act]:
    """Reserve, stumble over a typo, release; whoever finds the run killed mends the typo and runs it again."""
    typo = [True]

    @flow(clock=world.clock)
    async def ships(runner: Runner) -> None:
        await runner.step("reserve", world.effects.happen_async, "reserve")
        try:
            if typo:
                raise KeyError("amuont")
        except Exception:
            await runner.step("release", world.effects.happen_async, "release", at_most_once=once)
            raise
        await runner.step("ship", world.effects.happen_async, "ship")

    async def stumble(store: Store) -> None:
        with contextlib.suppress(StepFailed):
            await ships.run(store, run_id=world.run_id)

    async def mend(store: Store) -> None:
        typo.clear()

    async def again(store: Store) -> None:
        with contextlib.suppress(StepFailed, StepDrift, StepInterrupted):
            await ships.run(store, run_id=world.run_id)

    return [Act(stumble, once=True), Act(mend), Act(again), Act(again)]


def answered_once(world: World) -> Sequence[Act]:
    return answered(world, once=True)


@pytest.mark.parametrize("life", [answered, answered_once])
async def test_nothing_is_shipped_that_was_released(store: Store, life: Life) -> None:
    """Also where the run was killed between the release and its end, and mended before it was run again."""
    for lived in await everywhere(life, store):
        world = lived.world
        if lived.may_repeat("release") and life is answered:
            continue  # nothing in the log tells of that release
        assert world.effects["release"] + world.effects["ship"] <= 1, lived.met
        assert world.effects["reserve"] == 1 + lived.may_repeat("reserve"), lived.met
        released = await world.chain("release")
        if any(entry.startswith("success") for entry in released):
            assert (await world.chain())[-1] in (
                "failure 1 KeyError {answered_by input}",
                "waiting 1 {input parked waiting_for}",
            ), lived.met
        elif not released:
            assert (await world.chain())[-1] == "success 1 {input}", lived.met


def paypal(world: World, step_id: str | None = "ship") -> Sequence[Act]:
    """A visa that is refused and answered by paypal, then a shipment that fails, and is tried again."""
    broken = [True]

    async def refuse(name: str) -> None:
        world.effects.happen(name)
        raise ConnectionError("refused")

    async def ship() -> None:
        if broken:
            await refuse("no ship")
        world.effects.happen("ship")

    @flow(clock=world.clock)
    async def order(runner: Runner) -> None:
        try:
            await runner.step("visa", refuse, "visa")
        except StepFailed:
            await runner.step("paypal", world.effects.happen_async, "paypal")
        await runner.step("ship", ship)

    async def fail(store: Store) -> None:
        with pytest.raises(StepFailed, match="'ship'"):
            await order.run(store, run_id=world.run_id)

    async def mend(store: Store) -> None:
        broken.clear()
        await control.retry(store, world.run_id, step_id, clock=world.clock)

    async def end(store: Store) -> None:
        await order.run(store, run_id=world.run_id)

    return [Act(fail), Act(mend, "reopened"), Act(end)]


def paypal_without_a_name(world: World) -> Sequence[Act]:
    """The run knows which step failed it."""
    return paypal(world, None)


@pytest.mark.parametrize("life", [paypal, paypal_without_a_name])
async def test_a_retry_charges_nobody_twice(store: Store, life: Life) -> None:
    """What the flow had caught stays as it was, and so does what it did instead."""
    for lived in await everywhere(life, store):
        world = lived.world
        assert await world.chain("visa") == ["failure 1 ConnectionError"], lived.met
        assert await world.chain("paypal") == ["success 1 {answered}"], lived.met
        assert await world.chain("ship") == ["failure 1 ConnectionError", "reopened 1", "success 1"], lived.met
        assert world.effects["visa"] == 1 + lived.may_repeat("visa"), lived.met
        assert world.effects["paypal"] == 1 + lived.may_repeat("paypal"), lived.met
        assert (await world.chain())[-1] == "success 1 {input}", lived.met
