"""A store that is closed over calls that are under way."""

from __future__ import annotations

import asyncio
import gc

import pytest

from durable_core import StepRecord, StoreError, open_store

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
