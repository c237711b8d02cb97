"""Watches hear of acts on their run by LISTEN, through outages, or end at once where nothing would be heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from durable_core import Runner, StepRecord, flow
from durable_core.testing._contract.flows import flow_entry
from durable_postgres import PostgresStore
from tests.postgres.limits import with_limits
from tests.servers.pgbouncer import EXECUTABLE, start_pgbouncer
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import proxied

pytestmark = pytest.mark.asyncio

SECONDS = 30


@pytest_asyncio.fixture
async def observer(postgres_server_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_server_url)
    yield connection
    connection.terminate()


class Ear:
    """Counts what a watch is told."""

    def __init__(self) -> None:
        self.heard = 0
        self.has_ended = False
        self._news = asyncio.Event()

    async def listen(self, watch: AsyncIterator[None]) -> None:
        async for _ in watch:
            self.heard += 1
            self._news.set()
        self.has_ended = True
        self._news.set()

    async def until(self, heard: int) -> None:
        """Return once it has been told that often in all."""
        async with asyncio.timeout(SECONDS):
            while self.heard < heard:
                assert not self.has_ended
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def watching(store: PostgresStore, *run_ids: str) -> AsyncIterator[list[Ear]]:
    """Watch runs; yield once all of them are listened to."""
    ears = [Ear() for _ in run_ids]
    tasks = [asyncio.create_task(ear.listen(store.watch(run_id))) for ear, run_id in zip(ears, run_ids, strict=True)]
    try:
        for ear in ears:
            await ear.until(1)
        yield ears
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def sessions(connection: asyncpg.Connection, name: str) -> int:
    """Return how many connections of this application have listened last."""
    query = "select count(*) from pg_stat_activity where application_name = $1 and query ilike 'listen%'"
    found: int = await connection.fetchval(query, name)
    return found


async def until_none(connection: asyncpg.Connection, name: str) -> None:
    """Return once the application has no connection left."""
    deadline = monotonic() + SECONDS
    while await connection.fetchval("select count(*) from pg_stat_activity where application_name = $1", name):
        assert monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_thousand_watches_share_a_connection(observer: asyncpg.Connection, postgres_url: str) -> None:
    """They take one connection of the pool together, and each hears of its own run alone."""
    runs = [f"run-{number}" for number in range(1_000)]
    async with (
        PostgresStore.from_url(f"{postgres_url}&application_name=thousand") as store,
        PostgresStore.from_url(postgres_url) as other,
        watching(store, *runs) as ears,
    ):
        assert await sessions(observer, "thousand") == 1
        await asyncio.gather(*(other.append(StepRecord(run_id=run_id, step_id="step")) for run_id in runs[::100]))
        for ear in ears[::100]:
            await ear.until(2)
        await other.append(StepRecord(run_id=runs[-1], step_id="step"))
        await ears[-1].until(2)
        assert sum(ear.heard for ear in ears) == 1_011
    await until_none(observer, "thousand")


async def test_the_server_is_killed(postgres_server: PostgresServer) -> None:
    """After SIGKILL and restart each watch yields once, hears what is appended then, and costs one connection as before."""
    async with (
        PostgresStore.from_url(f"{postgres_server.url}?application_name=survivor") as store,
        PostgresStore.from_url(postgres_server.url) as other,
        watching(store, "one", "two", "two") as ears,
    ):
        for turn in range(2):
            before = [ear.heard for ear in ears]
            await asyncio.to_thread(postgres_server.kill)
            await asyncio.to_thread(postgres_server.start)
            for ear, heard in zip(ears, before, strict=True):
                await ear.until(heard + 1)
            await other.append(StepRecord(run_id="two", step_id=f"{turn}"))
            for ear, heard in zip(ears[1:], before[1:], strict=True):
                await ear.until(heard + 2)
            assert ears[0].heard == before[0] + 1
        observer = await asyncpg.connect(postgres_server.url)
        assert await sessions(observer, "survivor") == 1
        await observer.close()


async def test_a_server_that_is_away_at_first(postgres_server: PostgresServer) -> None:
    """A watch that begins during an outage begins to listen when that is over."""
    await asyncio.to_thread(postgres_server.kill)
    ear = Ear()
    async with PostgresStore.from_url(postgres_server.url) as store:
        task = asyncio.create_task(ear.listen(store.watch("run")))
        with pytest.raises(Exception, match="Connect call failed"):
            await store.list("run")
        await asyncio.to_thread(postgres_server.start)
        await ear.until(1)
        await store.append(StepRecord(run_id="run", step_id="step"))
        await ear.until(2)
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_connection_that_is_lost(postgres_url: str, how: str) -> None:
    """Cut off, or without an answer, it is replaced, and each watch yields once for what it may have missed."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with (
            with_limits(ping=0.05, statement=0.5).from_url(through) as store,
            PostgresStore.from_url(postgres_url) as direct,
            watching(store, "one", "two") as ears,
        ):
            (proxy.cut if how == "cut" else proxy.hold_answers)()
            for ear in ears:
                await ear.until(2)
            await direct.append(StepRecord(run_id="two", step_id="step"))
            await ears[1].until(3)


