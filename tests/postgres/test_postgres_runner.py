"""`runner.transaction`: a step's own SQL and its record are one commit."""

import asyncio
from urllib.parse import urlsplit

import asyncpg
import pytest

from durable_core import MemoryStore, NestedStep, Runner, StepDrift, StepEvent, StepFailed, StepReused, StoreError
from durable_postgres import PostgresStore
from tests.postgres.test_postgres_transactions import Accounts, accounts
from tests.servers.proxy import proxied

__all__ = ["accounts"]
pytestmark = pytest.mark.asyncio


async def test_committed_together_and_replayed(postgres_url: str, accounts: Accounts) -> None:
    """The value comes back on every run, the work happens once."""

    async def credit(connection: asyncpg.Connection, amount: int) -> int:
        await connection.execute(accounts.add, "ann", amount)
        return amount

    async with PostgresStore.from_url(postgres_url) as store:
        for _ in range(2):
            async with Runner(store, "run") as runner:
                assert await runner.transaction("credit", credit, 5) == 5
                assert await runner.transaction("credit", credit, 5) == 5
        (record,) = await store.list("run")
        with pytest.warns(StepDrift):
            await Runner(store, "run").transaction("credit", credit, 6)
        with pytest.raises(StepReused):
            await runner.transaction("credit", credit, 6)
    assert (record.status, record.value(int), record.fingerprint is not None) == ("success", 5, True)
    assert await accounts.balances() == {"ann": 5, "bob": 0}


async def test_a_failure_rolls_back_and_is_recorded(postgres_url: str, accounts: Accounts) -> None:
    """What it wrote is gone; its failure is replayed like any other, after all its attempts."""
    events: list[str] = []

    async def credit(connection: asyncpg.Connection) -> None:
        await connection.execute(accounts.add, "ann", 5)
        raise ValueError("no")

    async with PostgresStore.from_url(postgres_url) as store:
        for _ in range(2):
            with pytest.raises(StepFailed, match="ValueError: no"):
                await Runner(store, "run", on_event=lambda event: events.append(event.type)).transaction(
                    "credit", credit, max_attempts=2
                )
        assert [record.status for record in await store.list("run")] == ["failure"]
    assert events == ["step:start", "step:retry", "step:start", "step:failure", "step:replay"]
    assert await accounts.balances() == {"ann": 0, "bob": 0}


async def test_a_value_that_cant_be_recorded_rolls_back(postgres_url: str, accounts: Accounts) -> None:
    """Unlike another step's, its effect has not happened."""

    async def credit(connection: asyncpg.Connection) -> float:
        await connection.execute(accounts.add, "ann", 5)
        return float("nan")

    async with PostgresStore.from_url(postgres_url) as store:
        with pytest.raises(StepFailed, match="nan"):
            await Runner(store, "run").transaction("credit", credit)
    assert await accounts.balances() == {"ann": 0, "bob": 0}


async def test_of_two_at_once_one_commits_and_both_get_its_value(postgres_url: str, accounts: Accounts) -> None:
    """The other's work rolls back."""
    both = asyncio.Barrier(2)
    values = iter("ab")

    async def credit(connection: asyncpg.Connection) -> str:
        await both.wait()
        await connection.execute(accounts.add, "ann", 5)
        return next(values)

    async with PostgresStore.from_url(postgres_url) as one, PostgresStore.from_url(postgres_url) as two:
        got = await asyncio.gather(*(Runner(store, "run").transaction("credit", credit) for store in (one, two)))
    assert got[0] == got[1]
    assert await accounts.balances() == {"ann": 5, "bob": 0}


async def test_a_deadlock_is_no_failure_and_no_attempt(postgres_url: str, accounts: Accounts) -> None:
    """The whole transaction runs again."""
    both = asyncio.Barrier(2)
    tries: list[str] = []
    events: list[StepEvent] = []

    def move(first: str, second: str) -> object:
        async def work(connection: asyncpg.Connection) -> None:
            tries.append(first)
            await connection.execute("set local deadlock_timeout = '10ms'")
            await connection.execute(accounts.add, first, 1)
            if len(tries) <= 2:
                await both.wait()
            await connection.execute(accounts.add, second, 1)

        return work

    async with PostgresStore.from_url(postgres_url) as store:
        await asyncio.gather(
            *(
                Runner(store, pair[0], on_event=events.append).transaction("move", move(*pair))  # type: ignore[arg-type]
                for pair in (("ann", "bob"), ("bob", "ann"))
            )
        )
    assert len(tries) == 3
    assert [event.type for event in events].count("step:retry") == 0
    assert await accounts.balances() == {"ann": 2, "bob": 2}


