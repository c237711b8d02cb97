"""The abilities to name runs and to read a long log in pieces, where a store has them."""

from __future__ import annotations

import asyncio

from durable_core.store import SupportsRuns, runs_of, scan_of
from durable_core.testing._samples import HOSTILE_IDS, SIMILAR_IDS, OpenStore, entry

from .abilities import AbilityTests


class RunsTests(AbilityTests):
    many_runs: int = 250
    """Runs of the fullest store; let it be more than one page of the backend."""

    async def test_runs_names_each_run_once(self, open_store: OpenStore) -> None:
        """However many entries and runs there are, each run is named once; none where there are none."""
        async with open_store() as store, open_store() as other:
            runs, others = self.ability(runs_of, store), self.ability(runs_of, other)
            assert await _named(runs) == []
            expected = [f"run {number:05}" for number in range(self.many_runs)]
            records = [entry(run_id, step_id) for step_id in ("a", "b") for run_id in expected]
            records += [entry(expected[0], f"step {number}") for number in range(50)]
            await asyncio.gather(*map(store.append, records))
            assert await _named(runs) == expected
            assert await _named(others) == expected

    async def test_runs_takes_a_prefix_as_it_is(self, open_store: OpenStore) -> None:
        """A prefix is compared character by character: it is no pattern, no path, and its case counts."""
        async with open_store() as store:
            runs = self.ability(runs_of, store)
            await asyncio.gather(*(store.append(entry(run_id)) for run_id in HOSTILE_IDS))
            assert await _named(runs) == sorted(HOSTILE_IDS)
            starts = {run_id[:length] for run_id in HOSTILE_IDS for length in (1, 2)}
            for prefix in sorted(starts | {*SIMILAR_IDS, "nobody", "%s"}):
                expected = sorted(run_id for run_id in HOSTILE_IDS if run_id.startswith(prefix))
                assert await _named(runs, prefix) == expected, prefix

    async def test_runs_leaves_out_what_was_cleared(self, open_store: OpenStore) -> None:
        """A cleared run is not named, until it has an entry again."""
        async with open_store() as store, open_store() as other:
            runs, others = self.ability(runs_of, store), self.ability(runs_of, other)
            for run_id in ("one", "two", "three"):
                await store.append(entry(run_id))
            assert await _named(others) == ["one", "three", "two"]
            await store.clear("two")
            assert await _named(runs) == await _named(others) == ["one", "three"]
            await other.append(entry("two"))
            assert await _named(runs) == await _named(others) == ["one", "three", "two"]

    async def test_runs_while_runs_come_and_go(self, open_store: OpenStore) -> None:
        """Runs that are there all the time are named once while others are added and cleared; one may stop reading early."""
        async with open_store() as store:
            runs = self.ability(runs_of, store)
            stay = [f"stay {number}" for number in range(30)]
            await asyncio.gather(*(store.append(entry(run_id)) for run_id in [*stay, "going"]))
            found: list[str] = []
            async for run_id in runs.runs():
                found.append(run_id)
                if len(found) < 5:
                    await store.append(entry(f"added {len(found)}"))
                    await store.clear("going")
            assert sorted(run_id for run_id in found if run_id.startswith("stay")) == sorted(stay)
            async for _ in runs.runs("stay"):
                break
            assert await _named(runs, "going") == []


class ScanTests(AbilityTests):
    long_run: int

    async def test_scan_reads_what_list_returns(self, open_store: OpenStore) -> None:
        """`scan` yields the entries of one run, in the order of `list`; nothing for a run that isn't there."""
        async with open_store() as store, open_store() as other:
            scan = self.ability(scan_of, other).scan
            assert [record async for record in scan("run")] == []
            for start in range(0, self.long_run, 100):
                steps = range(start, min(start + 100, self.long_run))
                await asyncio.gather(*(store.append(entry(step_id=f"step {number}")) for number in steps))
            await store.append(entry("run 2"))
            await store.append(entry(step_id="step 0", revision=1))
            assert [record async for record in scan("run")] == list(await store.list("run"))
            await store.clear("run")
            assert [record async for record in scan("run")] == []


async def _named(store: SupportsRuns, prefix: str = "") -> list[str]:
    return sorted([run_id async for run_id in store.runs(prefix)])
