"""The ability to look at many steps in one call, where a store has it."""

from __future__ import annotations

import asyncio

from durable_core.store import polling_of
from durable_core.testing._samples import HOSTILE_IDS, OpenStore, entry

from .abilities import AbilityTests


class PollingTests(AbilityTests):
    async def test_how_often_to_look_is_told(self, open_store: OpenStore) -> None:
        """`poll_seconds` is a positive number."""
        async with open_store() as store:
            assert 0 < self.ability(polling_of, store).poll_seconds < float("inf")

    async def test_nothing_newer_is_nothing(self, open_store: OpenStore) -> None:
        """Where a step's newest revision is the one given, or a lower one, nothing is returned."""
        async with open_store() as store, open_store() as other:
            look = self.ability(polling_of, other).newer
            for revision in range(2):
                await store.append(entry(revision=revision))
            assert [*await look([])] == []
            assert [*await look([("run", "step", 1), ("run", "step", 7), ("run", "another", 0), ("nowhere", "step", 3)])] == []

    async def test_the_newest_entry_is_found(self, open_store: OpenStore) -> None:
        """An append is seen by the next look from anywhere, whole, and of several entries the newest one is returned."""
        async with open_store() as store, open_store() as other:
            looks = [self.ability(polling_of, reader).newer for reader in (store, other)]
            chain = [entry(revision=revision, result=b'{"a": 1e400}', note={"by": "alice"}) for revision in range(3)]
            for revision, record in enumerate(chain):
                await store.append(record)
                for look in looks:
                    for known in range(-1, revision):
                        assert [*await look([("run", "step", known)])] == [record]

    async def test_a_step_without_entries_is_known_by_minus_one(self, open_store: OpenStore) -> None:
        """-1 stands for a step that nobody had written: nothing until there is an entry, and then that one."""
        async with open_store() as store:
            look = self.ability(polling_of, store).newer
            assert [*await look([("run", "step", -1)])] == []
            record = await store.append(entry())
            assert [*await look([("run", "step", -1)])] == [record]

    async def test_many_steps_are_looked_at_in_one_call(self, open_store: OpenStore) -> None:
        """Of many steps of many runs those with something newer are found, each with its newest entry, in any order."""
        async with open_store() as store, open_store() as other:
            look = self.ability(polling_of, other).newer
            slots = [(f"run {number % 40}", f"step {number}") for number in range(300)]
            first = await asyncio.gather(*(store.append(entry(*slot)) for slot in slots))
            second = await asyncio.gather(*(store.append(entry(*slot, revision=1)) for slot in slots[::3]))
            found = await look([(*slot, 0) for slot in slots])
            assert sorted(record.id for record in found) == sorted(record.id for record in second)
            found = await look([(*slot, -1) for slot in slots])
            newest = {(record.run_id, record.step_id): record.id for record in [*first, *second]}
            assert {(record.run_id, record.step_id): record.id for record in found} == newest

    async def test_a_look_finds_no_other_runs_entries(self, open_store: OpenStore) -> None:
        """A step is looked for in its own run, under its own id alone, whatever the ids mean to a backend."""
        async with open_store() as store:
            look = self.ability(polling_of, store).newer
            records = [entry(one, two) for one, two in zip(HOSTILE_IDS, reversed(HOSTILE_IDS), strict=True)]
            await asyncio.gather(*map(store.append, records[::2]))
            found = await look([(record.run_id, record.step_id, -1) for record in records])
            assert {record.id for record in found} == {record.id for record in records[::2]}
            await store.append(entry("run 1", "step", revision=0))
            await store.append(entry("run 2", "step", revision=1))
            assert [*await look([("run 1", "step", 0)])] == []

    async def test_one_step_may_be_asked_for_twice(self, open_store: OpenStore) -> None:
        """Two who wait for one step, knowing different entries, both learn of the newest one."""
        async with open_store() as store:
            look = self.ability(polling_of, store).newer
            await store.append(entry())
            newest = await store.append(entry(revision=1))
            found = await look([("run", "step", 0), ("run", "step", -1), ("run", "step", 1)])
            assert {record.id for record in found} == {newest.id}

    async def test_a_cleared_step_has_nothing_newer(self, open_store: OpenStore) -> None:
        """After its run was cleared a step is as one that nobody had written, until somebody does."""
        async with open_store() as store, open_store() as other:
            look = self.ability(polling_of, other).newer
            for revision in range(2):
                await store.append(entry(revision=revision))
            assert len(await look([("run", "step", 0)])) == 1
            await store.clear("run")
            assert [*await look([("run", "step", 0), ("run", "step", -1)])] == []
            record = await store.append(entry())
            assert [*await look([("run", "step", -1)])] == [record]
