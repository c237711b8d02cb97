"""Any legal id is safe, and no two are taken for one another."""

from __future__ import annotations

import asyncio

from durable_core.record import StepRecord
from durable_core.testing._samples import HOSTILE_IDS, SEPARATORS, OpenStore, entry


class IdTests:
    async def test_hostile_run_ids_stay_apart(self, open_store: OpenStore) -> None:
        """A run is found under its own id alone, whatever that means to paths, keys, patterns, SQL or collations."""
        records = [entry(run_id) for run_id in HOSTILE_IDS]
        async with open_store() as store, open_store() as other:
            held = await asyncio.gather(*map(store.append, records))
            assert [record.id for record in held] == [record.id for record in records]
            for record in records:
                assert await other.get(record.run_id, "step") == record, record.run_id
                assert [found.id for found in await other.list(record.run_id)] == [record.id], record.run_id

    async def test_hostile_step_ids_stay_apart(self, open_store: OpenStore) -> None:
        """A step is found under its own id alone."""
        records = [entry(step_id=step_id) for step_id in HOSTILE_IDS]
        async with open_store() as store, open_store() as other:
            held = await asyncio.gather(*map(store.append, records))
            assert [record.id for record in held] == [record.id for record in records]
            for record in records:
                assert await other.get("run", record.step_id) == record, record.step_id
            listed = {record.step_id: record.id for record in await other.list("run")}
            assert listed == {record.step_id: record.id for record in records}

    async def test_hostile_ids_in_both_places(self, open_store: OpenStore) -> None:
        """Run and step may be hostile at once, at full length too."""
        records = [entry(one, two) for one, two in zip(HOSTILE_IDS, reversed(HOSTILE_IDS), strict=True)]
        async with open_store() as store:
            await asyncio.gather(*map(store.append, records))
            for record in records:
                assert await store.get(record.run_id, record.step_id) == record, (record.run_id, record.step_id)

    async def test_pairs_that_join_alike_stay_apart(self, open_store: OpenStore) -> None:
        """Run, step and revision that give one text when they are joined are different slots."""
        slots = {
            slot
            for by in SEPARATORS
            for slot in ((f"a{by}b", "c", 0), ("a", f"b{by}c", 0), (f"a{by}", "c", 0), ("a", f"{by}c", 0), ("a", f"c{by}1", 0))
        }
        slots |= {("a", "c", 0), ("a", "c", 1), ("a", "c1", 0), ("a", "c1", 1), ("ac", "1", 0), ("a", "c", 2), ("a", "c0", 0)}
        records = [entry(run_id, step_id, revision) for run_id, step_id, revision in sorted(slots)]
        async with open_store() as store:
            held = await asyncio.gather(*map(store.append, records))
            for asked, given in zip(records, held, strict=True):
                assert given.id == asked.id, f"{_slot(asked)} was taken for {_slot(given)}"
            for run_id in {record.run_id for record in records}:
                expected = {record.id for record in records if record.run_id == run_id}
                assert {record.id for record in await store.list(run_id)} == expected, run_id

    async def test_clearing_a_hostile_id_leaves_the_others(self, open_store: OpenStore) -> None:
        """Clearing takes an id as it is: not as a pattern, a path, a prefix, or in another case."""
        async with open_store() as store:
            await asyncio.gather(*(store.append(entry(run_id)) for run_id in HOSTILE_IDS))
            await asyncio.gather(*(store.clear(run_id) for run_id in HOSTILE_IDS[::2]))
            for number, run_id in enumerate(HOSTILE_IDS):
                assert len(await store.list(run_id)) == number % 2, run_id


def _slot(record: StepRecord) -> tuple[str, str, int]:
    return record.run_id, record.step_id, record.revision
