"""Progress: what a run publishes, read and followed from outside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_core import (
    LockLost,
    MemoryStore,
    NestedStep,
    Refused,
    Runner,
    StepDrift,
    StepRecord,
    StepReused,
    StoreError,
    control,
    flow,
)
from tests.core.conftest import FlakyStore, Killed


async def values(store: MemoryStore, step_id: str = "progress") -> list[Any]:
    return [record.value() for record in await store.list("run") if record.step_id == step_id]


async def test_each_call_is_the_next_entry(store: MemoryStore) -> None:
    """The n-th call appends revision n, and the n-th call of a replay finds it and appends nothing."""
    for _ in range(2):
        async with Runner(store, "run") as runner:
            for done in range(3):
                await runner.publish("progress", {"done": done})
    records = await store.list("run")
    assert [(record.kind, record.status, record.revision) for record in records] == [
        ("published", "success", n) for n in range(3)
    ]
    assert await values(store) == [{"done": 0}, {"done": 1}, {"done": 2}]
    newest = await control.published(store, "run", "progress")
    assert newest is not None
    assert newest.value() == {"done": 2}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(3))
async def test_killed_at_an_append(store: FlakyStore, when: str, number: int) -> None:
    """The next run publishes what is missing, in the place where it belongs."""

    def kill(record: StepRecord) -> None:
        if record.revision == number:
            raise Killed

    setattr(store, when, kill)
    with pytest.raises(Killed):
        async with Runner(store, "run") as runner:
            for done in range(3):
                await runner.publish("progress", done)
    store.before = store.after = None
    async with Runner(store, "run") as runner:
        for done in range(4):
            await runner.publish("progress", done)
    assert await values(store) == [0, 1, 2, 3]


async def test_published_at_once(store: FlakyStore) -> None:
    """Calls that run side by side get a place each, and leave no hole."""
    store.before = lambda _: asyncio.sleep(0)
    async with Runner(store, "run") as runner:
        await asyncio.gather(*(runner.publish("progress", done) for done in range(20)))
    assert [record.revision for record in await store.list("run")] == [*range(20)]
    assert sorted(await values(store)) == [*range(20)]


async def test_a_store_that_is_away(store: FlakyStore) -> None:
    """A call that could not append leaves its number to the next one: there is no hole."""

    def away(record: StepRecord) -> None:
        if record.result == b"1":
            raise StoreError("away")

    store.before = away
    async with Runner(store, "run", store_timeout=0.1) as runner:
        await runner.publish("progress", 0)
        with pytest.raises(StoreError):
            await runner.publish("progress", 1)
        await runner.publish("progress", 2)
    assert [record.revision for record in await store.list("run")] == [0, 1]


async def test_in_a_cancelled_run(store: MemoryStore) -> None:
    """Publishing is no step: it works while a run that was cancelled undoes what it did."""
    async with Runner(store, "run") as runner:
        await runner.publish("progress", 0)
        await control.cancel(store, "run")
        await runner.publish("progress", "undoing")
    assert await values(store) == [0, "undoing"]


async def test_after_the_runner_was_left(store: MemoryStore) -> None:
    """A runner that holds no lock any more publishes nothing."""
    async with Runner(store, "run") as runner:
        await runner.publish("progress", 0)
    with pytest.raises(LockLost):
        await runner.publish("progress", 1)
    assert await values(store) == [0]


async def test_bad_input(store: MemoryStore) -> None:
    """What can't be recorded, an id of something else, and a call inside a step are refused, and nothing is appended."""
    async with Runner(store, "run") as runner:
        with pytest.raises(TypeError, match="what is published as 'progress' can't be recorded"):
            await runner.publish("progress", object())
        with pytest.raises(ValueError, match="reserved for the library"):
            await runner.publish("$progress", 1)
        await runner.step("other", lambda: 1)
        with pytest.raises(StepReused):
            await runner.publish("other", 1)
        with pytest.raises(NestedStep):
            await runner.step("outer", lambda: runner.publish("progress", 1))
    async with Runner(store, "run") as runner:
        with pytest.raises(StepDrift, match="'step'"):
            await runner.publish("other", 1)
    assert await values(store) == []


async def test_nothing_was_published(store: MemoryStore) -> None:
    """There is no newest entry then; the id of a step is refused."""
    assert await control.published(store, "run", "progress") is None
    async with Runner(store, "run") as runner:
        await runner.step("other", lambda: 1)
    with pytest.raises(Refused, match="was not published"):
        await control.published(store, "run", "other")
    with pytest.raises(Refused, match="was not published"):
        await anext(control.follow(store, "run", "other"))
    with pytest.raises(ValueError, match="run_id"):
        await control.published(store, "", "progress")


@flow
async def work(runner: Runner, *, upto: int) -> None:
    for done in range(upto):
        await runner.publish("progress", done)
        await runner.step(f"work-{done}", lambda: None)


class TestFollow:
    """From the first entry to the run's end."""

    async def test_a_run_that_goes_on(self, store: MemoryStore) -> None:
        """Each entry comes as it is published, in order, and the end of the run ends it."""
        found: list[Any] = []

        async def watch() -> None:
            found.extend([record.value() async for record in control.follow(store, "run", "progress")])

        await asyncio.wait_for(asyncio.gather(watch(), watch(), work.run(store, "run", upto=5)), 10)
        assert sorted(found) == sorted([*range(5), *range(5)])

    async def test_a_run_that_has_ended(self, store: MemoryStore) -> None:
        """All entries come, from the first one."""
        await work.run(store, "run", upto=3)
        assert [record.value() async for record in control.follow(store, "run", "progress")] == [0, 1, 2]

    async def test_a_run_that_failed(self, store: MemoryStore) -> None:
        """A failure is an end as well."""

        @flow
        async def fails(runner: Runner) -> None:
            await runner.publish("progress", 0)
            await runner.step("fail", lambda: 1 / 0)

        with pytest.raises(Exception, match="division"):
            await fails.run(store, "run")
        assert [record.value() async for record in control.follow(store, "run", "progress")] == [0]

    async def test_a_run_that_has_not_begun(self, store: MemoryStore) -> None:
        """It may be followed before it begins."""
        records = control.follow(store, "run", "progress")
        first = asyncio.ensure_future(anext(records))
        await asyncio.sleep(0)
        await work.run(store, "run", upto=1)
        assert (await asyncio.wait_for(first, 10)).value() == 0
        assert [record async for record in records] == []

    async def test_a_run_without_a_flow_has_no_end(self, store: MemoryStore) -> None:
        """It is followed until nobody asks any more."""
        async with Runner(store, "run") as runner:
            await runner.publish("progress", 0)
            records = control.follow(store, "run", "progress")
            assert (await anext(records)).value() == 0
            second = asyncio.ensure_future(anext(records))
            await runner.publish("progress", 1)
            assert (await asyncio.wait_for(second, 10)).value() == 1
        third = asyncio.ensure_future(anext(records))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not third.done()
        third.cancel()
        await asyncio.wait([third])

    async def test_entries_that_came_between_two_looks(self, store: MemoryStore) -> None:
        """None is left out where several came at once."""
        records = control.follow(store, "run", "progress")
        async with Runner(store, "run") as runner:
            await runner.publish("progress", 0)
            assert (await anext(records)).value() == 0
            for done in range(1, 6):
                await runner.publish("progress", done)
            assert [(await anext(records)).value() for _ in range(5)] == [1, 2, 3, 4, 5]
        await records.aclose()  # type: ignore[attr-defined]  # it is a generator
