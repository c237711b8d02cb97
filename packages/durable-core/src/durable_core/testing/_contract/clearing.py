"""A run is cleared whole, alone, and so that nobody sees a hole."""

from __future__ import annotations

import asyncio

from durable_core.testing._samples import OpenStore, entry


class ClearTests:
    async def test_clear_takes_the_run_asked_and_no_other(self, open_store: OpenStore) -> None:
        """A cleared run is gone for everybody, with all its steps and revisions; others stay as they were."""
        async with open_store() as store, open_store() as other:
            for run_id in ("one", "two"):
                for step_id, revision in (("a", 0), ("b", 0), ("a", 1)):
                    await store.append(entry(run_id, step_id, revision))
            kept = list(await other.list("two"))
            await store.clear("one")
            for reader in (store, other):
                assert len(await reader.list("one")) == 0
                assert await reader.get("one", "a") is None
                assert await reader.get("one", "b") is None
                assert list(await reader.list("two")) == kept
        async with open_store() as store:
            assert len(await store.list("one")) == 0
            assert list(await store.list("two")) == kept

    async def test_clearing_again_does_nothing(self, open_store: OpenStore) -> None:
        """Clearing a run that isn't there, or isn't there any more, is no error."""
        async with open_store() as store:
            await store.clear("run")
            await store.append(entry())
            await store.clear("run")
            await store.clear("run")
            assert len(await store.list("run")) == 0

    async def test_cleared_slots_are_free(self, open_store: OpenStore) -> None:
        """After `clear` a run begins anew: any store can claim its slots, and the old holders never come back."""
        old = [entry(), entry(revision=1), entry(step_id="other")]
        async with open_store() as store, open_store() as other:
            for record in old:
                await store.append(record)
            assert len(await other.list("run")) == 3
            await store.clear("run")
            new = entry(step_id="other")
            assert (await other.append(new)).id == new.id
            for writer in (store, other):
                assert (await writer.append(entry(step_id="other"))).id == new.id
            first = entry()
            assert (await store.append(first)).id == first.id
            for reader in (store, other):
                assert [record.id for record in await reader.list("run")] == [new.id, first.id]
        async with open_store() as store:
            assert [record.id for record in await store.list("run")] == [new.id, first.id]

    async def test_a_run_that_is_cleared_while_it_is_read(self, open_store: OpenStore) -> None:
        """Whoever reads a run that is being cleared sees its beginning, never a hole, and no error."""
        async with open_store() as store, open_store() as other:
            records = [await store.append(entry(step_id=f"step {number}")) for number in range(60)]
            ids = [record.id for record in records]
            cleared = asyncio.Event()

            async def read(reader_number: int) -> None:
                reader = (store, other)[reader_number % 2]
                while True:
                    last = cleared.is_set()
                    found = [record.id for record in await reader.list("run")]
                    assert found == ids[: len(found)]
                    assert await reader.get("run", "step 0") in (None, records[0])
                    if last:
                        assert not found
                        return
                    await asyncio.sleep(0)  # a store may answer without ever waiting

            async def clear() -> None:
                await store.clear("run")
                cleared.set()

            async with asyncio.TaskGroup() as tasks:
                for number in range(4):
                    tasks.create_task(read(number))
                tasks.create_task(clear())
