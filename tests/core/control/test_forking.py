"""A fork carries its flow: it waits for its turn, with the same input, and says whence it came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_core import CopyConflict, MemoryStore, Refused, Runner, RunSuspended, StepFailed, StepRecord, control, flow
from durable_core.testing import CrashingStore, FakeClock, InjectedFault


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@flow
async def pays(runner: Runner, *, amount: int, currency: str = "EUR") -> str:
    await runner.step("look-up", lambda: amount, returns=int)
    return await runner.step("charge", lambda: f"{amount} {currency}", returns=str)


async def test_a_fork_waits_for_its_turn(store: MemoryStore) -> None:
    """Its flow is as one that was asked for, and running it needs no input."""
    clock = FakeClock()
    await pays.run(store, run_id="run", amount=90)
    original = await store.get("run", "$flow")
    assert original is not None
    assert await control.fork(store, "run", "new", before="charge", by="alice", clock=clock) == 1
    forked = await store.get("new", "$flow")
    assert forked is not None
    assert (forked.status, forked.revision, forked.name, forked.fingerprint) == ("waiting", 0, "pays", original.fingerprint)
    assert forked.note == {
        "input": {"amount": 90},
        "defaults": {"currency": "EUR"},
        "asked": {"at": clock.now().isoformat()},
        "origin": {"run": "run", "before": "charge"},
        "by": "alice",
    }
    status = await control.status(store, "new")
    assert (status.status, status.origin, status.started_at) == ("waiting", ("run", "charge"), clock.now())
    assert await pays.run(store, run_id="new") == "90 EUR"
    assert (await control.status(store, "new")).origin == ("run", "charge")


async def test_nothing_of_the_originals_own_life_goes_along(store: MemoryStore) -> None:
    """Neither its cancellation nor its deadline, its parent or what it failed by."""
    note: dict[str, Any] = {"input": {"amount": 90}, "cancelled": {"by": "bob"}, "deadline": "2020-01-01T00:00:00+00:00"}
    note |= {"parent": {"run": "top", "step": "pay"}, "root": {"run": "top", "flow": "all"}, "failed": ["charge"]}
    await store.append(StepRecord(run_id="run", step_id="a"))
    await store.append(StepRecord(run_id="run", step_id="charge"))
    await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", name="pays", note=note))
    await control.fork(store, "run", "new", before="charge")
    forked = await store.get("new", "$flow")
    assert forked is not None
    assert forked.notes.keys() == {"input", "asked", "origin"}


@pytest.mark.parametrize("at", [1, 2])
async def test_a_fork_that_was_cut_off_is_completed(store: MemoryStore, at: int) -> None:
    """By the same call again, which changes nothing after that; its flow comes last, so that nobody takes up half a run."""
    await pays.run(store, run_id="run", amount=90)
    with pytest.raises(InjectedFault):
        await control.fork(CrashingStore(store, at=at), "run", "new", before="charge")
    assert (await store.get("new", "$flow") is None) or at == 2
    for _ in range(2):
        await control.fork(store, "run", "new", before="charge")
        assert [(r.step_id, r.revision) for r in await store.list("new")] == [("look-up", 0), ("$flow", 0)]
    with pytest.raises(CopyConflict):
        await control.fork(store, "run", "new", before="look-up")
    await pays.run(store, run_id="new")
    with pytest.raises(CopyConflict):
        await control.fork(store, "run", "new", before="charge")


async def test_children_that_have_not_ended_are_left_out(store: MemoryStore) -> None:
    """The outcome of one that ended is taken over; one that was only asked for, or still runs, is asked for anew."""

    @flow
    async def child(runner: Runner, *, what: str) -> str:
        if what == "waits":
            await runner.approval("go")
        return what

    @flow(wait_limit=0)
    async def parent(runner: Runner) -> None:
        await runner.flow("ended", child, what="ended")
        await runner.flow("asked", child, what="asked", wait=False)
        await runner.flow("waits", child, what="waits")
        await runner.step("last", lambda: 1)

    with pytest.raises(RunSuspended):
        await parent.run(store, run_id="run")
    await store.append(StepRecord(run_id="run", step_id="last"))
    assert await control.fork(store, "run", "new", before="last") == 2
    assert {record.step_id for record in await store.list("new")} == {"ended", "$flow"}
    await child.run(store, run_id="run/asked")
    assert await control.fork(store, "run", "later", before="last") == 3
    assert {record.step_id for record in await store.list("later")} == {"ended", "asked", "$flow"}


async def test_a_run_without_a_flow_is_forked_as_it_is(store: MemoryStore) -> None:
    """There is no flow to carry."""
    runner = Runner(store, "run")
    await runner.step("a", lambda: 1)
    with pytest.raises(StepFailed):
        await runner.step("b", lambda: 1 / 0)
    assert await control.fork(store, "run", "new", before="b", by="alice") == 1
    assert [record.step_id for record in await store.list("new")] == ["a"]
    with pytest.raises(ValueError, match="by '\\$x'"):
        await control.fork(store, "run", "newer", before="b", by="$x")


async def test_a_map_begins_with_its_first_item(store: MemoryStore) -> None:
    """It is recorded after its items, which run again in a fork before it, and what began in between as well."""
    sent: list[str] = []

    @flow
    async def mails(runner: Runner) -> None:
        await runner.step("mail-list", lambda: 1)
        await runner.map("mail", sent.append, ["ann", "bob"], returns=None)
        await runner.step("after", lambda: 1)

    await mails.run(store, run_id="run")
    assert await control.fork(store, "run", "new", before="mail") == 1
    await mails.run(store, run_id="new")
    assert sent == ["ann", "bob"] * 2
    assert await control.fork(store, "run", "half", before="mail/1") == 2
    await mails.run(store, run_id="half")
    assert sent[4:] == ["bob"]


async def test_a_race_is_no_place_to_fork(store: MemoryStore) -> None:
    """Its entry doesn't say which steps its winner asked for, so a fork before it would keep what should run again."""

    @flow
    async def races(runner: Runner) -> str:
        name, _ = await runner.first("quickest", rail=lambda: runner.step("rail", lambda: 1), air=lambda: runner.event("air"))
        return name

    await races.run(store, run_id="run")
    with pytest.raises(Refused, match="'quickest' of run 'run' is a race.*fork before the first of these steps"):
        await control.fork(store, "run", "new", before="quickest")
    assert not await store.list("new")


