"""Acts of another process, as a run that waits hears of them on each store that has `watch`."""

from __future__ import annotations

import asyncio

import pytest

from durable_core import Runner, open_store
from durable_core._log.watches import watching
from durable_core.store import polling_of, watch_of
from tests.every_store.programs import decide
from tests.every_store.test_processes import Process


async def test_an_approval_of_another_process_lets_a_waiting_run_go_on(url: str) -> None:
    """Long before the next round of looks, which comes after thirty seconds."""
    async with open_store(url) as store, Runner(store, "refund-7") as runner:
        polling = polling_of(store)
        if watch_of(store) is None or polling is None:
            pytest.skip("this store has no watch")
        polling.poll_seconds = 30
        waiting = asyncio.create_task(runner.approval("approve-refund", {"amount": 90}))
        heard = asyncio.Event()
        with watching(store, "refund-7", heard.set) as watch:
            async with asyncio.timeout(10):
                while not watch.listens or await store.get("refund-7", "approve-refund") is None:
                    await asyncio.sleep(0.01)
            person = Process(decide, url, "yes", "alice")
            assert await asyncio.to_thread(person.receive) == "ready"
            assert not waiting.done()
            heard.clear()
            person.send("go")
            async with asyncio.timeout(10):
                assert (await waiting).by == "alice"
        assert heard.is_set()
        assert await asyncio.to_thread(person.ends) == (0, "decided")
