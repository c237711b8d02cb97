"""The table: made by whoever comes first, read by people, refused where it is not ours."""

import asyncio
import sys
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import StepError, StepRecord, StoreError
from durable_core.testing._contract.flows import flow_entry
from durable_postgres import PostgresStore, schema_sql

pytestmark = pytest.mark.asyncio

ONE_APPEND = """
import asyncio, sys
from durable_core import StepRecord
from durable_postgres import PostgresStore

async def main():
    async with PostgresStore.from_url(sys.argv[1]) as store:
        await store.append(StepRecord(run_id="run", step_id=sys.argv[2]))

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


def schema_of(url: str) -> str:
    return url.rpartition("schema=")[2]


def as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


async def test_eight_processes_start_at_once(postgres_url: str) -> None:
    """Processes that all find no table all succeed: one makes it."""
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    command = [sys.executable, "-c", ONE_APPEND, postgres_url]
    processes = [await asyncio.create_subprocess_exec(*command, f"{number}", **pipes) for number in range(8)]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert {process.returncode for process in processes} == {0}
    async with PostgresStore.from_url(postgres_url) as store:
        assert len(await store.list("run")) == 8


async def test_many_tables_in_a_new_schema(postgres_url: str) -> None:
    """Stores that find no schema all succeed at once, each with a table of its own."""
    stores = [PostgresStore.from_url(f"{postgres_url}&table=t{number}") for number in range(12)]
    try:
        assert await asyncio.gather(*(store.list("run") for store in stores)) == [[]] * 12
    finally:
        for store in stores:
            await store.__aexit__(None, None, None)


async def test_people_query_the_table(postgres_server_url: str, postgres_url: str) -> None:
    """Columns have types that SQL understands: text, JSON, timestamps."""
    failed = StepRecord(run_id="run", step_id="charge", status="failure", error=StepError(type="CardError", message="declined"))
    async with PostgresStore.from_url(postgres_url) as store:
        await store.append(StepRecord(run_id="run", step_id="greet", result=b'{"to": "ann"}'))
        await store.append(failed)
    connection = await asyncpg.connect(postgres_server_url)
    rows = await connection.fetch(
        f"select run_id, step_id, error->>'message' from {schema_of(postgres_url)}.steps"
        " where status = 'failure' and ended_at > now() - interval '1 hour'"
    )
    assert [tuple(row) for row in rows] == [("run", "charge", "declined")]
    assert (
        await connection.fetchval(f"select result->>'to' from {schema_of(postgres_url)}.steps where step_id = 'greet'") == "ann"
    )
    await connection.close()


async def test_a_role_without_ddl_rights(postgres_server_url: str, postgres_url: str) -> None:
    """Where the table was made by `schema_sql`, a role that may only select, insert and delete does everything."""
    schema, role = schema_of(postgres_url), f"r_{schema_of(postgres_url)}"
    connection = await asyncpg.connect(postgres_server_url)
    await connection.execute(schema_sql(schema))
    await connection.execute(f"create role {role} login; grant usage on schema {schema} to {role}")
    await connection.execute(f"grant select, insert, delete on {schema}.steps to {role}")
    await connection.execute(f"grant select, insert, update, delete on {schema}.steps_locks, {schema}.steps_flows to {role}")
    async with PostgresStore.from_url(as_role(postgres_url, role)) as store:
        await asyncio.gather(*(store.append(StepRecord(run_id="run", step_id=f"{number}")) for number in range(5)))
        async with store.lock("run"), store.transaction() as transaction:
            await transaction.append(StepRecord(run_id="run", step_id="5"))
        assert len(await store.list("run")) == 6
        await store.clear("run")
        assert [run_id async for run_id in store.runs()] == []
    await connection.execute(f"drop owned by {role}; drop role {role}")
    await connection.close()


async def test_a_table_of_the_first_layout_is_migrated(postgres_server_url: str, postgres_url: str) -> None:
    """A log written before runs' holders were noted is read and goes on, by any number of processes at once."""
    schema = schema_of(postgres_url)
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        record = await store.append(StepRecord(run_id="run", step_id="step"))
    await connection.execute(
        f"drop table {schema}.steps_locks, {schema}.steps_flows, {schema}.steps_wakes;"
        f" comment on table {schema}.steps is 'durable-postgres layout 1'"
    )
    stores = [PostgresStore.from_url(postgres_url) for _ in range(5)]
    assert await asyncio.gather(*(store.list("run") for store in stores)) == [[record]] * 5
    async with stores[0].lock("run"):
        assert set(await stores[1].holders(["run"])) == {"run"}
    for store in stores:
        await store.__aexit__(None, None, None)
    await connection.close()


