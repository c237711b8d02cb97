"""Clearing what ended long ago: a run and its children as one, children first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    CorruptLog,
    MemoryStore,
    NotFound,
    Refused,
    RunBusy,
    Runner,
    RunSuspended,
    StepFailed,
    StepRecord,
    control,
    flow,
)
from durable_core.testing import FakeClock


class Watched(MemoryStore):
    """Remembers in which order runs were cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.cleared: list[str] = []
        self.fails_at = 0

    async def clear(self, run_id: str) -> None:
        self.cleared.append(run_id)
        if len(self.cleared) == self.fails_at:
            raise ConnectionError
        await super().clear(run_id)


class WithoutIndex(Watched):
    flows = None  # type: ignore[assignment]  # an ability that isn't there


@pytest.fixture(params=[Watched, WithoutIndex])
def store(request: pytest.FixtureRequest) -> Watched:
    made: Watched = request.param()
    return made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def names(store: MemoryStore) -> set[str]:
    return {run_id async for run_id in store.runs()}


def flows(clock: FakeClock) -> dict[str, Any]:
    """Make a family of three flows, and one that fails, waits or succeeds."""

    @flow(clock=clock)
    async def leaf(runner: Runner) -> None:
        await runner.step("work", lambda: 1)

    @flow(clock=clock)
    async def middle(runner: Runner) -> None:
        await runner.flow("leaf", leaf)

    @flow(clock=clock)
    async def top(runner: Runner) -> None:
        await runner.flow("one", middle)
        await runner.flow("two", leaf)

    @flow(clock=clock, wait_limit=0)
    async def plain(runner: Runner, *, what: str) -> None:
        if what == "fails":
            await runner.step("work", lambda: 1 / 0)
        if what == "waits":
            await runner.event("never")

    return {"leaf": leaf, "top": top, "plain": plain}


async def test_what_ended_long_ago_is_cleared(store: Watched, clock: FakeClock) -> None:
    """However it ended; what ended later, waits, or has no flow stays."""
    plain = flows(clock)["plain"]
    await plain.run(store, run_id="good", what="goes")
    with pytest.raises(StepFailed):
        await plain.run(store, run_id="bad", what="fails")
    await plain.start(store, "dropped", what="goes")
    await control.cancel(store, "dropped", clock=clock)
    with pytest.raises(RunSuspended):
        await plain.run(store, run_id="waits", what="waits")
    await plain.start(store, "asked", what="goes")
    with pytest.raises(StepFailed):
        await Runner(store, "alone", clock=clock).step("work", lambda: 1 / 0)
    clock.advance(30 * 86_400)
    await plain.run(store, run_id="late", what="goes")
    assert await control.clear_ended(store, clock=clock) == []
    clock.advance(1)
    assert {*await control.clear_ended(store, clock=clock)} == {"good", "bad", "dropped"}
    assert await names(store) == {"waits", "asked", "alone", "late"}
    assert [*await control.clear_ended(store, older_than=timedelta(0), clock=clock)] == ["late"]


async def test_a_prefix_is_taken_as_it_is(store: Watched, clock: FakeClock) -> None:
    """It is no pattern."""
    plain = flows(clock)["plain"]
    for run_id in ("a_1", "ab1", "a_2"):
        await plain.run(store, run_id=run_id, what="goes")
    clock.advance(1)
    assert {*await control.clear_ended(store, "a_", older_than=timedelta(0), clock=clock)} == {"a_1", "a_2"}


async def test_a_family_is_cleared_as_one(store: Watched, clock: FakeClock) -> None:
    """Children before those that called for them, so that a crash in the middle is made good by the same call again."""
    top = flows(clock)["top"]
    await top.run(store, run_id="run")
    clock.advance(1)
    assert await control.clear_ended(store, "run/", older_than=timedelta(0), clock=clock) == []
    store.fails_at = 3
    with pytest.raises(ConnectionError):
        await control.clear_ended(store, older_than=timedelta(0), clock=clock)
    assert "run" in await names(store)
    await control.clear_ended(store, older_than=timedelta(0), clock=clock)
    assert await names(store) == set()
    order = [run_id for number, run_id in enumerate(store.cleared) if number != 2]
    assert order.index("run/one/leaf") < order.index("run/one") < order.index("run")
    assert order.index("run/two") < order.index("run")


async def test_a_dry_run_names_what_would_be_cleared(store: Watched, clock: FakeClock) -> None:
    """Children too, in the order in which they would go; nothing is."""
    await flows(clock)["top"].run(store, run_id="run")
    clock.advance(1)
    there = await names(store)
    named = await control.clear_ended(store, older_than=timedelta(0), dry_run=True, clock=clock)
    assert (await names(store), store.cleared) == (there, [])
    assert [*named] == [*await control.clear_ended(store, older_than=timedelta(0), clock=clock)]


