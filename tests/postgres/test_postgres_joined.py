"""A run that is asked for within the caller's own transaction is there if that commits, and not else."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from functools import partial

import asyncpg
import pytest
import pytest_asyncio

from durable_core import Runner, StepRecord, StoreError, flow
from durable_core.stores.flows import FLOW
from durable_core.testing import OpenStore
from durable_core.testing._contract.flows import flow_entry
from durable_core.testing._processes import Child, Pipe
from durable_postgres import PostgresStore

pytestmark = pytest.mark.asyncio


@flow
async def ship(runner: Runner, order: int) -> None:
    """Ship an order."""


class Orders:
    """A table of the caller's beside the log; what is there is seen from another connection."""

    def __init__(self, connection: asyncpg.Connection, table: str, store: PostgresStore) -> None:
        self.connection = connection
        self.table = table
        self.store = store

    async def there(self) -> tuple[list[int], list[str], list[str]]:
        """Return the caller's rows, the runs in the log, and those in the index."""
        rows = [number for (number,) in await self.connection.fetch(f"select number from {self.table} order by 1")]
        return rows, [run async for run in self.store.runs()], [record.run_id for record in await self.store.flows()]


@pytest_asyncio.fixture
async def orders(postgres_server_url: str, postgres_url: str) -> AsyncIterator[Orders]:
    connection = await asyncpg.connect(postgres_server_url)
    schema = postgres_url.rpartition("schema=")[2]
    await connection.execute(f"create schema {schema}; create table {schema}.orders (number bigint primary key)")
    async with PostgresStore.from_url(postgres_url) as other:
        yield Orders(connection, f"{schema}.orders", other)
    await connection.close()


@pytest_asyncio.fixture
async def mine(postgres_server_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_server_url)
    yield connection
    connection.terminate()


async def test_both_or_neither(postgres_url: str, orders: Orders, mine: asyncpg.Connection) -> None:
    """Before the commit nobody else sees the row or the run; after it both are there; rolled back, neither is."""
    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(ZeroDivisionError):
            async with mine.transaction():
                await mine.execute(f"insert into {orders.table} values (1)")
                await ship.start(store, "ship-1", order=1, connection=mine)
                raise ZeroDivisionError
        assert await orders.there() == ([], [], [])
        async with mine.transaction():
            await mine.execute(f"insert into {orders.table} values (2)")
            await ship.start(store, "ship-2", order=2, connection=mine)
            assert await orders.there() == ([], [], [])
        assert await orders.there() == ([2], ["ship-2"], ["ship-2"])
        assert not mine.is_closed()


async def test_a_pool_lends_the_connection(postgres_server_url: str, postgres_url: str, orders: Orders) -> None:
    """What a pool lends is a connection too; the pool gets it back as it was."""
    async with PostgresStore.from_url(postgres_url) as store, asyncpg.create_pool(postgres_server_url, min_size=1) as pool:
        for number in range(2):
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(f"insert into {orders.table} values ($1)", number)
                await ship.start(store, f"ship-{number}", order=number, connection=connection)
        returned = connection
        with pytest.raises(StoreError, match="released back to the pool"):
            store.within(returned)
    rows, runs, found = await orders.there()
    assert (rows, sorted(runs), sorted(found)) == ([0, 1], ["ship-0", "ship-1"], ["ship-0", "ship-1"])


async def test_the_transaction_sees_what_it_appended(postgres_url: str, orders: Orders, mine: asyncpg.Connection) -> None:
    """`get` reads within it, and `append` returns the holder of a slot."""
    async with PostgresStore.from_url(postgres_url) as store:
        held = await store.append(flow_entry("held"))
        async with mine.transaction():
            within = store.within(mine)
            assert await within.get("run", FLOW) is None
            first, second = flow_entry(), flow_entry(state="waiting", revision=1)
            assert await within.append(first) is first
            assert await within.append(second) is second
            assert await within.get("run", FLOW) == second
            assert await within.append(flow_entry("held", "failed")) == held
            assert await orders.store.get("run", FLOW) is None
        assert [*await store.flows(states=["waiting"])] == [second]
        assert [*await store.flows()] == [second, held]