async def test_a_table_without_the_one_of_flows_is_migrated(postgres_server_url: str, postgres_url: str) -> None:
    """What an older version recorded is found once a newer one opens the store, whatever the log holds."""
    schema = schema_of(postgres_url)
    connection = await asyncpg.connect(postgres_server_url)
    entries = [
        flow_entry(f"run {number}", state, revision, note={"input": {"text": "\0"}})
        for number in range(1_100)
        for revision, state in enumerate(("started", "waiting"))
    ]
    async with PostgresStore.from_url(postgres_url) as store:
        await asyncio.gather(*map(store.append, entries))
        await store.append(flow_entry("ended", "cancelled"))
        await store.append(flow_entry("damaged"))
        await store.append(StepRecord(run_id="without a flow", step_id="step"))
    await connection.execute(f"update {schema}.steps set error = '7' where run_id = 'damaged'")
    await connection.execute(
        f"drop table {schema}.steps_flows, {schema}.steps_wakes; comment on table {schema}.steps is 'durable-postgres layout 2'"
    )
    stores = [PostgresStore.from_url(postgres_url) for _ in range(3)]
    found, *others = await asyncio.gather(*(store.flows(limit=2_000) for store in stores))
    assert all(other == found for other in others)
    assert {record.run_id for record in found} == {*(f"run {number}" for number in range(1_100)), "ended"}
    assert {record.revision for record in found if record.run_id != "ended"} == {1}
    assert [record.run_id for record in await stores[0].flows(states=["cancelled"])] == ["ended"]
    for store in stores:
        await store.__aexit__(None, None, None)
    await connection.close()


async def test_missing_rights_are_named(postgres_server_url: str, postgres_url: str) -> None:
    """A role that may not make the table, or not write to it, is told what to grant."""
    schema, role = schema_of(postgres_url), f"r_{schema_of(postgres_url)}"
    connection = await asyncpg.connect(postgres_server_url)
    await connection.execute(f"create role {role} login")
    async with PostgresStore.from_url(as_role(postgres_url, role)) as store:
        with pytest.raises(StoreError, match=r"permission denied for database .* durable_postgres.schema_sql"):
            await store.append(StepRecord(run_id="run", step_id="step"))
    await connection.execute(f"{schema_sql(schema)} grant usage on schema {schema} to {role}")
    await connection.execute(f"grant select on {schema}.steps to {role}")
    async with PostgresStore.from_url(as_role(postgres_url, role)) as store:
        assert await store.get("run", "step") is None
        with pytest.raises(StoreError, match=r"permission denied for table .* SELECT, INSERT and DELETE"):
            await store.append(StepRecord(run_id="run", step_id="step"))
    await connection.execute(f"drop owned by {role}; drop role {role}")
    await connection.close()


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("null", "not a table of this store: its comment is None"),
        ("'our very own steps'", "not a table of this store: its comment is 'our very own steps'"),
        ("'durable-postgres layout 5'", "has layout 5, and this durable-postgres knows up to 4: upgrade durable-postgres"),
    ],
)
async def test_a_table_that_is_not_ours(postgres_server_url: str, postgres_url: str, comment: str, expected: str) -> None:
    """A table of somebody else's, or of a newer version, is left as it is and named in the error."""
    table = f"{schema_of(postgres_url)}.steps"
    connection = await asyncpg.connect(postgres_server_url)
    await connection.execute(f"create schema {schema_of(postgres_url)}; create table {table} (run_id text)")
    await connection.execute(f"comment on table {table} is {comment}")
    async with PostgresStore.from_url(postgres_url) as store:
        for work in (store.append(StepRecord(run_id="run", step_id="step")), store.list("run"), store.clear("run")):
            with pytest.raises(StoreError, match=expected):
                await work
    assert await connection.fetchval(f"select count(*) from {table}") == 0
    await connection.close()


async def test_a_database_of_another_encoding(postgres_server_url: str) -> None:
    """A database that can't hold every id is refused before anything is written."""
    connection = await asyncpg.connect(postgres_server_url)
    await connection.execute("create database latin encoding 'LATIN1' template template0 locale 'C'")
    url = urlsplit(postgres_server_url)._replace(path="/latin").geturl()
    async with PostgresStore.from_url(url) as store:
        with pytest.raises(StoreError, match="encoding is LATIN1; the store needs a database created with encoding 'UTF8'"):
            await store.list("run")
    await connection.execute("drop database latin with (force)")
    await connection.close()


