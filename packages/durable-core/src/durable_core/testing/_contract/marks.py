"""The ability to tell which runs changed, where a store has it."""

from __future__ import annotations

import asyncio

from durable_core.store import marks_of
from durable_core.testing._samples import HOSTILE_IDS, OpenStore, entry

from .abilities import AbilityTests


class MarksTests(AbilityTests):
    async def test_each_run_has_a_mark(self, open_store: OpenStore) -> None:
        """Whatever its id is, and whoever wrote it; `prefix` is what ids start with, character by character."""
        async with open_store() as store, open_store() as other:
            marks = self.ability(marks_of, other).marks
            assert not await marks()
            await asyncio.gather(*(store.append(entry(run_id)) for run_id in HOSTILE_IDS))
            assert {*await marks()} == {*HOSTILE_IDS}
            for prefix in ("run", "x" * 511, "%", "café", "$", "nobody"):
                assert {*await marks(prefix)} == {run_id for run_id in HOSTILE_IDS if run_id.startswith(prefix)}, prefix

    async def test_an_append_changes_the_mark(self, open_store: OpenStore) -> None:
        """Each append gives its run a mark that it never had; a step, a revision, and an append from elsewhere alike."""
        async with open_store() as store, open_store() as other:
            marks = self.ability(marks_of, store).marks
            seen = []
            for number in range(20):
                writer = (store, other)[number % 3 == 0]
                await writer.append(entry(step_id=f"step {number // 2}", revision=number % 2))
                seen.append((await marks())["run"])
            assert len({*seen}) == 20

    async def test_a_mark_stays_while_nothing_is_appended(self, open_store: OpenStore) -> None:
        """Reading and an append that loses its slot change no mark, else a worker would read all logs each time."""
        async with open_store() as store, open_store() as other:
            marks = self.ability(marks_of, store).marks
            for run_id in ("one", "two"):
                await store.append(entry(run_id))
            before = await marks()
            await other.append(entry("one"))
            for reader in (store, other):
                await reader.list("one")
                await reader.get("two", "step")
            assert await marks() == before

    async def test_a_cleared_run_has_another_mark_when_it_begins_anew(self, open_store: OpenStore) -> None:
        """Who looked before the run was cleared looks again."""
        async with open_store() as store:
            marks = self.ability(marks_of, store).marks
            await asyncio.gather(*(store.append(entry(run_id)) for run_id in ("one", "two")))
            before = await marks()
            await store.clear("one")
            await store.append(entry("one", result=b'"anew"'))
            after = await marks()
            assert after["one"] != before["one"]
            assert {*after} == {"one", "two"}
