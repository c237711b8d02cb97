"""A step's own SQL and its record commit together, or not at all."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from durable_core import StepRecord, StoreError
from durable_postgres import PostgresStore
from tests.postgres.limits import with_limits
from tests.servers.proxy import proxied

pytestmark = pytest.mark.asyncio


class Accounts:
    """A table of balances beside the log, looked at from outside."""

    def __init__(self, connection: "asyncpg.Connection", table: str) -> None:
        self.connection = connection
        self.table = table
        self.add = f"update {table} set balance = balance + $2 where name = $1"

    async def balances(self) -> dict[str, int]:
        return dict(await self.connection.fetch(f"select name, balance from {self.table}"))


@pytest_asyncio.fixture
async def accounts(postgres_server_url: str, postgres_url: str) -> AsyncIterator[Accounts]:
    connection = await asyncpg.connect(postgres_server_url)
    schema = postgres_url.rpartition("schema=")[2]
    await connection.execute(f"create schema {schema}; create table {schema}.accounts (name text primary key, balance bigint)")
    await connection.execute(f"insert into {schema}.accounts values ('ann', 0), ('bob', 0)")
    yield Accounts(connection, f"{schema}.accounts")
    await connection.close()


def record() -> StepRecord:
    return StepRecord(run_id="run", step_id="debit")


async def test_both_or_neither(postgres_url: str, accounts: Accounts) -> None:
    """An exception, even after the record was appended, leaves neither the work nor the record; the end commits both."""
    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as transaction:
                await transaction.connection.execute(accounts.add, "ann", 5)
                await transaction.append(record())
                raise ZeroDivisionError
        assert await store.list("run") == []
        assert await accounts.balances() == {"ann": 0, "bob": 0}

        mine = record()
        async with store.transaction() as transaction:
            await transaction.connection.execute(accounts.add, "ann", 5)
            assert await transaction.append(mine) is mine
            assert await store.list("run") == []
        assert await store.list("run") == [mine]
        assert await accounts.balances() == {"ann": 5, "bob": 0}


async def test_without_its_record_nothing_is_committed(postgres_url: str, accounts: Accounts) -> None:
    """A transaction in which no record was appended is rolled back."""
    async with PostgresStore.from_url(postgres_url) as store, store.transaction() as transaction:
        await transaction.connection.execute(accounts.add, "ann", 5)
    assert await accounts.balances() == {"ann": 0, "bob": 0}


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_of_two_at_once_one_commits(postgres_url: str, accounts: Accounts, isolation: str) -> None:
    """The loser waits, gets the winner's record, and what it did is rolled back, at every isolation level."""
    async with PostgresStore.from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        mine, theirs = record(), record()

        async def rival() -> StepRecord:
            while True:
                try:
                    async with other.transaction() as transaction:
                        await transaction.connection.execute(f"set transaction isolation level {isolation}")
                        await transaction.connection.execute(accounts.add, "bob", 7)
                        started.set()
                        return await transaction.append(theirs)
                except Exception as error:
                    if not other.is_retryable(error):
                        raise

        started = asyncio.Event()
        async with store.transaction() as transaction:
            await transaction.connection.execute(accounts.add, "ann", 5)
            await transaction.append(mine)
            waiting = asyncio.create_task(rival())
            await started.wait()
            await _waiter_on(accounts.connection, transaction.connection.get_server_pid())
            assert not waiting.done()
        assert (await waiting).id == mine.id
        assert await accounts.balances() == {"ann": 5, "bob": 0}
        assert await store.list("run") == [mine]


async def test_errors_that_mean_again(postgres_url: str, accounts: Accounts) -> None:
    """A deadlock and a serialisation failure are told from other errors, also where they caused another exception."""
    async with PostgresStore.from_url(postgres_url) as store:
        errors: list[BaseException] = []

        async def cross(first: str, second: str) -> None:
            try:
                async with store.transaction() as transaction:
                    await transaction.connection.execute(accounts.add, first, 1)
                    await met.wait()
                    try:
                        await transaction.connection.execute(accounts.add, second, 1)
                    except asyncpg.PostgresError as error:
                        raise LookupError("wrapped by a library") from error
                    await transaction.append(StepRecord(run_id="run", step_id=first))
            except LookupError as error:
                errors.append(error)

        met = asyncio.Barrier(2)
        await asyncio.gather(cross("ann", "bob"), cross("bob", "ann"))
        (deadlock,) = errors
        assert store.is_retryable(deadlock)
        assert isinstance(deadlock.__cause__, asyncpg.DeadlockDetectedError)

        with pytest.raises(asyncpg.SerializationError) as failure:
            async with store.transaction() as one, store.transaction() as two:
                for transaction in (one, two):
                    await transaction.connection.execute("set transaction isolation level serializable")
                    await transaction.connection.fetch(f"select * from {accounts.table}")
                await two.connection.execute(accounts.add, "ann", 1)
                await two.connection.execute("commit")
                await one.connection.execute(accounts.add, "ann", 1)
        assert store.is_retryable(failure.value)
        for error in (ValueError(), TimeoutError(), ConnectionResetError(), asyncpg.UniqueViolationError("no"), StoreError("no")):
            assert not store.is_retryable(error)


