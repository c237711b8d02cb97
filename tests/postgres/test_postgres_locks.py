"""Advisory locks: whose they are, and how their loss is noticed."""

import asyncio
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import Lease, LockLost, RunBusy, StepRecord
from durable_postgres import PostgresStore
from tests.postgres.limits import with_limits
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import proxied

pytestmark = pytest.mark.asyncio


async def test_the_holder_is_named(postgres_url: str) -> None:
    """Who is refused learns host, process and application of the holder, and since when this very run is held."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    async with (
        with_limits(ping=0.05).from_url(f"{postgres_url}&application_name=billing") as store,
        PostgresStore.from_url(postgres_url) as other,
        store.lock("run"),
        asyncio.timeout(10),
    ):
        while True:  # since when is told a ping later
            with pytest.raises(RunBusy) as refused:
                async with other.lock("run"):
                    pass
            if refused.value.since is not None:
                break
            await asyncio.sleep(0.01)
    assert refused.value.holder == f"pid {os.getpid()} on {socket.gethostname()} (billing)"
    assert refused.value.since is not None
    assert before <= refused.value.since <= datetime.now(UTC)


async def test_holders_that_are_asked_for_at_once_share_queries(postgres_server_url: str, postgres_url: str) -> None:
    """Workers look at many runs whose process died, and the server's view of its locks takes its time."""
    asked: list[str] = []

    async def log(connection: asyncpg.Connection) -> None:
        connection.add_query_logger(lambda query: asked.append(query.query))

    async with (
        asyncpg.create_pool(postgres_server_url, min_size=0, init=log) as pool,
        PostgresStore(pool, schema=postgres_url.rpartition("schema=")[2]) as store,
        PostgresStore.from_url(postgres_url) as other,
        other.lock("run-7"),
        store.lock("run-8"),
    ):
        holders = await asyncio.gather(*(store.holder(f"run-{number}") for number in range(100)))
    assert [number for number, holder in enumerate(holders) if holder is not None] == [7, 8]
    assert 0 < sum("pg_stat_activity" in query for query in asked) < 10


async def test_one_connection_holds_all_locks(postgres_server_url: str, postgres_url: str) -> None:
    """However many runs a store holds, they take one connection, and it holds back no vacuum."""
    observer = await asyncpg.connect(postgres_server_url)
    query = "select backend_xid, backend_xmin from pg_stat_activity where application_name like '%(holder)'"
    async with (
        with_limits(ping=0.05).from_url(f"{postgres_url}&application_name=holder") as store,
        AsyncExitStack() as stack,
        asyncio.timeout(30),
    ):
        for number in range(100):
            await stack.enter_async_context(store.lock(f"run-{number}"))
        while [tuple(session) for session in await observer.fetch(query)] != [(None, None)]:
            await asyncio.sleep(0.01)
    await observer.close()


async def test_a_lost_connection_is_a_lost_lock(postgres_server_url: str, postgres_url: str) -> None:
    """When the server ends the connection, every lease on it says so; the run can be locked again at once."""
    observer = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        async with store.lock("one") as one, store.lock("two") as two:
            one.check()
            await observer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where state = 'idle in transaction' and application_name like 'pid %'"
            )
            await _lost(one)
            with pytest.raises(LockLost):
                two.check()
            async with other.lock("one") as theirs, store.lock("three") as three:
                theirs.check()
                three.check()
        async with other.lock("one"):
            pass
    await observer.close()


async def test_a_lost_connection_is_a_lost_lock_before_the_loop_has_noticed(postgres_server_url: str, postgres_url: str) -> None:
    """A process that was frozen has not read that the server ended its connection. It begins no step meanwhile."""

    async def end() -> None:
        observer = await asyncpg.connect(postgres_server_url)
        ended = await observer.fetch(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where state = 'idle in transaction' and application_name like 'pid %'"
        )
        await observer.close()
        assert [[*each] for each in ended] == [[True]]

    async with PostgresStore.from_url(postgres_url) as store, store.lock("run") as lease:
        lease.check()
        with ThreadPoolExecutor() as thread:
            thread.submit(asyncio.run, end()).result()  # keeps the loop waiting
        with pytest.raises(LockLost):
            lease.check()