async def test_what_lost_a_race_is_asked_for_again(store: MemoryStore) -> None:
    """In a fork from the middle of the race, nobody has won yet: neither an approval nor a child is out of it."""
    is_quick = [True]

    @flow(wait_limit=0)
    async def ships(runner: Runner) -> str:
        return (await runner.approval("captain")).by

    @flow(wait_limit=0)
    async def sends(runner: Runner) -> tuple[str, str]:
        async def rail() -> str:
            await runner.step("ticket", lambda: 1)
            return await runner.step("train", lambda: "train" if is_quick else 1 / 0, returns=str)

        contenders = {"boss": lambda: runner.approval("boss"), "ship": lambda: runner.flow("ship", ships), "rail": rail}
        name, value = await runner.first("quickest", **contenders)
        return name, str(value)

    assert await sends.run(store, run_id="run") == ("rail", "train")
    assert await control.fork(store, "run", "new", before="train") == 1
    is_quick.clear()
    with pytest.raises(RunSuspended) as suspended:
        await sends.run(store, run_id="new")
    assert sorted(suspended.value.waiting_for) == ["boss", "ship"]
    await control.approve(store, "new/ship", "captain", by="ann")
    assert await sends.run(store, run_id="new") == ("ship", "ann")


async def test_a_child_that_was_cancelled_with_its_parent_is_called_again(store: MemoryStore) -> None:
    """Its cancellation was that of the original run, and the fork begins anew."""

    @flow(wait_limit=0)
    async def packs(runner: Runner) -> str:
        return (await runner.approval("packer")).by

    @flow(wait_limit=0)
    async def orders(runner: Runner) -> tuple[str, int]:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(runner.flow("pack", packs))
            step = group.create_task(runner.step("charge", lambda: 1, returns=int))
        return child.result(), step.result()

    with pytest.raises(RunSuspended):
        await orders.run(store, run_id="run")
    await control.cancel(store, "run")
    with pytest.raises(StepFailed):
        await orders.run(store, run_id="run")
    assert await control.fork(store, "run", "new", before="charge") == 0
    with pytest.raises(RunSuspended):
        await orders.run(store, run_id="new")
    await control.approve(store, "new/pack", "packer", by="ann")
    assert await orders.run(store, run_id="new") == ("ann", 1)
