"""Servers that die and connections that break under runners at work: nothing is lost, and no step is wrongly run again."""

import asyncio
import random
from collections import Counter
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import LockLost, ResultNotRecorded, RunBusy, Runner, StepRecord, StoreError
from durable_postgres import PostgresStore, schema_sql
from tests.postgres.limits import with_limits
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import proxied

pytestmark = pytest.mark.asyncio

RUNS, STEPS = 200, 6


class Acknowledged(PostgresStore):
    """Notes every record that an append has returned."""

    returned: dict[str, StepRecord]

    async def append(self, record: StepRecord) -> StepRecord:
        held = await super().append(record)
        self.returned[held.id] = held
        return held


@pytest.mark.parametrize("locked", [False, True], ids=["without locks", "with locks"])
async def test_the_server_is_killed_under_200_runs(postgres_server: PostgresServer, locked: bool) -> None:
    """After SIGKILL and restart, twice, all runs finish, what was acknowledged is there, and each step ran once.

    A run whose lock was lost with the server starts no further step; it is resumed, as a worker does it.
    """
    ran: Counter[str] = Counter()
    killing = asyncio.Event()

    async with Acknowledged.from_url(postgres_server.url) as store:
        store.returned = {}

        async def step(name: str) -> str:
            ran[name] += 1
            if sum(ran.values()) in (RUNS * STEPS // 4, RUNS * STEPS // 2):
                killing.set()
            await asyncio.sleep(random.uniform(0, 0.05))
            return name

        async def flow(runner: Runner) -> None:
            for number in range(STEPS):
                assert await runner.step(f"{number}", step, f"{runner.run_id}-{number}") == f"{runner.run_id}-{number}"

        async def work(run_id: str) -> None:
            runner = Runner(store, run_id)
            while True:
                try:
                    if not locked:
                        return await flow(runner)
                    async with Runner(store, run_id, lock_wait=30) as runner:
                        return await flow(runner)
                except (StoreError, LockLost, RunBusy):
                    await asyncio.sleep(0.01)

        async def disaster() -> None:
            for _ in range(2):
                await killing.wait()
                killing.clear()
                await asyncio.to_thread(postgres_server.kill)
                await asyncio.to_thread(postgres_server.start)

        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            tasks.create_task(disaster())
            for number in range(RUNS):
                tasks.create_task(work(f"run-{number}"))

        assert set(ran.values()) == {1}
        stored = {record.id: record for number in range(RUNS) for record in await store.list(f"run-{number}")}
        assert len(stored) == RUNS * STEPS
        assert store.returned == stored


@pytest.mark.parametrize("batch", [1, 12])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_connection_is_cut_at_the_append(postgres_url: str, when: str, batch: int) -> None:
    """Cut just before or just after the commit, the runner ends with one record, the right value and one call of `fn`."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with PostgresStore.from_url(through) as store, PostgresStore.from_url(postgres_url) as direct:
            ran: Counter[int] = Counter()

            async def step(number: int) -> str:
                ran[number] += 1
                return f"needle-{number}"

            runner = Runner(store, "run")
            await runner.step("first", step, -1)
            (proxy.cut_before if when == "before" else proxy.cut_after)(f'"step_id":"{6 + batch}"'.encode())
            values = await asyncio.gather(*(runner.step(f"{number}", step, number) for number in range(7, 7 + batch)))
            assert proxy.fired.is_set()
            assert values == [f"needle-{number}" for number in range(7, 7 + batch)]
            assert set(ran.values()) == {1}
            records = await direct.list("run")
            assert sorted(record.value(str) for record in records) == sorted([*values, "needle--1"])
            assert await Runner(direct, "run").step("7", step, 7) == "needle-7"
            assert ran[7] == 1


async def test_a_lost_acknowledgement_is_recognised(postgres_url: str) -> None:
    """The store itself finds that its own record holds the slot: the append returns that record, as if nothing had happened."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        async with PostgresStore.from_url(parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()) as store:
            await store.list("run")
            record = StepRecord(run_id="run", step_id="step")
            proxy.cut_after(record.id.encode())
            assert await store.append(record) is record
            assert proxy.fired.is_set()
            assert await store.list("run") == [record]


async def test_a_connection_that_died_while_idle(postgres_server_url: str, postgres_url: str) -> None:
    """Connections that the server ended in the meantime cost no error: each call finds another one."""
    observer = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(f"{postgres_url}&application_name=idle-ones") as store:
        await store.append(StepRecord(run_id="run", step_id="1"))
        for turn in range(2, 5):
            await observer.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'idle-ones'"
            )
            await store.append(StepRecord(run_id="run", step_id=f"{turn}"))
            assert len(await store.list("run")) == turn
    await observer.close()