async def test_a_rival_that_has_not_committed_is_waited_for(postgres_url: str, orders: Orders, mine: asyncpg.Connection) -> None:
    """Who appends the same slot meanwhile gets the caller's record once that is committed."""
    async with PostgresStore.from_url(postgres_url) as store:
        async with mine.transaction():
            first = await store.within(mine).append(flow_entry())
            rival = asyncio.create_task(orders.store.append(flow_entry(state="failed")))
            async with asyncio.timeout(10):
                blocked = "select count(*) from pg_locks where $1 = any (pg_blocking_pids(pid))"
                while not await orders.connection.fetchval(blocked, mine.get_server_pid()):
                    await asyncio.sleep(0.01)
            assert not rival.done()
        assert await rival == first
        assert [*await store.flows()] == [first]


async def test_what_is_no_asyncpg_connection_is_refused(postgres_url: str, postgres_server_url: str, orders: Orders) -> None:
    """A pool, another driver's connection and a URL are a `TypeError` that names the type, and nothing is written."""
    async with PostgresStore.from_url(postgres_url) as store, asyncpg.create_pool(postgres_server_url, min_size=1) as pool:
        for wrong in (pool, object(), postgres_server_url):
            with pytest.raises(TypeError, match="must be an asyncpg connection"):
                store.within(wrong)
            with pytest.raises(TypeError, match="must be an asyncpg connection"):
                await ship.start(store, "ship-1", order=1, connection=wrong)
    assert await orders.there() == ([], [], [])


async def test_outside_a_transaction(postgres_url: str, orders: Orders, mine: asyncpg.Connection) -> None:
    """Before one began, after it ended and on a closed connection it is a `StoreError`, and nothing is written."""
    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(StoreError, match=r"not in a transaction; begin one"):
            await ship.start(store, "ship-1", order=1, connection=mine)
        async with mine.transaction():
            within = store.within(mine)
        for late in (within.append(flow_entry()), within.get("run", FLOW)):
            with pytest.raises(StoreError, match=r"not in a transaction; begin one"):
                await late
        await mine.close()
        with pytest.raises(StoreError):
            store.within(mine)
    assert await orders.there() == ([], [], [])


async def test_a_refused_record_leaves_the_connection_to_the_caller(
    postgres_url: str, orders: Orders, mine: asyncpg.Connection
) -> None:
    """The caller's transaction is rolled back, as after an error of its own SQL, and its connection goes on."""
    async with PostgresStore.from_url(postgres_url) as store:
        transaction = mine.transaction()
        await transaction.start()
        await mine.execute(f"insert into {orders.table} values (1)")
        with pytest.raises(StoreError):
            await store.within(mine).append(StepRecord(run_id="run", step_id="step", attempt=2**63))
        await transaction.rollback()
        assert await mine.fetchval("select 1") == 1
    assert await orders.there() == ([], [], [])


async def start_and_die(pipe: Pipe, open_store: OpenStore, url: str, table: str, at: str) -> None:
    connection = await asyncpg.connect(url)
    async with open_store() as store:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"insert into {table} values (1)")
        if at == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await ship.start(store, "ship-1", order=1, connection=connection)
        if at == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        await transaction.commit()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("at", "expected"), [("before", ([], [], [])), ("after", ([], [], [])), ("committed", ([1], ["ship-1"], ["ship-1"]))]
)
async def test_a_process_killed_in_between(
    postgres_server_url: str, postgres_url: str, orders: Orders, at: str, expected: tuple[list[int], list[str], list[str]]
) -> None:
    """Whenever it dies, the row, the run and its place in the index are there together or not at all."""
    async with Child(
        start_and_die, partial(PostgresStore.from_url, postgres_url), postgres_server_url, orders.table, at
    ) as child:
        with pytest.raises(AssertionError, match="exit code -9"):
            await child.receive()
    assert await orders.there() == expected