@asynccontextmanager
async def swallowing(port: int) -> AsyncIterator[int]:
    """Stand between a store and its server, and pass no message of NOTIFY on, as a pooler does; yield the port to connect to."""
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def requests(client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await client.read(65536):
            server.write(data)
        server.close()

    async def answers(server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while True:
            head = await server.readexactly(5)
            body = await server.readexactly(int.from_bytes(head[1:]) - 4)
            if head[:1] != b"A":
                client.write(head + body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, server_writer))
        tasks.extend(map(asyncio.create_task, (requests(reader, server_writer), answers(server_reader, writer))))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        try:
            yield proxy.sockets[0].getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            for writer in writers:
                writer.close()
            await asyncio.gather(*tasks, *(writer.wait_closed() for writer in writers), return_exceptions=True)


async def ends_at_once(url: str, observer: asyncpg.Connection) -> None:
    """See a watch end that can't hear, once after its probe and then at once, while the store does everything else."""
    async with with_limits(probe=1.0).from_url(f"{url}&statement_cache_size=0&application_name=deaf") as store:
        async with asyncio.timeout(SECONDS):
            assert [told async for told in store.watch("run")] == []
        record = await store.append(flow_entry())
        async with asyncio.timeout(0.9):  # without a probe
            assert [told async for told in store.watch("run")] == []
        assert await store.list("run") == [record]
        deadline = monotonic() + SECONDS
        while await observer.fetchval("select count(*) from pg_stat_activity where query ilike 'listen%'"):
            assert monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_a_server_that_cannot_tell(observer: asyncpg.Connection, postgres_url: str) -> None:
    """Where a message to itself doesn't come the watch ends, and nothing is left listening."""
    parts = urlsplit(postgres_url)
    async with swallowing(parts.port or 5432) as port:
        await ends_at_once(f"{parts._replace(netloc=f'postgres@127.0.0.1:{port}').geturl()}&sslmode=disable", observer)


@pytest.mark.skipif(EXECUTABLE is None, reason="the machine has no PgBouncer; a proxy of the tests swallows messages above")
async def test_a_pooler_in_between(observer: asyncpg.Connection, postgres_server_url: str, postgres_url: str) -> None:
    """PgBouncer in transaction mode passes nothing on: the watch ends."""
    with start_pgbouncer(postgres_server_url) as url:
        await ends_at_once(f"{url}?schema={postgres_url.rpartition('schema=')[2]}", observer)


@pytest.mark.parametrize("begun", [True, False])
async def test_closing_the_store_ends_watches(observer: asyncpg.Connection, postgres_url: str, begun: bool) -> None:
    """Those that listen and those that only begin to end, and leave neither a task nor a connection."""
    name = f"closing-{begun}"
    tasks = asyncio.all_tasks()
    ears = [Ear(), Ear()]
    async with PostgresStore.from_url(f"{postgres_url}&application_name={name}") as store:
        listening = [asyncio.create_task(ear.listen(store.watch("run"))) for ear in ears]
        for ear in ears:
            await (ear.until(1) if begun else asyncio.sleep(0))
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*listening)
    assert all(ear.has_ended for ear in ears)
    await until_none(observer, name)
    while asyncio.all_tasks() - tasks:
        await asyncio.sleep(0)