async def test_a_family_with_a_member_that_has_not_ended_stays(store: Watched, clock: FakeClock) -> None:
    """One that was reopened, say; and the age of the topmost run counts."""
    made = flows(clock)
    await made["top"].run(store, run_id="run")
    leaf = await store.get("run/two", "$flow")
    assert leaf is not None
    await store.append(StepRecord(run_id="run/two", step_id="$flow", revision=2, kind="flow", status="reopened", note=leaf.note))
    clock.advance(1)
    assert await control.clear_ended(store, older_than=timedelta(0), clock=clock) == []
    assert store.cleared == []


async def test_a_child_whose_parent_is_gone_is_cleared(store: Watched, clock: FakeClock) -> None:
    """Nothing else would ever clear it."""
    await flows(clock)["top"].run(store, run_id="run")
    await store.clear("run")
    clock.advance(1)
    cleared = await control.clear_ended(store, older_than=timedelta(0), clock=clock)
    assert {*cleared} == {"run/one", "run/one/leaf", "run/two"}


async def test_the_children_of_a_forks_original_stay(store: Watched, clock: FakeClock) -> None:
    """They are in the fork's log, and yet not its own."""
    made = flows(clock)
    await made["top"].run(store, run_id="run")
    await control.fork(store, "run", "new", before="two", clock=clock)
    await made["top"].run(store, run_id="new")
    await store.append(StepRecord(run_id="run", step_id="$flow", revision=9, kind="flow", status="reopened"))
    clock.advance(1)
    cleared = await control.clear_ended(store, older_than=timedelta(0), clock=clock)
    assert {*cleared} == {"new/two", "new"}
    assert await names(store) == {"run", "run/one", "run/one/leaf", "run/two"}


async def test_a_run_that_is_held_stays(store: Watched, clock: FakeClock) -> None:
    """Somebody is at work on it, or on one of its children; the others are cleared."""
    made = flows(clock)
    await made["top"].run(store, run_id="run")
    await made["leaf"].run(store, run_id="other")
    clock.advance(1)
    async with store.lock("run/one"):
        assert await control.clear_ended(store, older_than=timedelta(0), clock=clock) == ["other"]
    assert store._held == {}


async def test_a_damaged_run_hides_no_other(store: Watched, clock: FakeClock) -> None:
    """It is told after the rest was cleared."""
    leaf = flows(clock)["leaf"]
    for run_id in ("a", "b", "c"):
        await leaf.run(store, run_id=run_id)
    clock.advance(1)
    read = store.list

    async def damaged(run_id: str) -> Sequence[StepRecord]:
        if run_id == "b":
            raise CorruptLog("b: the checksum doesn't match")
        return await read(run_id)

    store.list = damaged  # type: ignore[method-assign]
    with pytest.raises(CorruptLog, match="b: "):
        await control.clear_ended(store, older_than=timedelta(0), clock=clock)
    assert await names(store) == {"b"}


async def test_an_age_that_is_none(store: Watched) -> None:
    """A negative one would clear what has not ended yet."""
    with pytest.raises(ValueError, match="older_than"):
        await control.clear_ended(store, older_than=timedelta(days=-1))


async def test_one_run_that_ended_is_cleared(store: Watched, clock: FakeClock) -> None:
    """With its children, children first, and no other run whose id begins alike."""
    made = flows(clock)
    await made["top"].run(store, run_id="run")
    await made["plain"].run(store, run_id="run-2", what="goes")
    assert [*await control.clear(store, "run")] == ["run/one/leaf", "run/one", "run/two", "run"]
    assert await names(store) == {"run-2"}


async def test_one_run_that_has_to_stay(store: Watched, clock: FakeClock) -> None:
    """One that waits, a child whose parent is there, one without a flow, one that is held, and one that isn't there."""
    made = flows(clock)
    with pytest.raises(RunSuspended):
        await made["plain"].run(store, run_id="waits", what="waits")
    await made["top"].run(store, run_id="run")
    await Runner(store, "alone").step("work", lambda: 1)
    for run_id, what in [("waits", "has not ended"), ("run/one", "'run'; clear that run"), ("alone", "no flow")]:
        with pytest.raises(Refused, match=what):
            await control.clear(store, run_id)
    with pytest.raises(NotFound):
        await control.clear(store, "nobody")
    async with Runner(store, "run"):
        with pytest.raises(RunBusy):
            await control.clear(store, "run")
    assert not store.cleared