async def test_a_silent_connection_is_a_lost_lock(postgres_url: str) -> None:
    """A server that is there and answers no more is noticed by asking it from time to time."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with (
            with_limits(ping=0.05, statement=1.0).from_url(through) as store,
            asyncio.timeout(10),
            store.lock("run") as lease,
        ):
            proxy.hold_answers()
            await _lost(lease)


async def test_the_locks_session_notices_a_machine_that_vanished(postgres_server_url: str, postgres_url: str) -> None:
    """The server gives the locks up half a minute after it hears no more of their holder; no other session is changed."""
    connections: list[asyncpg.Connection] = []

    class Noted(asyncpg.Connection):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            connections.append(self)

    shown: dict[bool, list[str]] = {}
    async with (
        asyncpg.create_pool(postgres_server_url, min_size=0, max_size=5, connection_class=Noted) as pool,
        PostgresStore(pool, schema=postgres_url.rpartition("schema=")[2]) as store,
    ):
        await store.append(StepRecord(run_id="run", step_id="step"))
        async with store.lock("run"):
            for connection in connections:
                names = ("tcp_user_timeout", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count")
                settings = [await connection.fetchval(f"select current_setting('{name}')") for name in names]
                shown[connection.is_in_transaction()] = settings
    timeout, idle, interval, count = shown[True]
    assert timeout in ("30s", "30000ms", "30000")
    assert int(idle) + int(interval) * int(count) == 30
    assert shown[False] != shown[True]


@pytest.mark.parametrize("what", ["lock", "transaction", "scan", "closing"])
async def test_a_cancellation_at_every_turn(postgres_server_url: str, postgres_url: str, what: str) -> None:
    """Cancelled at every turn of the loop, as anyio does it, work ends, and leaves neither a lock nor a connection taken."""
    pool = await asyncpg.create_pool(postgres_server_url, min_size=0, max_size=5)
    store = PostgresStore(pool, schema=postgres_url.rpartition("schema=")[2])
    inside = asyncio.Event()

    async def lock() -> None:
        async with store.lock("run"):
            inside.set()
            await asyncio.Event().wait()

    async def transaction() -> None:
        async with store.transaction() as transaction:
            await transaction.append(StepRecord(run_id="run", step_id="step"))
            inside.set()
            await asyncio.Event().wait()

    async def scan() -> None:
        await store.append(StepRecord(run_id="other", step_id="step"))
        async for _ in store.scan("other"):
            inside.set()
            await asyncio.Event().wait()

    async def closing() -> None:
        async with store:
            await store.lock("run").__aenter__()
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task({"lock": lock, "transaction": transaction, "scan": scan, "closing": closing}[what]())
    await inside.wait()
    deadline = time.monotonic() + 10
    while not task.done() and time.monotonic() < deadline:
        task.cancel()
        await asyncio.sleep(0)
    try:
        assert task.cancelled()
        if what != "closing":
            await store.__aexit__(None, None, None)
        async with asyncio.timeout(5), PostgresStore.from_url(postgres_url) as other:
            record = StepRecord(run_id="run", step_id="step")
            assert await other.append(record) is record
            while True:  # the server needs a moment to see that a client is gone
                try:
                    async with other.lock("run"):
                        break
                except RunBusy:
                    await asyncio.sleep(0.01)
            for _ in range(5):
                await pool.acquire()
    finally:
        pool.terminate()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_contender_costs_nobody_a_lock(postgres_url: str, times: int) -> None:
    """Cancelling whoever is taking a lock, however often, leaves the others held, and nothing of its own."""
    async with PostgresStore.from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:

        async def take(run_id: str) -> None:
            async with store.lock(run_id):
                await asyncio.Event().wait()

        async with store.lock("held") as lease:
            for turns in range(12):
                task = asyncio.create_task(take("run"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                for _ in range(times):
                    task.cancel()
                    await asyncio.sleep(0)
                await asyncio.wait({task})
                async with other.lock("run"):
                    pass
            lease.check()
            with pytest.raises(RunBusy):
                async with other.lock("held"):
                    pass


async def test_a_killed_server_loses_the_locks_and_nothing_else(postgres_server: PostgresServer) -> None:
    """After SIGKILL and a restart of the server, the lease is lost, what was appended is there, and new locks are given."""
    async with PostgresStore.from_url(postgres_server.url) as store:
        async with store.lock("run") as lease:
            record = await store.append(StepRecord(run_id="run", step_id="step"))
            await asyncio.to_thread(postgres_server.kill)
            await asyncio.to_thread(postgres_server.start)
            with pytest.raises(LockLost):
                lease.check()
        async with store.lock("run") as lease:
            lease.check()
            assert await store.list("run") == [record]


async def _lost(lease: Lease) -> None:
    async with asyncio.timeout(10):
        while not (lost := _loss(lease)):
            await asyncio.sleep(0.01)
    assert "was lost with its connection" in lost


def _loss(lease: Lease) -> str:
    try:
        lease.check()
    except LockLost as lost:
        return str(lost)
    return ""