async def test_the_last_watch_leaves(observer: asyncpg.Connection, postgres_url: str) -> None:
    """When nobody watches any more the connection goes; the next watch has another one."""
    async with with_limits(ping=0.05).from_url(f"{postgres_url}&application_name=leaving") as store:
        for number in range(2):
            async with watching(store, "run") as (ear,):
                await store.append(StepRecord(run_id="run", step_id=f"{number}"))
                await ear.until(2)
            async with asyncio.timeout(SECONDS):
                while any(task.get_name() == "durable-postgres-watch" for task in asyncio.all_tasks()):
                    await asyncio.sleep(0.01)
            listening = "select count(*) from pg_stat_activity where application_name = 'leaving' and query = 'select 1'"
            async with asyncio.timeout(SECONDS):
                while await observer.fetchval(listening):
                    await asyncio.sleep(0.01)


async def test_a_pool_of_the_callers_own(postgres_server_url: str, postgres_url: str) -> None:
    """One of its connections listens if it has six; of five none can be spared, and the watch ends at once."""
    schema = postgres_url.rpartition("schema=")[2]
    for size in (6, 5):
        async with (
            asyncpg.create_pool(postgres_server_url, min_size=0, max_size=size) as pool,
            PostgresStore(pool, schema=schema) as store,
            asyncio.timeout(SECONDS),
        ):
            if size == 5:
                assert [told async for told in store.watch("run")] == []
                continue
            async with watching(store, "run") as (ear,), AsyncExitStack() as stack:
                await store.append(StepRecord(run_id="run", step_id="step"))
                await ear.until(2)
                await stack.enter_async_context(store.lock("run"))
                assert len(await store.list("run")) == 1
                async with store.transaction() as transaction:
                    await transaction.append(StepRecord(run_id="run", step_id="another"))


async def test_what_was_not_appended_is_not_told(postgres_url: str) -> None:
    """An append that lost its slot is no act, and what is rolled back isn't one either; what commits is told after that."""
    async with (
        PostgresStore.from_url(postgres_url) as store,
        PostgresStore.from_url(postgres_url) as other,
        watching(store, "run", "last") as (ear, last),
    ):
        await other.append(StepRecord(run_id="run", step_id="step"))
        await ear.until(2)
        await other.append(StepRecord(run_id="run", step_id="step"))
        async with other.transaction() as transaction:
            await transaction.append(StepRecord(run_id="last", step_id="1"))
            await other.append(StepRecord(run_id="last", step_id="2"))
            await last.until(2)
            assert last.heard == 2
        await last.until(3)
        async with other.transaction() as transaction:
            await transaction.append(flow_entry("run"))
            transaction._won = False  # it is rolled back then
        await other.append(StepRecord(run_id="last", step_id="3"))
        await last.until(4)
        assert ear.heard == 2


@flow
async def ship(runner: Runner) -> None:
    """Ship an order."""


async def test_the_callers_transaction(observer: asyncpg.Connection, postgres_url: str) -> None:
    """A run that is asked for in it is told of once it has committed, and never if it is rolled back."""
    async with PostgresStore.from_url(postgres_url) as store, watching(store, "one", "two") as (one, two):
        with pytest.raises(ZeroDivisionError):
            async with observer.transaction():
                await ship.start(store, "one", connection=observer)
                raise ZeroDivisionError
        async with observer.transaction():
            await ship.start(store, "two", connection=observer)
            assert two.heard == 1
        await two.until(2)
        assert one.heard == 1


async def test_steps_under_the_lock_send_nothing(observer: asyncpg.Connection, postgres_url: str) -> None:
    """Steps, transactions and flows of a run that holds its lock send no message but at the end, which a batch may share."""
    messages: list[str] = []
    async with PostgresStore.from_url(postgres_url) as store:
        await store.list("run")
        channel = store._here().connections.table.channel
        await observer.add_listener(channel, lambda *told: messages.append(told[-1]))

        @flow
        async def settle(runner: Runner) -> None:
            async def step() -> int:
                return 1

            async def own(connection: asyncpg.Connection) -> int:
                return 2

            await asyncio.gather(*(runner.step(f"{number}", step) for number in range(20)))
            await runner.transaction("own", own)
            assert messages == []

        await settle.run(store, "run")
        async with asyncio.timeout(SECONDS):
            while not messages:
                await asyncio.sleep(0.01)
        await store.append(StepRecord(run_id="last", step_id="step"))
        async with asyncio.timeout(SECONDS):
            while "last" not in messages:
                await asyncio.sleep(0.01)
        assert messages == ["run", "last"]
