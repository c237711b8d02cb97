"""Connections that are busy, frozen or all taken, where the store takes one or gives it back."""

import asyncio
import logging
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from durable_core import StepRecord, StoreError
from durable_postgres import PostgresStore
from tests.postgres.limits import with_limits
from tests.servers.proxy import Proxy, proxied

pytestmark = pytest.mark.asyncio


def freezing(proxy: Proxy, statement: str, armed: asyncio.Event) -> type["asyncpg.Connection"]:
    """Make a class of connections: once armed, the first to send what begins with `statement` gets no more answers."""

    class Freezing(asyncpg.Connection):
        async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
            if armed.is_set() and query.startswith(statement):
                armed.clear()
                proxy.hold_answers()
            done: str = await super().execute(query, *args, timeout=timeout)
            return done

    return Freezing


async def test_closing_over_cancelled_appends(postgres_server_url: str, postgres_url: str) -> None:
    """Appends that were cancelled while their batch is on the way hold up nothing: the store closes, its connections too."""
    observer = await asyncpg.connect(postgres_server_url)
    name = f"closing-{uuid4().hex}"
    held = "select count(*) from pg_stat_activity where application_name = $1 and wait_event_type is distinct from 'Lock'"
    async with PostgresStore.from_url(postgres_url) as other, asyncio.timeout(20), other.transaction() as transaction:
        await transaction.append(StepRecord(run_id="run", step_id="taken"))
        with pytest.raises(asyncio.CancelledError):
            async with PostgresStore.from_url(f"{postgres_url}&application_name={name}") as store, asyncio.timeout(5):
                await store.list("run")
                # The first goes alone, the others in one batch behind it, which waits for the slot that is taken.
                records = [StepRecord(run_id="run", step_id=step) for step in ("first", "second", "taken")]
                appending = [asyncio.create_task(store.append(record)) for record in records]
                await _waiter_on(observer, transaction.connection.get_server_pid())
                for task in appending:
                    task.cancel()
                await asyncio.wait(appending)
                raise asyncio.CancelledError
        with pytest.raises(StoreError, match="the store is closed"):
            await store.list("run")
        while await observer.fetchval(held, name):  # the server takes its time to notice
            await asyncio.sleep(0.01)
    await observer.close()


async def test_a_connection_that_freezes_after_its_work(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What was committed, or read, is no error because the connection can't be reset afterwards; that one is dropped."""
    caplog.set_level(logging.WARNING, "durable_postgres")
    url, _, schema = postgres_url.partition("?schema=")
    async with PostgresStore.from_url(postgres_url) as direct:
        await direct.list("run")
        parts = urlsplit(url)
        mine = StepRecord(run_id="run", step_id="step")
        for work in ("transaction", "read"):
            armed = asyncio.Event()
            with proxied(parts.port or 5432) as proxy:
                through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
                # The query that resets a connection begins so.
                class_ = freezing(proxy, "SELECT pg_advisory_unlock_all()", armed)
                pool = asyncpg.create_pool(through, min_size=0, max_size=5, connection_class=class_)
                async with asyncio.timeout(10), pool, with_limits(close=0.2)(pool, schema=schema) as store:
                    await store.list("other")
                    armed.set()
                    if work == "transaction":
                        async with store.transaction() as transaction:
                            await transaction.append(mine)
                    else:
                        assert [run_id async for run_id in store.runs()] == ["run"]
                    assert not armed.is_set()
                    assert "could not be reset" in caplog.text
                    caplog.clear()
                    assert await direct.list("run") == [mine]
                    pool.terminate()


async def test_first_use_of_a_pool_that_is_used_up(postgres_server_url: str, postgres_url: str) -> None:
    """Who finds no connection free at first use is told so, as at any other, and once there is one, it is used."""
    schema = postgres_url.rpartition("schema=")[2]
    async with asyncpg.create_pool(postgres_server_url, min_size=5, max_size=5) as pool, asyncio.timeout(10):
        taken = [await pool.acquire() for _ in range(5)]
        async with with_limits(turn=0.2)(pool, schema=schema) as store:
            with pytest.raises(StoreError, match=r"none of the pool's 5 connections became free within 0\.2 seconds"):
                await store.list("run")
            for connection in taken:
                await pool.release(connection)
            assert await store.list("run") == []


@pytest.mark.parametrize("statement", ["begin", "commit"])
async def test_no_answer_while_the_table_is_made(postgres_url: str, statement: str) -> None:
    """A connection that goes silent at first use is noticed in bounded time, and another one serves."""
    url, _, schema = postgres_url.partition("?schema=")
    parts = urlsplit(url)
    armed = asyncio.Event()
    armed.set()
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        pool = asyncpg.create_pool(through, min_size=0, max_size=5, connection_class=freezing(proxy, statement, armed))
        async with asyncio.timeout(10), pool, with_limits(turn=0.5)(pool, schema=schema) as store:
            assert await store.list("run") == []
            assert not armed.is_set()


async def _waiter_on(connection: "asyncpg.Connection", pid: int) -> None:
    while not await connection.fetchval(
        "select exists (select from pg_stat_activity where $1 = any(pg_blocking_pids(pid)))", pid
    ):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("moment", ["within a statement", "before the locks"])
async def test_a_close_between_two_requests(postgres_server_url: str, postgres_url: str, moment: str) -> None:
    """What asyncpg does with a connection that was just closed is no error of the caller's, and no connection is kept."""
    armed = asyncio.Event()

    async def close() -> None:
        if armed.is_set():
            armed.clear()
            await store.__aexit__(None, None, None)

    class Closing(asyncpg.Connection):
        async def _get_statement(self, *args: object, **options: object) -> object:
            statement = await super()._get_statement(*args, **options)
            if moment == "within a statement":
                await close()
            return statement

        async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:
            if query.startswith("begin isolation level"):
                await close()
            done: str = await super().execute(query, *args, timeout=timeout)
            return done

    pool = asyncpg.create_pool(postgres_server_url, min_size=0, max_size=5, connection_class=Closing)
    store = PostgresStore(pool, schema=postgres_url.partition("?schema=")[2])
    async with asyncio.timeout(20), pool:
        await store.list("run")
        armed.set()
        with pytest.raises(StoreError, match="closed"):
            if moment == "before the locks":
                async with store.lock("run"):
                    pass
            else:
                await store.append(StepRecord(run_id="run", step_id="step"))
        async with asyncio.timeout(2):  # less than the lock's next ping, which would also end it
            await pool.close()
