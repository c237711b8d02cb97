"""A store's connections belong to one event loop."""

import asyncio
import threading
import time
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import StepRecord, StoreError
from durable_postgres import PostgresStore


def entry(step_id: str) -> StepRecord:
    return StepRecord(run_id="run", step_id=step_id)


def test_a_store_serves_one_loop_after_another(postgres_url: str) -> None:
    """Made once and used in several calls of `asyncio.run`, a store connects anew, for everything that it does."""
    store = PostgresStore.from_url(postgres_url)

    async def use(step_id: str) -> int:
        async with store.lock("run") as lease:
            lease.check()
            await store.append(entry(step_id))
        async with store.transaction() as transaction:
            await transaction.append(entry(f"{step_id}-transaction"))
        assert await store.get("run", step_id) is not None
        assert [run_id async for run_id in store.runs()] == ["run"]
        assert len([record async for record in store.scan("run")]) == len(await store.list("run"))
        return len(await store.list("run"))

    assert [asyncio.run(use(f"{number}")) for number in range(3)] == [2, 4, 6]
    asyncio.run(store.__aexit__(None, None, None))


def test_the_end_of_a_loop_closes_connections(postgres_server_url: str, postgres_url: str) -> None:
    """A store that nobody left holds no session of the server once its loop has ended."""
    store = PostgresStore.from_url(f"{postgres_url}&application_name=ended")

    async def use() -> None:
        await store.list("run")
        await store.append(entry("step"))
        await store.lock("run").__aenter__()

    async def sessions() -> None:
        connection = await asyncpg.connect(postgres_server_url)
        query = "select count(*) from pg_stat_activity where application_name like '%ended%'"
        async with asyncio.timeout(10):
            while await connection.fetchval(query):
                await asyncio.sleep(0.01)
        await connection.close()

    asyncio.run(use())
    asyncio.run(sessions())


def test_a_store_that_was_left_stays_closed_on_other_loops(postgres_url: str) -> None:
    """Leaving a store closes it for the next loop too, until it is entered again."""
    store = PostgresStore.from_url(postgres_url)

    async def use() -> None:
        async with store:
            await store.list("run")

    asyncio.run(use())

    async def again() -> None:
        await store.list("run")

    with pytest.raises(StoreError, match="the store is closed"):
        asyncio.run(again())
    asyncio.run(use())


METHODS = {
    "append": lambda store: store.append(entry("other")),
    "get": lambda store: store.get("run", "step"),
    "list": lambda store: store.list("run"),
    "clear": lambda store: store.clear("run"),
    "runs": lambda store: anext(store.runs()),
    "scan": lambda store: anext(store.scan("run")),
    "lock": lambda store: store.lock("run").__aenter__(),
    "transaction": lambda store: store.transaction().__aenter__(),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_second_loop_is_refused_at_once(postgres_url: str, method: str) -> None:
    """While the first loop runs, other threads get an error that says so, whatever they ask for, and the first goes on."""
    refusals: list[StoreError] = []

    async def intrude() -> None:
        with pytest.raises(StoreError, match="belongs to another event loop, which is running") as refused:
            async with asyncio.timeout(5):
                await METHODS[method](store)
        refusals.append(refused.value)

    async def main() -> None:
        async with store:
            await store.append(entry("step"))
            threads = [threading.Thread(target=asyncio.run, args=(intrude(),)) for _ in range(4)]
            began = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join, 20)
            assert time.monotonic() - began < 5
            assert len(await store.list("run")) == 1

    store = PostgresStore.from_url(postgres_url)
    asyncio.run(main())
    assert len(refusals) == 4


def test_a_given_pool_serves_its_own_loop_only(postgres_server_url: str, postgres_url: str) -> None:
    """A store around a pool can't connect anew: on another loop it says so."""
    schema = urlsplit(postgres_url).query.removeprefix("schema=")

    async def make(used: bool) -> PostgresStore:
        pool = await asyncpg.create_pool(postgres_server_url, min_size=0, max_size=5)
        store = PostgresStore(pool, schema=schema)
        if used:
            await store.list("run")
            await store.__aexit__(None, None, None)
            await store.__aenter__()
        await pool.close()
        return store

    async def use(store: PostgresStore) -> None:
        await store.list("run")

    for used in (True, False):
        store = asyncio.run(make(used))
        with pytest.raises(StoreError, match="belongs to another event loop, .*: give it a (client|pool) made on this loop"):
            asyncio.run(use(store))
