"""A store that is closed over calls that are under way."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from durable_core import LockLost, StepRecord, StoreError, open_store
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


async def locking(store: Any) -> None:
    async with store.lock("locked") as lease:
        await store.list("run")
        lease.check()


async def collecting(items: AsyncIterator[object]) -> None:
    async for _ in items:
        pass


def connections() -> set[tuple[object, ...]]:
    """The connections of this process that are open, and the threads of stores that make some."""
    open_now = {("connection", *each.laddr) for each in psutil.Process().net_connections("tcp") if each.status == "ESTABLISHED"}
    threads = {("thread", each.ident) for each in threading.enumerate() if each.name.startswith(("durable-redis", "durable-s3"))}
    return open_now | threads


@pytest.mark.parametrize("turns", [2, 8, 30])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
async def test_closing_over_calls_of_several_requests(url: str, turns: int, *, is_first: bool) -> None:
    """None of them connects anew after the close, or leaves a thread; the store can be entered again."""
    before = connections()
    store: Any = open_store(url)
    async with store:
        if not is_first:
            await store.append(StepRecord(run_id="run", step_id="before"))
        calls = [asyncio.ensure_future(call) for call in (locking(store), store.clear("cleared"), collecting(store.runs()))]
        if hasattr(store, "flows"):
            flow = StepRecord(run_id="flow", step_id="$flow", status="started", kind="flow")
            calls += [asyncio.ensure_future(call) for call in (store.append(flow), store.flows())]
        for _ in range(turns):
            await asyncio.sleep(0)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert outcome is None or isinstance(outcome, (StoreError, LockLost, StepRecord, list)), outcome
    async with asyncio.timeout(10):
        while connections() - before:  # closing takes some turns of the loop
            await asyncio.sleep(0.01)
    async with store:
        await asyncio.wait_for(locking(store), 20)


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
