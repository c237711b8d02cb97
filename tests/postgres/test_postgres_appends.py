"""Many appends at once: what one statement does to all of them, and what it must not."""

import asyncio
import json
from contextlib import suppress

import asyncpg
import pytest
from msgspec.structs import replace

from durable_core import StepError, StepRecord, StoreError
from durable_postgres import PostgresStore

pytestmark = pytest.mark.asyncio


async def test_a_refused_record_harms_no_other(postgres_server_url: str, postgres_url: str) -> None:
    """Of records appended together, the one that the server refuses raises, with the reason; the others are stored."""
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        await store.list("run")
        table = f"{postgres_url.rpartition('schema=')[2]}.steps"
        await connection.execute(f"alter table {table} add constraint not_three check (step_id <> 'step-3')")
        records = [StepRecord(run_id="run", step_id=f"step-{number}") for number in range(8)]
        results = await asyncio.gather(*map(store.append, records), return_exceptions=True)
        refusal = results.pop(3)
        assert isinstance(refusal, StoreError)
        assert "not_three" in str(refusal)
        assert all(isinstance(result, StepRecord) for result in results)
        assert {record.step_id for record in await store.list("run")} == {f"step-{number}" for number in range(8) if number != 3}
    await connection.close()


async def test_large_batches_against_each_other(postgres_server_url: str, postgres_url: str) -> None:
    """Writers that claim the same thousands of slots in different orders neither deadlock nor disagree."""
    records = [[StepRecord(run_id=f"run-{number % 7}", step_id=f"step-{number}") for number in range(600)] for _ in range(4)]
    for position, own in enumerate(records):
        own.sort(key=lambda record: (hash((record.step_id, position)), record.step_id))
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    observer = await asyncpg.connect(postgres_server_url)
    before = await observer.fetchval(deadlocks)
    stores = [PostgresStore.from_url(postgres_url) for _ in records]
    claimed = await asyncio.gather(*(asyncio.gather(*map(store.append, own)) for store, own in zip(stores, records, strict=True)))
    holders: dict[tuple[str, str], set[str]] = {}
    for holder in (holder for found in claimed for holder in found):
        holders.setdefault((holder.run_id, holder.step_id), set()).add(holder.id)
    assert len(holders) == 600
    assert all(len(ids) == 1 for ids in holders.values())
    for store in stores:
        await store.__aexit__(None, None, None)
    assert await observer.fetchval(deadlocks) == before
    await observer.close()


async def test_a_rival_that_has_not_committed_is_waited_for(postgres_url: str) -> None:
    """An append to a slot that an open transaction has claimed returns that record once it commits."""
    record, rival = (StepRecord(run_id="run", step_id="step") for _ in range(2))
    async with PostgresStore.from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        async with other.transaction() as transaction:
            await transaction.append(rival)
            appending = asyncio.create_task(store.append(record))
            await _waiter_on(transaction.connection.get_server_pid(), postgres_url)
            assert not appending.done()
        assert (await appending).id == rival.id


async def test_a_rival_that_rolls_back_leaves_the_slot(postgres_url: str) -> None:
    """An append that waited for a transaction which came to nothing claims the slot itself, and its batch too."""
    records = [StepRecord(run_id="run", step_id=f"step-{number}") for number in range(3)]
    async with PostgresStore.from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        with suppress(ZeroDivisionError):
            async with other.transaction() as transaction:
                await transaction.append(StepRecord(run_id="run", step_id="step-1"))
                appending = [asyncio.create_task(store.append(record)) for record in records]
                await _waiter_on(transaction.connection.get_server_pid(), postgres_url)
                raise ZeroDivisionError
        assert [(await task).id for task in appending] == [record.id for record in records]


async def test_a_pool_with_codecs_of_its_own(postgres_server_url: str, postgres_url: str) -> None:
    """A pool that was set up to convert JSON changes nothing of what is recorded."""

    async def convert_json(connection: "asyncpg.Connection") -> None:
        await connection.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)

    schema = postgres_url.rpartition("schema=")[2]
    record = StepRecord(
        run_id="run", step_id="step", result=b'"\\u0000"', note={"by": "ann"}, error=StepError(type="ValueError", message="no")
    )
    async with asyncpg.create_pool(postgres_server_url, min_size=1, max_size=5, init=convert_json) as pool:
        async with PostgresStore(pool, schema=schema) as store:
            await store.append(record)
            batched = [replace(record, step_id=f"{number}") for number in range(4)]
            await asyncio.gather(*map(store.append, batched))
            assert sorted(await store.list("run"), key=lambda found: found.step_id) == [*batched, record]
        assert await pool.fetchval("select 1") == 1, "a pool that was given is left open"


async def test_a_null_result_is_not_no_result(postgres_url: str) -> None:
    """A recorded None and no recorded value stay apart, alone and in a batch."""
    values = [StepRecord(run_id="run", step_id=f"{number}", result=(None, b"null")[number % 2]) for number in range(6)]
    async with PostgresStore.from_url(postgres_url) as store:
        await store.append(values[0])
        await store.append(values[1])
        await asyncio.gather(*map(store.append, values[2:]))
        assert {record.step_id: record.result for record in await store.list("run")} == {
            record.step_id: record.result for record in values
        }


async def test_many_reads_at_once(postgres_url: str) -> None:
    """Steps and runs that are read together come back to those who asked for them, also what isn't there."""
    async with PostgresStore.from_url(postgres_url) as store:
        newest = {}
        for number in range(40):
            for revision in range(number % 3 + 1):
                newest[number] = await store.append(
                    StepRecord(run_id=f"run-{number % 4}", step_id=f"{number}", revision=revision)
                )
        asked = [*range(50), 7]
        found, runs = await asyncio.gather(
            asyncio.gather(*(store.get(f"run-{number % 4}", f"{number}") for number in asked)),
            asyncio.gather(*(store.list(f"run-{number}") for number in range(5))),
        )
        assert found == [newest.get(number) for number in asked]
        assert [len(run) for run in runs] == [sum(n % 3 + 1 for n in range(40) if n % 4 == number) for number in range(4)] + [0]


async def _waiter_on(pid: int, url: str) -> None:
    """Return once another session waits for the one of the server's process `pid`."""
    connection = await asyncpg.connect(url.partition("?")[0])
    while not await connection.fetchval(
        "select exists (select from pg_stat_activity where $1 = any(pg_blocking_pids(pid)))", pid
    ):
        await asyncio.sleep(0.01)
    await connection.close()
