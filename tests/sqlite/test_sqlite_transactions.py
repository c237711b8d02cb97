"""`runner.transaction` on SQLite: a step's own SQL and its record are one commit."""

import asyncio
import functools
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from durable_core import (
    LockLost,
    NestedStep,
    Runner,
    StepDrift,
    StepFailed,
    StepRecord,
    StepReused,
    StoreError,
    current_step,
)
from durable_sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database that holds a table of somebody's own."""
    path = tmp_path / "app.db"
    outside(path, "create table accounts (name text primary key, balance integer)")
    outside(path, "insert into accounts values ('ann', 0), ('bob', 0)")
    return path


def outside(path: Path, sql: str) -> list[tuple[object, ...]]:
    """Do as another program does."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def balances(path: Path) -> dict[object, object]:
    return dict(outside(path, "select name, balance from accounts"))


def credit(connection: sqlite3.Connection, name: str, amount: int) -> int:
    connection.execute("update accounts set balance = balance + ? where name = ?", (amount, name))
    return amount


async def test_committed_together_and_replayed(path: Path) -> None:
    """The value comes back on every run, the work happens once."""
    async with SqliteStore(path) as store:
        for _ in range(2):
            async with Runner(store, "run") as runner:
                assert await runner.transaction("credit", credit, "ann", 5) == 5
                assert await runner.transaction("credit", credit, "ann", 5) == 5
        (record,) = await store.list("run")
        with pytest.warns(StepDrift):
            await Runner(store, "run").transaction("credit", credit, "ann", 6)
        with pytest.raises(StepReused):
            await runner.transaction("credit", credit, "ann", 6)
    assert (record.status, record.value(int), record.fingerprint is not None) == ("success", 5, True)
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_a_failure_rolls_back_and_is_recorded(path: Path) -> None:
    """What it wrote is gone; its failure is replayed like any other, after all its attempts."""
    events: list[str] = []

    def fail(connection: sqlite3.Connection) -> None:
        credit(connection, "ann", 5)
        connection.execute("insert into accounts values ('ann', 1)")

    async with SqliteStore(path) as store:
        for _ in range(2):
            runner = Runner(store, "run", on_event=lambda event: events.append(event.type))
            with pytest.raises(StepFailed, match="IntegrityError") as failed:
                await runner.transaction("credit", fail, max_attempts=2)
            assert failed.value.error.matches(sqlite3.IntegrityError)
        assert [record.status for record in await store.list("run")] == ["failure"]
    assert events == ["step:start", "step:retry", "step:start", "step:failure", "step:replay"]
    assert balances(path) == {"ann": 0, "bob": 0}


async def test_a_value_that_cant_be_recorded_rolls_back(path: Path) -> None:
    """Unlike another step's, its effect has not happened."""

    def work(connection: sqlite3.Connection) -> float:
        credit(connection, "ann", 5)
        return float("nan")

    async with SqliteStore(path) as store:
        with pytest.raises(StepFailed, match="nan"):
            await Runner(store, "run").transaction("credit", work)
    assert balances(path) == {"ann": 0, "bob": 0}


async def test_of_two_at_once_one_commits_and_both_get_its_value(path: Path) -> None:
    """The other's work rolls back; there is one writer, so that it begins after the first one's commit."""
    values = iter("ab")

    def work(connection: sqlite3.Connection) -> str:
        credit(connection, "ann", 5)
        return next(values)

    async with SqliteStore(path) as one, SqliteStore(path) as two:
        runners = [Runner(store, "run") for store in (one, two)]
        for runner in runners:
            await runner.step("first", lambda: None)  # it has read the log now, so that it doesn't find what the other commits
        got = await asyncio.gather(*(runner.transaction("credit", work) for runner in runners))
    assert got == ["a", "a"]
    assert next(values, None) is None
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_a_transaction_that_lost_its_slot(path: Path) -> None:
    """What it wrote is rolled back where another process had decided the step before it could begin."""
    winner = StepRecord(run_id="run", step_id="credit", result=b"7")
    async with SqliteStore(path) as store, SqliteStore(path) as other:
        runner = Runner(store, "run")
        await runner.step("first", lambda: None)  # it has read the log now
        await other.append(winner)
        assert await runner.transaction("credit", lambda connection: credit(connection, "ann", 5)) == 7
    assert balances(path) == {"ann": 0, "bob": 0}


async def test_nobody_else_writes_meanwhile(path: Path) -> None:
    """What the function read is true until its commit: nobody gets between what it reads and what it writes."""

    def work(connection: sqlite3.Connection) -> int:
        (balance,) = connection.execute("select balance from accounts where name = 'ann'").fetchone()
        with closing(sqlite3.connect(path, timeout=0)) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("update accounts set balance = 90")
        return credit(connection, "ann", balance + 5)

    async with SqliteStore(path) as store:
        assert await Runner(store, "run").transaction("credit", work) == 5
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_appends_wait_until_it_has_ended(path: Path) -> None:
    """What others append meanwhile is neither committed with it nor rolled back with it, and the loop goes on."""
    entered, leave = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        credit(connection, "ann", 5)
        entered.set()
        leave.wait(30)
        raise ValueError("no")

    async with SqliteStore(path) as store:
        transaction = asyncio.create_task(Runner(store, "run").transaction("credit", work))
        await asyncio.to_thread(entered.wait, 30)
        appends = asyncio.gather(*(store.append(StepRecord(run_id="other", step_id=f"{n}")) for n in range(3)))
        await asyncio.sleep(0)
        assert outside(path, "select count(*) from durable_steps") == [(0,)]
        leave.set()
        with pytest.raises(StepFailed, match="ValueError: no"):
            await transaction
        assert len(await appends) == len(await store.list("other")) == 3
    assert balances(path) == {"ann": 0, "bob": 0}


