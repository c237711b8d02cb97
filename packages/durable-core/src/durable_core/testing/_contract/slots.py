"""A slot is given away once."""

from __future__ import annotations

import asyncio

import pytest

from durable_core.testing._samples import OpenStore, entry


class SlotTests:
    async def test_the_same_record_again_is_found(self, open_store: OpenStore) -> None:
        """Appending a record a second time, as after a lost acknowledgement, returns it and writes nothing."""
        record = entry(result=b"1")
        async with open_store() as store, open_store() as other:
            for writer in (store, store, other):
                assert await writer.append(record) == record
            assert [held.id for held in await store.list("run")] == [record.id]

    async def test_a_taken_slot_returns_its_holder(self, open_store: OpenStore) -> None:
        """Another record for a taken slot gets the record that holds it, and leaves no trace."""
        holder = entry(result=b'"first"', note={"by": "first"})
        async with open_store() as store, open_store() as other:
            await store.append(holder)
            for loser in (entry(result=b'"second"'), entry(status="failure"), entry(kind="sleep", status="waiting")):
                for writer in (store, other):
                    assert await writer.append(loser) == holder
            for reader in (store, other):
                assert await reader.get("run", "step") == holder
                assert [held.id for held in await reader.list("run")] == [holder.id]

    async def test_a_later_revision_does_not_free_earlier_ones(self, open_store: OpenStore) -> None:
        """A slot keeps its holder after the chain has grown."""
        chain = [entry(revision=revision) for revision in range(3)]
        async with open_store() as store:
            for record in chain:
                await store.append(record)
            for record in chain:
                assert await store.append(entry(revision=record.revision)) == record
            assert [held.id for held in await store.list("run")] == [record.id for record in chain]

    async def test_slots_of_one_batch_that_occur_several_times(self, open_store: OpenStore) -> None:
        """Contenders that are appended together, as one batch perhaps, get one holder a slot all the same."""
        contenders = [entry(step_id=f"step {number % 20}", revision=number // 20 % 2) for number in range(200)]
        again = contenders[::7]  # and some records twice
        async with open_store() as store:
            held = await asyncio.gather(*map(store.append, [*contenders, *again]))
            listed = await store.list("run")
        holders = {(record.step_id, record.revision): record for record in listed}
        assert len(listed) == len(holders) == 40
        for asked, given in zip([*contenders, *again], held, strict=True):
            assert given == holders[asked.step_id, asked.revision]
        assert {record.id for record in listed} <= {record.id for record in contenders}

    async def test_distinct_slots_appended_at_once_all_land(self, open_store: OpenStore) -> None:
        """Concurrent appends to different slots and runs are all won, and nothing is lost among them."""
        records = [entry(f"run {number % 7}", f"step {number}") for number in range(300)]
        async with open_store() as store:
            held = await asyncio.gather(*map(store.append, records))
            assert [record.id for record in held] == [record.id for record in records]
            for number in range(7):
                listed = {record.id for record in await store.list(f"run {number}")}
                assert listed == {record.id for record in records[number::7]}

    @pytest.mark.parametrize("ticks", [0, 1, 3])
    async def test_a_cancelled_append_harms_no_other(self, open_store: OpenStore, ticks: int) -> None:
        """Cancelling some of many concurrent appends leaves the others whole; appending the cancelled ones again settles them."""
        records = [entry(step_id=f"step {number}") for number in range(60)]
        async with open_store() as store:
            await store.append(entry(step_id="connected"))
            tasks = [asyncio.create_task(store.append(record)) for record in records]
            for _ in range(ticks):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for number, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
                if number % 3 or not isinstance(outcome, asyncio.CancelledError):
                    assert outcome == record
            again = await asyncio.gather(*map(store.append, records))
            assert [record.id for record in again] == [record.id for record in records]
            listed = [record.id for record in await store.list("run")]
            assert len(listed) == 61
            assert set(listed) > {record.id for record in records}
