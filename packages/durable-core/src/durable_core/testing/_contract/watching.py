"""The ability to tell who waits that somebody acted on a run, where a store has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from durable_core.store import SupportsLock, lock_of, watch_of
from durable_core.testing._samples import HOSTILE_IDS, OpenStore, entry

from .abilities import AbilityTests

_SECONDS: Final = 30


class WatchTests(AbilityTests):
    async def test_a_watch_says_when_it_listens(self, open_store: OpenStore) -> None:
        """It yields once as it begins: what is appended after that is told."""
        async with open_store() as store, self._watching(open_store, "run") as told:
            await store.append(entry())
            await _until_told(told)

    async def test_an_act_on_another_run_is_not_told(self, open_store: OpenStore) -> None:
        """A watch hears of its own run alone, whatever the ids look like."""
        async with open_store() as store, self._watching(open_store, HOSTILE_IDS[0]) as told:
            for run_id in HOSTILE_IDS[1:]:
                await store.append(entry(run_id))
            async with self._watching(open_store, HOSTILE_IDS[1]) as last:
                await store.append(entry(HOSTILE_IDS[1], "once more"))
                await _until_told(last)
            assert not told.is_set()

    async def test_each_act_is_told_or_one_after_it(self, open_store: OpenStore) -> None:
        """After the last of several appends there is something to be told: nobody is left waiting."""
        async with open_store() as store, self._watching(open_store, "run") as told:
            for number in range(20):
                told.clear()
                await store.append(entry(step_id=f"step {number}"))
                await _until_told(told)

    async def test_the_holders_own_steps_notify_nobody(self, open_store: OpenStore) -> None:
        """Who holds the run's lock appends without a word; that it ended is told all the same."""
        async with open_store() as store, self._watching(open_store, "run") as told:
            locks: SupportsLock = self.ability(lock_of, store)
            async with locks.lock("run"):
                for number in range(10):
                    await store.append(entry(step_id=f"step {number}"))
                await store.append(entry(step_id="$flow", status="started", kind="flow"))
                async with self._watching(open_store, "another") as last:
                    await store.append(entry("another"))
                    await _until_told(last)
                assert not told.is_set()
                await store.append(entry(step_id="$flow", revision=1, status="success", kind="flow"))
                await _until_told(told)
            told.clear()
            await store.append(entry(step_id="after the lock"))
            await _until_told(told)

    async def test_a_run_that_others_watch_can_be_watched(self, open_store: OpenStore) -> None:
        """Any number of watches of one run, in one store and in several, hear of each act; one that ended leaves the others."""
        async with open_store() as store, open_store() as other:
            watch = self.ability(watch_of, other).watch
            async with _watching(watch("run")) as one, self._watching(open_store, "run") as two:
                async with _watching(watch("run")) as three:
                    await store.append(entry())
                    for told in (one, two, three):
                        await _until_told(told)
                        told.clear()
                await store.append(entry(revision=1))
                for told in (one, two):
                    await _until_told(told)

    @asynccontextmanager
    async def _watching(self, open_store: OpenStore, run_id: str) -> AsyncIterator[asyncio.Event]:
        """Watch a run in a store of its own."""
        async with open_store() as store, _watching(self.ability(watch_of, store).watch(run_id)) as told:
            yield told


@asynccontextmanager
async def _watching(watch: AsyncIterator[None]) -> AsyncIterator[asyncio.Event]:
    """Watch a run; yield, once it listens, an event that is set whenever something is told."""
    told = asyncio.Event()

    async def listen() -> None:
        async for _ in watch:
            told.set()

    task = asyncio.create_task(listen())
    try:
        await _until_told(told)
        told.clear()
        yield told
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _until_told(told: asyncio.Event) -> None:
    async with asyncio.timeout(_SECONDS):
        await told.wait()