async def test_a_farewell_that_comes_before_the_end(postgres_server_url: str, postgres_url: str) -> None:
    """Where the server's last words arrive before its connection ends, the driver is confused; the store connects anew."""
    parts = urlsplit(postgres_url)
    observer = await asyncpg.connect(postgres_server_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with PostgresStore.from_url(f"{through}&application_name=farewell") as store, asyncio.timeout(20):
            record = await store.append(StepRecord(run_id="run", step_id="1"))
            await store.list("run")
            proxy.keeps_open = True
            ended = await observer.fetch(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'farewell'"
            )
            while proxy.farewells < len(ended):
                await asyncio.sleep(0.01)
            for _ in range(20):  # the last words are read
                await asyncio.sleep(0.001)
            again = await store.append(StepRecord(run_id="run", step_id="1", revision=1))
            assert await store.list("run") == [record, again]
            proxy.keeps_open = False
    await observer.close()


async def test_an_answer_that_never_comes(postgres_url: str) -> None:
    """A connection that went silent costs one error, in bounded time; the next call finds another one."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        async with with_limits(statement=0.2, read=0.2).from_url(
            parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        ) as store:
            assert await store.list("run") == []
            record = await store.append(StepRecord(run_id="run", step_id="1"))
            proxy.hold_answers()
            for work in (store.append(StepRecord(run_id="run", step_id="2")), store.list("run")):
                with pytest.raises(StoreError, match="the server did not answer in time; it may have done the work or not"):
                    await work
            async with asyncio.timeout(5):
                await store.append(StepRecord(run_id="run", step_id="3"))
                assert record in await store.list("run")


async def test_a_cancelled_append_is_not_waited_for(postgres_url: str) -> None:
    """After an append that was cancelled while the server was at work, the next one goes through at once."""
    async with (
        PostgresStore.from_url(postgres_url) as store,
        PostgresStore.from_url(postgres_url) as other,
        asyncio.timeout(5),
        other.transaction() as transaction,
    ):
        await transaction.append(StepRecord(run_id="run", step_id="1"))
        appending = asyncio.create_task(store.append(StepRecord(run_id="run", step_id="1")))
        async with PostgresStore.from_url(postgres_url) as observing:
            await observing.list("run")
        appending.cancel()
        await asyncio.wait({appending})
        assert appending.cancelled()
        await store.append(StepRecord(run_id="run", step_id="2"))


async def test_a_server_that_stays_away(postgres_server: PostgresServer) -> None:
    """While the server is down every call raises at once; the outcome of a step is kept, and appended when it is back."""
    async with PostgresStore.from_url(postgres_server.url) as store:

        async def step() -> int:
            await asyncio.to_thread(postgres_server.kill)
            return 7

        runner = Runner(store, "run", store_timeout=0.2)
        with pytest.raises(ResultNotRecorded):
            await runner.step("step", step)
        async with asyncio.timeout(5):
            for work in (store.append(StepRecord(run_id="run", step_id="x")), store.list("run"), store.get("run", "step")):
                with pytest.raises(StoreError, match=r"PostgreSQL table .*Connect call failed"):
                    await work
        await asyncio.to_thread(postgres_server.start)
        assert await runner.step("step", step) == 7
        assert [record.value() for record in await store.list("run")] == [7]


def _read_only_role(role: str, schema: str) -> str:
    """Return what makes a store's table, and a role to which the server is what a standby is to others: read-only."""
    return (
        f"{schema_sql(schema)} create role {role} login; alter role {role} set default_transaction_read_only = on;"
        f"grant usage on schema {schema} to {role}; grant select, insert on {schema}.steps to {role}"
    )


async def test_several_hosts(postgres_server_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several hosts the store chooses the one that takes writes, unless the URL or the environment says otherwise."""
    parts = urlsplit(postgres_url)
    both = parts._replace(netloc=f"{parts.netloc},{parts.netloc.rpartition('@')[2]}").geturl()
    schema = postgres_url.rpartition("schema=")[2]
    role = f"r_{schema}"
    connection = await asyncpg.connect(postgres_server_url)
    await connection.execute(_read_only_role(role, schema))
    standby = both.replace("//postgres@", f"//{role}@")
    async with PostgresStore.from_url(f"{standby}&target_session_attrs=any") as store:
        assert await store.list("run") == []
    async with PostgresStore.from_url(standby) as store:
        with pytest.raises(StoreError, match="None of the hosts match the target attribute requirement") as refusal:
            await store.list("run")
        assert store.is_retryable(refusal.value), "one of them may be promoted"
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "any")
    async with PostgresStore.from_url(standby) as store:
        assert await store.list("run") == []
    await connection.execute(f"drop owned by {role}; drop role {role}")
    await connection.close()


async def test_a_transaction_leaves_a_server_that_is_read_only(postgres_server_url: str, postgres_url: str) -> None:
    """After a failover the step's own SQL may be what meets a standby; its next attempt gets another connection."""
    schema = postgres_url.rpartition("schema=")[2]
    role = f"r_{schema}"
    admin = await asyncpg.connect(postgres_server_url)
    await admin.execute(_read_only_role(role, schema))
    await admin.execute(f"create table {schema}.mine (a int); grant insert on {schema}.mine to {role}")
    calls: list[None] = []

    async def insert(connection: "asyncpg.Connection") -> int:
        calls.append(None)
        try:
            await connection.execute(f"insert into {schema}.mine values (1)")
        except asyncpg.ReadOnlySQLTransactionError:
            await admin.execute(f"alter role {role} reset default_transaction_read_only")  # for the sessions to come
            raise
        return len(calls)

    async with PostgresStore.from_url(postgres_url.replace("//postgres@", f"//{role}@")) as store:
        assert await Runner(store, "run", store_timeout=5).transaction("insert", insert) == 2
    await admin.execute(f"drop owned by {role}; drop role {role}")
    await admin.close()


async def test_scans_that_use_up_the_pool(postgres_url: str) -> None:
    """Who finds no connection free is told so, after a while; once a scan is closed there is one again."""
    async with with_limits(turn=0.2).from_url(f"{postgres_url}&pool_max=5") as store:
        await store.append(StepRecord(run_id="run", step_id="step"))  # which keeps one for appends
        scans = [store.scan("run") for _ in range(4)]
        for scan in scans:
            await anext(scan)
        for work in (store.list("run"), store.get("run", "step")):
            with pytest.raises(StoreError, match=r"none of the pool's 5 connections became free within 0\.2 seconds.*pool_max"):
                await work
        for scan in scans:
            await scan.aclose()  # type: ignore[attr-defined]
        assert len(await store.list("run")) == 1
