"""The table of flows stands beside the log in every transaction, and is checked against it."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from durable_core import StepRecord
from durable_core.stores.flows import FLOW
from durable_core.testing._contract.flows import flow_entry
from durable_postgres import PostgresStore

pytestmark = pytest.mark.asyncio


def ids(records: list[StepRecord]) -> list[str]:
    return [record.run_id for record in records]


async def test_entries_removed_by_hand_shorten_no_page(postgres_server_url: str, postgres_url: str) -> None:
    """Runs that are in the index alone are passed over, and the page is filled with those behind them."""
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        await asyncio.gather(*(store.append(flow_entry(f"run {number:02}")) for number in range(20)))
        schema = postgres_url.rpartition("schema=")[2]
        await connection.execute(f"delete from {schema}.steps where run_id >= 'run 05' and run_id < 'run 18'")
        assert ids([*await store.flows(limit=4)]) == ["run 19", "run 18", "run 04", "run 03"]
        assert ids([*await store.flows(names=["pay"], limit=4)]) == ["run 19", "run 18", "run 04", "run 03"]
        assert len(await store.flows()) == 7
    await connection.close()


async def test_what_is_appended_while_a_run_is_cleared_is_found(postgres_server_url: str, postgres_url: str) -> None:
    """A `clear` that waits for an append leaves that entry, and its run in the index."""
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        await store.append(flow_entry(state="failed"))
        async with store.transaction() as transaction:
            newest = await transaction.append(flow_entry(state="waiting", revision=1))
            clearing = asyncio.create_task(other.clear("run"))
            await waiter_on(connection, transaction.connection.get_server_pid())
        await clearing
        assert [*await store.list("run")] == [*await store.flows()] == [newest]
    await connection.close()


async def test_plain_steps_leave_the_table_of_flows_alone(postgres_server_url: str, postgres_url: str) -> None:
    """A batch without a flow is one insert, as before; the index may even be locked meanwhile."""
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        await store.append(flow_entry())
        schema = postgres_url.rpartition("schema=")[2]
        async with connection.transaction():
            await connection.execute(f"lock table {schema}.steps_flows in access exclusive mode")
            async with asyncio.timeout(5):
                await asyncio.gather(*(store.append(StepRecord(run_id="run", step_id=f"{number}")) for number in range(30)))
                assert await store.get("run", FLOW) is not None
    await connection.close()


async def waiter_on(connection: asyncpg.Connection, pid: int) -> None:
    """Return once somebody waits for the backend with this number."""
    async with asyncio.timeout(10):
        while not await connection.fetchval("select count(*) from pg_locks where $1 = any (pg_blocking_pids(pid))", pid):
            await asyncio.sleep(0.01)
