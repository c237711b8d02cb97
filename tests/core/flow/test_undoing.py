"""A run that is cancelled, undoes what it did, and dies meanwhile; and its children."""

from __future__ import annotations

import asyncio

import pytest

from durable_core import MemoryStore, RunCancelled, Runner, RunSuspended, StepFailed, StepInterrupted, StepRecord, control, flow
from durable_core.testing import FakeClock
from tests.core.conftest import Effects, FlakyStore, Killed


async def entries(store: MemoryStore, run_id: str, step_id: str) -> list[str]:
    return [record.status for record in await store.list(run_id) if record.step_id == step_id]


class Charging:
    """A child that charges, asks, and gives back when it is cancelled."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects

    @flow
    async def child(self, runner: Runner) -> None:
        try:
            await runner.step("charge", self.effects.happen, "charge")
            await runner.approval("ask")
        except RunCancelled:
            await runner.step("refund", self.effects.happen, "refund", when_cancelled=True, at_most_once=True)
            raise


@pytest.mark.parametrize("how", ["group", "gather"])
async def test_a_child_beside_what_is_told_first_is_cancelled_too(store: FlakyStore, effects: Effects, how: str) -> None:
    """Also where a task group cuts short the call that waits for it."""
    child = Charging(effects).child

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> None:
        if how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(runner.approval("own"))
                group.create_task(runner.flow("child", child))
        else:
            await asyncio.gather(runner.approval("own"), runner.flow("child", child))

    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    await control.cancel(store, "run")
    with pytest.raises(StepFailed) as failed:
        await parent.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"charge": 1, "refund": 1}
    assert (await entries(store, "run/child", "$flow"))[-1] == "failure"


async def test_a_child_that_an_earlier_life_asked_for_is_cancelled(store: FlakyStore, effects: Effects) -> None:
    """Though its parent was killed before its own entry, and is told before it asks again."""
    child = Charging(effects).child

    @flow
    async def parent(runner: Runner) -> None:
        await runner.flow("child", child, wait=False)

    def kill(record: StepRecord) -> None:
        if record.step_id == "child":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await parent.run(store, run_id="run")
    store.before = None
    await control.cancel(store, "run")
    with pytest.raises(StepFailed):
        await parent.run(store, run_id="run")
    assert await entries(store, "run/child", "$flow") == ["waiting", "failure"]


async def test_a_child_that_is_not_called_for_any_more_is_cancelled(store: FlakyStore, effects: Effects) -> None:
    """What called for it comes after what is told."""
    child = Charging(effects).child
    crash = [True]

    @flow
    async def parent(runner: Runner) -> None:
        if not crash:
            await runner.approval("new")
        await runner.flow("child", child, wait=False)
        raise KeyError

    with pytest.raises(KeyError):
        await parent.run(store, run_id="run")
    crash.clear()
    await control.cancel(store, "run")
    with pytest.raises(StepFailed):
        await parent.run(store, run_id="run")
    assert await entries(store, "run/child", "$flow") == ["waiting", "failure"]


async def test_a_run_with_the_id_of_a_child_is_left_alone(store: FlakyStore, effects: Effects) -> None:
    """It is not the parent's to cancel."""
    child = Charging(effects).child

    @flow
    async def parent(runner: Runner) -> None:
        await control.cancel(store, "run")
        await runner.flow("child", child, wait=False)

    await child.start(store, "run/child")
    with pytest.raises(StepFailed):
        await parent.run(store, run_id="run")
    assert await entries(store, "run/child", "$flow") == ["waiting"]


async def test_a_child_that_is_parked_as_it_undoes_parks_its_parent(store: FlakyStore, effects: Effects) -> None:
    """Where nobody waited for it, too. Both end when somebody has looked what came of the refund."""
    child = Charging(effects).child

    @flow
    async def parent(runner: Runner) -> None:
        run_id = await runner.flow("child", child, wait=False)

        async def begin_it() -> None:
            with pytest.raises(RunSuspended):
                await child.options(wait_limit=0).run(store, run_id=run_id)

        await runner.step("begin it", begin_it)
        await control.cancel(store, "run")
        await runner.approval("never")

    def kill(record: StepRecord) -> None:
        if record.step_id == "refund" and record.status == "success":
            raise Killed

    store.before = kill
    with pytest.raises(Killed):
        await parent.run(store, run_id="run")
    store.before = None
    async with asyncio.timeout(5):
        with pytest.raises(StepInterrupted, match="refund"):
            await parent.run(store, run_id="run")
    parked = await store.get("run", "$flow")
    assert parked is not None
    assert parked.status == "waiting"
    assert parked.notes["waiting_for"] == [["run/child", "refund"]]
    await control.resolve(store, "run/child", "refund", "refund", reason="seen")
    with pytest.raises(StepFailed) as failed:
        await parent.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"charge": 1, "refund": 1}
    assert (await entries(store, "run/child", "$flow"))[-1] == "failure"


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_run_that_waits_for_its_next_attempt_is_told(
    store: FlakyStore, effects: Effects, clock: FakeClock, how: str
) -> None:
    """At once when it is run again, and not only when the attempt is due."""

    def refuse() -> None:
        raise ConnectionError("the bank is closed")

    @flow(wait_limit=0, clock=clock, timeout=60)
    async def pays(runner: Runner) -> None:
        try:
            await runner.step("charge", refuse, max_attempts=2, retry_delay=3600)
        except RunCancelled:
            await runner.step("refund", effects.happen, "refund", when_cancelled=True)
            raise

    with pytest.raises(RunSuspended):
        await pays.run(store, run_id="run")
    if how == "cancelled":
        await control.cancel(store, "run")
    else:
        clock.advance(60)
    with pytest.raises(StepFailed) as failed:
        await pays.run(store, run_id="run")
    assert failed.value.error.matches(RunCancelled)
    assert effects == {"refund": 1}
