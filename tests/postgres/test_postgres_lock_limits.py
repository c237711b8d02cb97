"""The server keeps all locks in one table of a fixed size: a store takes its share of it, in batches, and no more."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from durable_core import Lease, RunBusy, StoreError
from durable_postgres import PostgresStore
from tests.postgres.limits import with_limits
from tests.servers.postgres import PostgresServer, start_postgres

pytestmark = pytest.mark.asyncio

TOTAL = 200  # 10 a transaction, 20 connections; the server's own processes bring it to about twice as many


@pytest.fixture
def small_server() -> Iterator[PostgresServer]:
    yield from start_postgres("max_locks_per_transaction=10", "max_connections=20", "max_prepared_transactions=0")


async def hold(stack: AsyncExitStack, store: PostgresStore, run_ids: list[str]) -> list[Lease | BaseException]:
    """Take the locks of all runs at once, and return the leases and the refusals."""
    return await asyncio.gather(*(stack.enter_async_context(store.lock(each)) for each in run_ids), return_exceptions=True)


async def use_up(server: PostgresServer) -> "asyncpg.Connection":
    """Return a connection that holds every lock which the server had left."""
    greedy = await asyncpg.connect(server.url)
    failures = 0
    for number in range(100_000):
        try:
            await greedy.fetchval("select pg_try_advisory_lock($1)", number)
        except asyncpg.OutOfMemoryError:
            failures += 1
            if failures == 20:
                break
    return greedy


async def test_one_run_too_many_is_refused(small_server: PostgresServer) -> None:
    """Whoever asks for more than half of the server's locks is told what to raise; nobody loses a lock, and others go on."""
    async with PostgresStore.from_url(small_server.url) as store, AsyncExitStack() as stack:
        results = await hold(stack, store, [f"run-{number}" for number in range(3_000)])
        leases = [result for result in results if not isinstance(result, BaseException)]
        refusals = [result for result in results if isinstance(result, BaseException)]
        assert {type(refusal) for refusal in refusals} == {StoreError}
        assert "max_locks_per_transaction" in str(refusals[0])
        for lease in leases:
            lease.check()
        assert TOTAL // 4 < len(leases) <= TOTAL // 2
        other = await asyncpg.connect(small_server.url)
        for number in range(TOTAL // 2):
            assert await other.fetchval("select pg_try_advisory_lock($1)", number)
        await other.close()
        async with PostgresStore.from_url(small_server.url) as rival:
            with pytest.raises(StoreError, match="run 'run-0' can't be locked"):
                async with rival.lock("run-0"):
                    pass


async def test_the_limit_is_that_of_all_stores(small_server: PostgresServer) -> None:
    """Stores on one server share the half that is theirs; what one gives back is there for another."""
    async with PostgresStore.from_url(small_server.url) as one, PostgresStore.from_url(small_server.url) as two:
        async with AsyncExitStack() as stack:
            await hold(stack, one, [f"one-{number}" for number in range(TOTAL // 2)])
            with pytest.raises(StoreError, match="of the server's 200 locks are in use"):
                async with two.lock("two"):
                    pass
        async with two.lock("two") as lease:
            lease.check()


async def test_a_server_that_ran_out_of_locks_takes_none_away(small_server: PostgresServer) -> None:
    """Where other clients use up all that the server has, a lock is refused, and those that are held stay held."""
    async with with_limits(ping=1_000).from_url(small_server.url) as store, AsyncExitStack() as stack:
        leases = await hold(stack, store, [f"run-{number}" for number in range(5)])
        greedy = await use_up(small_server)
        refused = await hold(stack, store, [f"more-{number}" for number in range(3)])
        assert {type(refusal) for refusal in refused} == {StoreError}
        for lease in leases:
            assert not isinstance(lease, BaseException)
            lease.check()
        refused = await hold(stack, store, [f"more-{number}" for number in range(40)])
        assert {type(refusal) for refusal in refused} == {StoreError}
        for lease in leases:
            lease.check()
        await greedy.execute("select pg_advisory_unlock_all()")
        await greedy.close()
        async with store.lock("more-1") as lease, PostgresStore.from_url(small_server.url) as rival:
            lease.check()
            for run_id in ("run-0", "more-1"):
                with pytest.raises(RunBusy):
                    async with rival.lock(run_id):
                        pass
            async with rival.lock("more-0"):
                pass


async def test_a_session_out_of_locks_stays_in_its_transaction(small_server: PostgresServer) -> None:
    """A pooler would give the locks' session to others between two transactions: there is no such moment."""
    connections: list[asyncpg.Connection] = []

    class Noted(asyncpg.Connection):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            connections.append(self)

    async with (
        asyncpg.create_pool(small_server.url, min_size=0, max_size=5, connection_class=Noted) as pool,
        with_limits(ping=1_000)(pool) as store,
        store.lock("run"),
    ):
        (session,) = [connection for connection in connections if not connection.is_closed() and connection.is_in_transaction()]
        greedy = await use_up(small_server)
        with pytest.raises(StoreError):
            async with store.lock("more"):
                pass
        assert session.is_in_transaction()
        await greedy.execute("select pg_advisory_unlock_all()")
        name = await greedy.fetchval("select application_name from pg_stat_activity where pid = $1", session.get_server_pid())
        assert name.startswith("pid ")
        await greedy.close()


async def test_a_run_takes_one_lock(postgres_server_url: str, postgres_url: str) -> None:
    """The server holds one advisory lock for each run."""
    observer = await asyncpg.connect(postgres_server_url)
    async with PostgresStore.from_url(f"{postgres_url}&application_name=single") as store, AsyncExitStack() as stack:
        await hold(stack, store, [f"run-{number}" for number in range(20)])
        query = "select count(*) from pg_locks join pg_stat_activity using (pid) where application_name like '%(single)'"
        assert await observer.fetchval(f"{query} and locktype = 'advisory'") == 20
    await observer.close()


async def test_locks_are_taken_and_given_in_batches(postgres_server_url: str, postgres_url: str) -> None:
    """Many runs that begin, or end, at once share statements."""
    sent: list[str] = []

    class Noted(asyncpg.Connection):
        async def _execute(self, query: str, *args: object, **kwargs: object) -> object:
            if "advisory" in query:
                sent.append(query)
            return await super()._execute(query, *args, **kwargs)

    schema = postgres_url.rpartition("schema=")[2]
    async with (
        asyncpg.create_pool(postgres_server_url, min_size=0, max_size=5, connection_class=Noted) as pool,
        PostgresStore(pool, schema=schema) as store,
    ):
        async with store.lock("first"):
            sent.clear()
            together = asyncio.Barrier(300)

            async def work(run_id: str) -> None:
                async with store.lock(run_id) as lease:
                    await together.wait()
                    lease.check()

            await asyncio.gather(*(work(f"run-{number}") for number in range(300)))
        assert 2 <= len(sent) <= 12


async def test_since_when_is_told_to_other_processes(postgres_url: str) -> None:
    """Soon after it was taken, others learn since when a run's own lock is held, also of a session that holds older ones."""
    async with (
        with_limits(ping=0.05).from_url(postgres_url) as store,
        PostgresStore.from_url(postgres_url) as other,
        store.lock("old"),
    ):
        await since(other, "old")
        async with store.lock("new"):
            assert await since(other, "old") < await since(other, "new")


async def since(store: PostgresStore, run_id: str) -> object:
    async with asyncio.timeout(10):
        while True:
            try:
                async with store.lock(run_id):
                    raise AssertionError(f"{run_id} is free")
            except RunBusy as busy:
                if busy.since is not None:
                    return busy.since
            await asyncio.sleep(0.01)
