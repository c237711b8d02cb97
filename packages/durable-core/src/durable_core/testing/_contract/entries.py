"""What is appended comes back as it was, in order."""

from __future__ import annotations

import asyncio

from durable_core.record import StepRecord
from durable_core.store import Store
from durable_core.testing._samples import RESULTS, OpenStore, entry, varied


class EntryTests:
    long_run: int = 2_100
    """Entries of the longest run; let it be more than one page of the backend."""

    async def test_an_empty_store_holds_nothing(self, open_store: OpenStore) -> None:
        """Reading what isn't there gives nothing, and no error."""
        async with open_store() as store:
            assert await store.get("run", "step") is None
            assert len(await store.list("run")) == 0

    async def test_every_field_comes_back_exactly(self, open_store: OpenStore) -> None:
        """`append`, `get` and `list` return every field as it was given, from the same store and from another."""
        records = varied()
        async with open_store() as store, open_store() as other:
            for record in records:
                held = await store.append(record)
                _same(held, record)
            for reader in (store, other):
                for record, listed in zip(records, await reader.list("run"), strict=True):
                    _same(listed, record)
                    got = await reader.get("run", record.step_id)
                    assert got is not None
                    _same(got, record)
                    _same(await reader.append(record), record)

    async def test_results_come_back_byte_for_byte(self, open_store: OpenStore) -> None:
        """A result keeps its spelling: number formats, escapes, NUL, spaces, the order of keys and keys given twice."""
        records = [entry(step_id=f"step {number}", result=result) for number, result in enumerate((None, *RESULTS))]
        async with open_store() as store, open_store() as other:
            await asyncio.gather(*map(store.append, records))
            for record in records:
                got = await other.get("run", record.step_id)
                assert got is not None
                assert got.result == record.result
            listed = {record.step_id: record.result for record in await other.list("run")}
            assert listed == {record.step_id: record.result for record in records}

    async def test_results_of_every_size(self, open_store: OpenStore) -> None:
        """A result may have any size up to 8 MiB, and large ones may be appended at the same time."""
        sizes = (0, 1, 1_000, 65_535, 65_536, 1024**2, 8 * 1024**2 - 2)
        bodies = [b"x" * size for size in sizes] + ["é😀".encode() * 150_000 for _ in range(8)]
        records = [entry(step_id=str(number), result=b'"' + body + b'"') for number, body in enumerate(bodies)]
        async with open_store() as store, open_store() as other:
            held = await asyncio.gather(*map(store.append, records))
            assert [record.id for record in held] == [record.id for record in records]
            listed = {record.step_id: record for record in await other.list("run")}
            for record in records:
                got = await other.get("run", record.step_id)
                # Not compared whole: a report of 8 MiB that differ helps nobody.
                same = got is not None and got.result == record.result == listed[record.step_id].result
                assert same, f"a result of {len(record.result or b'')} bytes came back changed"

    async def test_revisions_chain(self, open_store: OpenStore) -> None:
        """Each revision is a slot of its own; `get` returns the highest by number, `list` all of them."""
        chain = [entry(revision=revision) for revision in range(12)]
        async with open_store() as store, open_store() as other:
            await store.append(entry(step_id="another"))
            for record in chain:
                assert (await store.append(record)).id == record.id
                for reader in (store, other):
                    got = await reader.get("run", "step")
                    assert got is not None
                    assert got.revision == record.revision
            assert await _ids(other, "step") == [record.id for record in chain]

    async def test_the_highest_revision_is_the_newest_entry(self, open_store: OpenStore) -> None:
        """`get` goes by the revision's number, also where a lower one was appended later."""
        revisions = [2, 0, 10, 1, 9]
        async with open_store() as store, open_store() as other:
            for appended, revision in enumerate(revisions, 1):
                await store.append(entry(revision=revision))
                for reader in (store, other):
                    got = await reader.get("run", "step")
                    assert got is not None
                    assert got.revision == max(revisions[:appended])
            assert sorted(record.revision for record in await other.list("run")) == sorted(revisions)

    async def test_list_is_in_order_of_append(self, open_store: OpenStore) -> None:
        """Entries come in the order in which they were appended, whatever their ids, times and revisions, run by run."""
        slots = [("z", 0), ("a", 0), ("z", 1), ("m", 0), ("10", 0), ("9", 0), ("a", 1), ("z", 2), ("B", 0), ("b", 0), ("0", 0)]
        appended: dict[str, list[str]] = {"one": [], "two": []}
        async with open_store() as store, open_store() as other:
            for number, (step_id, revision) in enumerate(slots):
                for run_id in appended:
                    writer = (store, other)[number % 2]
                    record = await writer.append(entry(run_id, step_id, revision))
                    appended[run_id].append(record.id)
            for run_id, ids in appended.items():
                for reader in (store, other):
                    assert [record.id for record in await reader.list(run_id)] == ids

    async def test_what_was_acknowledged_first_is_listed_first(self, open_store: OpenStore) -> None:
        """Concurrent appends may take any order among themselves, but come after all that had returned before."""
        waves = [[entry(step_id=f"{99 - wave} {number}") for number in range(30)] for wave in range(4)]
        async with open_store() as store, open_store() as other:
            for number, wave in enumerate(waves):
                writer = (store, other)[number % 2]
                await asyncio.gather(*map(writer.append, wave))
            listed = [record.id for record in await store.list("run")]
            assert [record.id for record in await other.list("run")] == listed
            for number, wave in enumerate(waves):
                assert set(listed[number * 30 : number * 30 + 30]) == {record.id for record in wave}

    async def test_a_long_run(self, open_store: OpenStore) -> None:
        """A run of any length is listed whole and in order, and is cleared whole."""
        async with open_store() as store, open_store() as other:
            ids: list[str] = []
            for start in range(0, self.long_run, 100):
                steps = range(start, min(start + 100, self.long_run))
                held = await asyncio.gather(*(store.append(entry(step_id=f"step {number}")) for number in steps))
                ids += [record.id for record in held]
            listed = [record.id for record in await other.list("run")]
            assert len(listed) == len(ids)
            for start in range(0, len(ids), 100):
                assert set(listed[start : start + 100]) == set(ids[start : start + 100])
            await other.clear("run")
            assert len(await store.list("run")) == 0

    async def test_reopening_finds_everything(self, open_store: OpenStore) -> None:
        """What was appended is there after the store was closed and opened again, and its slots are still taken."""
        first, second = entry(), entry(revision=1)
        async with open_store() as store:
            await store.append(first)
        async with open_store() as store:
            assert (await store.append(entry())).id == first.id
            assert (await store.append(second)).id == second.id
        async with open_store() as store:
            assert await _ids(store, "step") == [first.id, second.id]
            got = await store.get("run", "step")
            assert got is not None
            assert got.id == second.id


def _same(found: StepRecord, expected: StepRecord) -> None:
    assert found == expected
    # `==` takes 1, 1.0 and True for one another.
    assert found.to_json() == expected.to_json()


async def _ids(store: Store, step_id: str) -> list[str]:
    return [record.id for record in await store.list("run") if record.step_id == step_id]