async def test_ending_the_transaction_by_hand(postgres_url: str) -> None:
    """A function that commits for itself is told that its record can't be part of that any more."""
    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(StoreError, match="leave commit and rollback to the runner"):
            async with store.transaction() as transaction:
                await transaction.connection.execute("commit")
                await transaction.append(record())
        assert await store.list("run") == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_that_is_not_acknowledged(postgres_url: str, accounts: Accounts, when: str) -> None:
    """When the connection breaks at the commit, the second try finds what became of the first."""
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with PostgresStore.from_url(through) as store:
            first, second = record(), record()
            with pytest.raises(StoreError) as lost:
                async with store.transaction() as transaction:
                    await transaction.connection.execute(accounts.add, "ann", 5)
                    await transaction.append(first)
                    (proxy.cut_before if when == "before" else proxy.cut_after)(b"COMMIT;")
            assert proxy.fired.is_set()
            assert store.is_retryable(lost.value)
            async with store.transaction() as transaction:
                await transaction.connection.execute(accounts.add, "ann", 5)
                holder = await transaction.append(second)
            assert holder.id == (second if when == "before" else first).id
            assert await store.list("run") == [holder]
    assert await accounts.balances() == {"ann": 5, "bob": 0}


@pytest.mark.parametrize("moment", ["begin", "commit"])
async def test_an_answer_that_never_comes(postgres_url: str, accounts: Accounts, moment: str) -> None:
    """A connection that goes silent, even at the commit, is noticed in bounded time, and worth another try."""
    hasty = with_limits(**{"statement" if moment == "begin" else "read": 0.2})
    parts = urlsplit(postgres_url)
    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with hasty.from_url(through) as store, asyncio.timeout(20):
            mine = record()
            if moment == "begin":
                async with store.transaction():
                    pass
                proxy.hold_answers()
            with pytest.raises(StoreError, match="the server did not answer in time") as lost:
                async with store.transaction() as transaction:
                    await transaction.connection.execute(accounts.add, "ann", 5)
                    await transaction.append(mine)
                    proxy.hold_answers()
            assert store.is_retryable(lost.value)
            async with store.transaction() as transaction:
                await transaction.connection.execute(accounts.add, "ann", 5)
                again = record()
                assert (await transaction.append(again)).id == (again if moment == "begin" else mine).id
    assert await accounts.balances() == {"ann": 5, "bob": 0}


async def test_an_append_without_an_answer(postgres_url: str) -> None:
    """A rival that neither commits nor rolls back is waited for in bounded time; what was done is worth another try."""
    async with with_limits(statement=0.2).from_url(postgres_url) as store, PostgresStore.from_url(postgres_url) as other:
        async with other.transaction() as rival:
            await rival.append(theirs := record())
            with pytest.raises(StoreError, match="lost during a transaction") as lost:
                async with store.transaction() as transaction:
                    await transaction.append(record())
        assert store.is_retryable(lost.value)
        assert await store.list("run") == [theirs]


async def test_a_connection_lost_within(postgres_url: str, accounts: Accounts) -> None:
    """A connection that the server ends in the middle is worth another try, however the function puts it."""
    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(StoreError) as lost:
            async with store.transaction() as transaction:
                await accounts.connection.execute(f"select pg_terminate_backend({transaction.connection.get_server_pid()}, 5000)")
                try:
                    await transaction.connection.execute(accounts.add, "ann", 5)
                except asyncpg.PostgresError:
                    raise RuntimeError("hidden by a library") from None
        assert store.is_retryable(lost.value)


async def test_a_cancelled_transaction(postgres_url: str, accounts: Accounts) -> None:
    """Cancellation, wherever it strikes, leaves nothing behind and no connection taken."""
    async with PostgresStore.from_url(f"{postgres_url}&pool_max=5") as store:

        async def work() -> None:
            async with store.transaction() as transaction:
                await transaction.connection.execute(accounts.add, "ann", 5)
                await transaction.connection.fetch("select pg_sleep(60)")

        for turns in range(0, 40, 3):
            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
        async with asyncio.timeout(10), store.transaction() as transaction:
            await transaction.append(record())
    assert await accounts.balances() == {"ann": 0, "bob": 0}


async def _waiter_on(connection: "asyncpg.Connection", pid: int) -> None:
    while not await connection.fetchval(
        "select exists (select from pg_stat_activity where $1 = any(pg_blocking_pids(pid)))", pid
    ):
        await asyncio.sleep(0.01)


async def test_an_error_that_caused_itself_is_a_failure_like_others(postgres_url: str) -> None:
    """`raise error from error` makes a ring of causes, in which nothing goes round for ever."""
    ring = ValueError("no such account")
    ring.__cause__ = ring
    assert not PostgresStore.from_url(postgres_url).is_retryable(ring)
