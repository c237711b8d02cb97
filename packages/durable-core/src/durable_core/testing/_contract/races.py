"""Among any number of appends to one slot, from anywhere, one wins and all get the same record."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from durable_core.record import StepRecord
from durable_core.testing._processes import Child, append_all
from durable_core.testing._samples import OpenStore, entry


class RaceTests:
    async def test_tasks_race_for_one_slot(self, open_store: OpenStore) -> None:
        """Of 200 concurrent appends to one slot exactly one wins, and all get its record."""
        records = [entry(result=str(number).encode()) for number in range(200)]
        async with open_store() as store:
            held = await asyncio.gather(*map(store.append, records))
            listed = await store.list("run")
        assert len(listed) == 1
        assert listed[0] in records
        assert [record.id for record in held] == [listed[0].id] * 200

    async def test_stores_race_for_slots(self, open_store: OpenStore) -> None:
        """Stores that were opened on one place apart from each other agree on the holder of every slot."""
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(open_store()) for _ in range(4)]
            rounds = [[entry(step_id=f"step {number}") for _ in stores] for number in range(25)]
            appends = [store.append(record) for records in rounds for store, record in zip(stores, records, strict=True)]
            held = await asyncio.gather(*appends)
            listings = [[record.id for record in await store.list("run")] for store in stores]
        assert listings == [listings[0]] * 4
        _agree(held, listings[0], contenders=[record for records in rounds for record in records])

    async def test_what_a_loser_was_given_is_seen_from_everywhere(self, open_store: OpenStore) -> None:
        """As soon as an append has returned, to the winner or to a loser, every store's `get` and `list` show the holder."""
        async with open_store() as one, open_store() as two, open_store() as reader:

            async def contend(number: int) -> None:
                store = (one, two)[number % 2]
                held = await store.append(entry(step_id=f"step {number // 4}"))
                assert await reader.get("run", held.step_id) == held
                assert held in await reader.list("run")

            await asyncio.gather(*map(contend, range(40)))

    async def test_processes_race_for_slots(self, open_store: OpenStore) -> None:
        """Processes that append to the same slots at the same moment agree on the holder of every slot."""
        contenders = [[entry(step_id=f"step {number}") for number in range(30)] for _ in range(3)]
        async with AsyncExitStack() as stack:
            opened = [stack.enter_async_context(Child(append_all, open_store, records)) for records in contenders]
            children = await asyncio.gather(*opened)
            for child in children:
                assert await child.receive() == "ready"
            for child in children:
                await child.send("go")
            held: list[StepRecord] = [record for child in children for record in await child.receive()]
        async with open_store() as store:
            listed = [record.id for record in await store.list("run")]
        _agree(held, listed, contenders=[record for records in contenders for record in records])


def _agree(held: list[StepRecord], listed: list[str], *, contenders: list[StepRecord]) -> None:
    """Assert that each slot has one holder, which is among its contenders, and that all of them got it."""
    holders: dict[str, set[str]] = {}
    for asked, given in zip(contenders, held, strict=True):
        assert given.step_id == asked.step_id
        holders.setdefault(asked.step_id, set()).add(given.id)
    assert all(len(ids) == 1 for ids in holders.values()), f"slots with several holders: {holders}"
    assert sorted(listed) == sorted(id_ for ids in holders.values() for id_ in ids)
    assert set(listed) <= {record.id for record in contenders}