@pytest.mark.parametrize("conflicts", [1, 1000])
async def test_a_conflict_is_no_failure_however_long_the_function_takes(postgres_url: str, conflicts: int) -> None:
    """`store_timeout` counts from the first conflict; when it ends, nothing is recorded and the run can be run again."""
    tries: list[None] = []

    async def work(connection: asyncpg.Connection) -> None:
        tries.append(None)
        await connection.execute("select pg_sleep(0.3)")
        if len(tries) <= conflicts:
            await connection.execute("do $$ begin raise exception 'met another' using errcode = '40001'; end $$")

    async with PostgresStore.from_url(postgres_url) as store:
        transaction = Runner(store, "run", store_timeout=0.2).transaction("work", work)
        if conflicts == 1:
            await transaction
        else:
            with pytest.raises(StoreError, match=r"rolled back 2 times.* nothing was recorded.* met another"):
                await transaction
        assert [record.status for record in await store.list("run")] == ["success"] * (conflicts == 1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_connection_cut_around_the_commit(postgres_url: str, accounts: Accounts, when: str) -> None:
    """Not committed, it runs again; committed with the answer lost, it is found."""
    parts = urlsplit(postgres_url)

    async def credit(connection: asyncpg.Connection) -> str:
        await connection.execute(accounts.add, "ann", 5)
        return "done"

    with proxied(parts.port or 5432) as proxy:
        through = parts._replace(netloc=f"postgres@127.0.0.1:{proxy.port}").geturl()
        async with PostgresStore.from_url(through) as store:
            runner = Runner(store, "run")
            await runner.history()
            (proxy.cut_before if when == "before" else proxy.cut_after)(b"COMMIT;")
            assert await runner.transaction("credit", credit) == "done"
            assert proxy.fired.is_set()
            assert [record.status for record in await runner.history()] == ["success"]
    assert await accounts.balances() == {"ann": 5, "bob": 0}


async def test_cancelled_inside_nothing_is_left(postgres_url: str, accounts: Accounts) -> None:
    """Neither the work nor a record."""
    inside = asyncio.Event()

    async def credit(connection: asyncpg.Connection) -> None:
        await connection.execute(accounts.add, "ann", 5)
        inside.set()
        await asyncio.Event().wait()

    async with PostgresStore.from_url(postgres_url) as store:
        task = asyncio.create_task(Runner(store, "run").transaction("credit", credit))
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(await store.list("run")) == []
    assert await accounts.balances() == {"ann": 0, "bob": 0}


async def test_a_step_inside_a_transaction_is_refused(postgres_url: str, accounts: Accounts) -> None:
    """Nothing of either is committed."""
    async with PostgresStore.from_url(postgres_url) as store:
        runner = Runner(store, "run")

        async def credit(connection: asyncpg.Connection) -> None:
            await connection.execute(accounts.add, "ann", 5)
            await runner.step("inner", lambda: 1)

        with pytest.raises(NestedStep):
            await runner.transaction("credit", credit)
        assert list(await store.list("run")) == []
    assert await accounts.balances() == {"ann": 0, "bob": 0}


async def test_what_can_be_no_transaction() -> None:
    """Each slip gets one clear error before anything runs."""

    async def work(connection: object) -> None: ...

    with pytest.raises(TypeError, match="no transactions.*durable-sqlite"):
        await Runner(MemoryStore(), "run").transaction("a", work)
    store = PostgresStore.from_url("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TypeError, match="must be async"):
        await Runner(store, "run").transaction("a", print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="at_most_once"):
        await Runner(store, "run").transaction("a", work, at_most_once=True)
