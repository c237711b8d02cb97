"""A store that is closed over calls that are under way."""

from __future__ import annotations

import asyncio
import gc

import pytest

from durable_core import StepRecord, StoreError, open_store
from durable_core.store import lock_of

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("turns", [1, 3, 10, 30, 100])
async def test_closing_over_calls_leaves_no_connection(url: str, turns: int) -> None:
    """Each call returns what it has to or raises an error of the store, and what it connected doesn't stay open."""
    async with open_store(url) as store:
        await store.append(record := StepRecord(run_id="run", step_id="before"))
        calls = [asyncio.ensure_future(store.list("run")) for _ in range(10)]
        more = [asyncio.ensure_future(store.append(StepRecord(run_id="more", step_id=f"{number}"))) for number in range(10)]
        for _ in range(turns):
            await asyncio.sleep(0)
    outcomes = await asyncio.gather(*calls, *more, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, (StoreError, StepRecord)) or [*outcome] == [record]
    del store
    gc.collect()  # a connection that is open would tell it


async def test_a_closed_store_says_so(url: str) -> None:
    """Whoever goes on asking, such as `follow`, gets an error and connects to nothing, until the store is entered again."""
    if url.startswith("file:"):
        pytest.skip("a file store has no connections, and opens its files for each call")
    async with open_store(url) as store:
        await store.append(record := StepRecord(run_id="run", step_id="before"))
    locks = lock_of(store)
    assert locks
    asks = (
        lambda: store.list("run"),
        lambda: store.get("run", "before"),
        lambda: store.append(record),
        lambda: locks.lock("run").__aenter__(),
    )
    for ask in asks:
        with pytest.raises(StoreError, match="closed[:;] use it inside `async with`"):
            await ask()
    async with store:
        assert [*await store.list("run")] == [record]