ENDINGS: dict[str, Callable[[sqlite3.Connection], object]] = {
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "execute": lambda connection: connection.execute("commit"),
    "with": lambda connection: connection.__exit__(None, None, None),
    "executescript": lambda connection: connection.executescript("select 1"),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("is_caught", [False, True])
async def test_it_cant_be_ended_by_hand(path: Path, ending: str, is_caught: bool) -> None:
    """A function that commits or rolls back is told to leave that to the runner; nothing is written, nothing is recorded."""

    def work(connection: sqlite3.Connection) -> None:
        credit(connection, "ann", 5)
        try:
            ENDINGS[ending](connection)
        except sqlite3.Error:
            if not is_caught:
                raise

    async with SqliteStore(path) as store:
        with pytest.raises(StoreError, match="leave that to the runner"):
            await Runner(store, "run").transaction("credit", work)
        assert await store.list("run") == []
        assert balances(path) == {"ann": 0, "bob": 0}
        assert await Runner(store, "run").transaction("credit", credit, "ann", 5) == 5
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_a_savepoint_is_the_functions_own(path: Path) -> None:
    """A part of the work may be rolled back."""

    def work(connection: sqlite3.Connection) -> None:
        credit(connection, "ann", 5)
        connection.execute("savepoint trial")
        credit(connection, "bob", 7)
        connection.execute("rollback to trial")

    async with SqliteStore(path) as store:
        await Runner(store, "run").transaction("credit", work)
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_async_functions_are_refused(path: Path) -> None:
    """A coroutine function is refused before anything runs; a coroutine that comes of a plain one, before anything is written."""

    async def work(connection: sqlite3.Connection) -> None:
        raise AssertionError

    async with SqliteStore(path) as store:
        for fn in (work, functools.partial(work)):
            with pytest.raises(TypeError, match="'credit' is async, but this store has one writer.*make it a plain function"):
                await Runner(store, "run").transaction("credit", fn)
        with pytest.raises(TypeError, match="at_most_once"):
            await Runner(store, "run").transaction("credit", credit, "ann", 5, at_most_once=True)
        with pytest.raises(TypeError, match="'credit' returned an awaitable, but this store has one writer"):
            await Runner(store, "run").transaction("credit", lambda connection: work(connection))
        assert await store.list("run") == []


async def test_its_context_is_a_steps(path: Path) -> None:
    """Inside, `current_step` tells where it is, and a step of the same runner is an error that isn't recorded."""

    async with SqliteStore(path) as store:
        runner = Runner(store, "run")

        def work(connection: sqlite3.Connection) -> str:
            credit(connection, "ann", 5)
            return current_step().step_id

        def nested(connection: sqlite3.Connection) -> None:
            credit(connection, "ann", 5)
            runner.step("inner", print)

        assert await runner.transaction("tell", work) == "tell"
        with pytest.raises(NestedStep):
            await runner.transaction("nested", nested)
        assert [record.step_id for record in await store.list("run")] == ["tell"]
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_a_cancellation_waits_for_the_commit(path: Path) -> None:
    """The thread can't be stopped: what it committed is known, and then the caller is cancelled."""
    entered, leave = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> int:
        entered.set()
        leave.wait(30)
        return credit(connection, "ann", 5)

    async with SqliteStore(path) as store:
        runner = Runner(store, "run")
        transaction = asyncio.create_task(runner.transaction("credit", work))
        await asyncio.to_thread(entered.wait, 30)
        transaction.cancel()
        await asyncio.sleep(0)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await transaction
        assert runner.recorded("credit") in await store.list("run")
    assert balances(path) == {"ann": 5, "bob": 0}


async def test_a_lost_lock_is_seen_last(path: Path) -> None:
    """Whoever lost the run's lock while the writer was busy does nothing."""
    async with SqliteStore(path) as store:
        with pytest.raises(LockLost):
            async with Runner(store, "run") as runner:
                entered, leave = threading.Event(), threading.Event()

                def hold(connection: sqlite3.Connection) -> None:
                    entered.set()
                    leave.wait(30)

                holding = asyncio.create_task(store.transact(hold))
                await asyncio.to_thread(entered.wait, 30)
                transaction = asyncio.create_task(runner.transaction("credit", credit, "ann", 5))
                await asyncio.sleep(0.1)  # until its own look at the lock has passed, which lasts for 50 ms
                for file in (path.parent / ".durable.locks").iterdir():
                    file.unlink()
                leave.set()
                await holding
                await transaction
    assert balances(path) == {"ann": 0, "bob": 0}


async def test_errors_of_the_work_pass_as_they_are(path: Path) -> None:
    """Whoever calls `transact` gets the error of the function, and the store goes on."""

    def work(connection: sqlite3.Connection) -> None:
        credit(connection, "ann", 5)
        raise ZeroDivisionError

    async with SqliteStore(path) as store:
        with pytest.raises(ZeroDivisionError):
            await store.transact(work)
        mine = StepRecord(run_id="run", step_id="debit")
        assert await store.transact(lambda connection: mine) is mine
        rival = StepRecord(run_id="run", step_id="debit")
        assert await store.transact(lambda connection: rival) == mine
        assert await store.list("run") == [mine]
    assert balances(path) == {"ann": 0, "bob": 0}