async def test_a_server_that_loses_data_is_warned_of(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where commits return before they are on disk, the log says so, once."""
    async with PostgresStore.from_url(f"{postgres_url}&synchronous_commit=off") as store:
        await store.append(StepRecord(run_id="run", step_id="1"))
        await store.append(StepRecord(run_id="run", step_id="2"))
    assert caplog.text.count("can lose steps that have been recorded") == 1


async def test_two_tables_are_two_stores(postgres_url: str) -> None:
    """Tables in one schema hold runs, and locks, of their own."""
    async with PostgresStore.from_url(postgres_url) as one, PostgresStore.from_url(f"{postgres_url}&table=Others") as two:
        await one.append(StepRecord(run_id="run", step_id="step"))
        assert await two.get("run", "step") is None
        async with one.lock("run"), two.lock("run"):
            pass


DAMAGE = {
    "status": "status = 'unheard-of'",
    "kind": "kind = 'unheard-of'",
    "control character": "run_id = run_id, name = name, step_id = e'st\\x1bep'",
    "negative revision": "revision = -1",
    "attempt": "attempt = 0",
    "error of another shape": "error = '[1]'",
    "error without its type": """error = '{"message": 7}'""",
    "deep note": "note = (repeat('[', 2000) || repeat(']', 2000))::json",
    "deep error": """error = ('{"type": "E", "data": ' || repeat('[', 2000) || repeat(']', 2000) || '}')::json""",
    "deep result": "result = (repeat('[', 2000) || repeat(']', 2000))::json",
    "infinity": "started_at = 'infinity'",
    "minus infinity": "ended_at = '-infinity'",
    "until infinity": "until = 'infinity'",
    "before Christ": "ended_at = '4713-01-01 BC'",
    "after the year 9999": "ended_at = '10000-01-01'",
    "until after the year 9999": "until = '294276-01-01'",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_row_that_is_damaged(damage: str, postgres_url: str) -> None:
    """Whatever stands in a row, whoever reads it gets a record, or an error that names table, run, step and revision.

    Others that ask at the same time get their answers.
    """
    schema = schema_of(postgres_url)
    runs = [f"run-{number}" for number in range(5)]
    connection = await asyncpg.connect(urlsplit(postgres_url)._replace(query="").geturl())
    async with PostgresStore.from_url(postgres_url) as store:
        for run in runs:
            await store.append(StepRecord(run_id=run, step_id="step"))
        await connection.execute(f"update {schema}.steps set {DAMAGE[damage]} where run_id = 'run-3'")
        step, revision = await connection.fetchrow(f"select step_id, revision from {schema}.steps where run_id = 'run-3'")

        async def scanned(run: str) -> list[StepRecord]:
            return [record async for record in store.scan(run)]

        for read in (
            store.list,
            scanned,
            lambda run: store.get(run, step if run == "run-3" else "step"),
            lambda run: store.append(StepRecord(run_id=run, step_id="step")),
            lambda run: store.newer([(run, step if run == "run-3" else "step", -2)]),
        ):
            results = await asyncio.gather(*map(read, runs), return_exceptions=True)
            outcome = results.pop(3)
            assert not any(isinstance(result, BaseException) for result in results), results
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, StoreError), repr(outcome)
                for part in (f'"{schema}"."steps"', "'run-3'", repr(step), f"revision {revision}"):
                    assert part in str(outcome)
        found = await store.newer([(run, step if run == "run-3" else "step", -2) for run in runs])
        assert {record.run_id for record in found} >= {*runs} - {"run-3"}, "one damaged row hides no other"
    await connection.close()


async def test_a_row_that_cannot_be_read(postgres_server_url: str, postgres_url: str) -> None:
    """A row that is no record is an error that names it, to those who ask for it, and to no others at the same time."""
    connection = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store:
        for number in range(5):
            await store.append(StepRecord(run_id=f"run-{number}", step_id="step"))
        await connection.execute(f"update {schema_of(postgres_url)}.steps set status = 'unheard-of' where run_id = 'run-3'")
        runs = [f"run-{number}" for number in range(5)]
        again = [StepRecord(run_id=run, step_id="step") for run in runs]
        for results in (
            await asyncio.gather(*map(store.list, runs), return_exceptions=True),
            await asyncio.gather(*map(store.append, again), return_exceptions=True),
            await asyncio.gather(*(store.get(run, "step") for run in runs), return_exceptions=True),
        ):
            refusal = results.pop(3)
            assert isinstance(refusal, StoreError)
            assert "the row of run 'run-3', step 'step', revision 0 is not a step record (status 'unheard-of'" in str(refusal)
            assert not any(isinstance(result, BaseException) for result in results)
    await connection.close()
