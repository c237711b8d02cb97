"""The database file: opened when it is needed, shared with other programs, and what is wrong with it."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import threading
from collections.abc import Callable, Coroutine
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durable_core import CorruptLog, LockLost, RunBusy, Runner, StepRecord, StoreError
from durable_core.stores.flows import FLOW
from durable_core.testing import FakeClock
from durable_sqlite import SqliteStore

HOUR = timedelta(hours=1)


def step(step_id: str, run_id: str = "run", **fields: Any) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, **fields)


def flow(run_id: str) -> StepRecord:
    return StepRecord(run_id=run_id, step_id=FLOW, kind="flow", status="started", name="pay")


def outside(path: Path, sql: str, *values: object) -> list[Any]:
    """Do as another program does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()


async def read_all(store: SqliteStore) -> None:
    """Read in each of the ways that there are; each of them raises the same."""
    ways: list[Callable[[], Coroutine[Any, Any, object]]] = [
        lambda: store.append(step("a")),
        lambda: store.get("run", "a"),
        lambda: store.list("run"),
        lambda: store.clear("run"),
        lambda: store.newer([("run", "a", -1)]),
        lambda: store.flows(),
        lambda: store.set_wakeup("run", "pay", datetime.now(UTC)),
        lambda: store.take_wakeups(["pay"], limit=1, visibility_timeout=HOUR),
        lambda: store.clear_wakeups([]),
        lambda: store.transact(lambda connection: step("a")),
        lambda: anext(store.runs()),  # type: ignore[arg-type, return-value]
        lambda: anext(store.scan("run")),  # type: ignore[arg-type, return-value]
    ]
    errors = [error for error in [await _error(way) for way in ways] if error is not None]
    assert len(errors) == len(ways)
    assert len({*map(str, errors)}) == 1
    raise errors[0]


async def _error(way: Callable[[], Coroutine[Any, Any, object]]) -> StoreError | None:
    try:
        await way()
    except StoreError as error:
        return error
    return None


async def test_what_is_no_database(path: Path) -> None:
    """A file of another kind is one clear error, however it is asked, and stays as it is."""
    path.write_text("notes on the runs\n" * 100)
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match=r"runs\.db is not a SQLite database, or it is damaged"):
            await read_all(store)
    assert path.read_text() == "notes on the runs\n" * 100


async def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    """The error tells what to name instead."""
    async with SqliteStore(tmp_path) as store:
        with pytest.raises(StoreError, match=r"is a folder; name a file in it, such as .*runs\.db"):
            await read_all(store)


async def test_no_folder(tmp_path: Path) -> None:
    """A folder that isn't there may be a slip of the pen, and is not made."""
    async with SqliteStore(tmp_path / "rnus" / "runs.db") as store:
        with pytest.raises(StoreError, match=r"there is no folder .*rnus; make it first"):
            await read_all(store)
        with pytest.raises(StoreError, match=r"rnus.*No such file or directory"):
            async with store.lock("run"):
                pass
    assert [*tmp_path.iterdir()] == []


async def test_tables_of_a_newer_version(path: Path) -> None:
    """They are not touched."""
    async with SqliteStore(path) as store:
        await store.append(step("a"))
    outside(path, "update durable_layout set version = 2")
    async with SqliteStore(path) as store:
        with pytest.raises(StoreError, match=r"runs\.db: its tables have layout 2, .* knows up to 1: upgrade durable-sqlite"):
            await read_all(store)


async def test_a_closed_store(path: Path) -> None:
    """It says so, until it is entered again; its file is in one piece then, and nothing of it is open."""
    store = SqliteStore(path)
    async with store:
        await store.append(step("a"))
    assert [*path.parent.iterdir()] == [path]
    with pytest.raises(StoreError, match=r"SqliteStore\('.*'\) is closed"):
        await read_all(store)
    with pytest.raises(StoreError, match="is closed"):
        async with store.lock("run"):
            pass
    async with store:
        assert len(await store.list("run")) == 1


async def test_a_run_that_waits_when_its_store_is_closed(path: Path) -> None:
    """It ends with an error and gives its lock back, so that others can continue the run."""
    async with SqliteStore(path) as store:
        runner = Runner(store, "run")
        await runner.__aenter__()
        wait = asyncio.create_task(runner.event("paid"))
        while await store.get("run", "paid") is None:
            await asyncio.sleep(0.01)
    with pytest.raises(LockLost, match=r"run 'run': SqliteStore\('.*'\) was closed"):
        await asyncio.wait_for(wait, 10)
    await runner.__aexit__(None, None, None)
    async with SqliteStore(path) as store, store.lock("run"):
        pass


async def test_nothing_is_left_of_a_forgotten_store(path: Path) -> None:
    """A store that nobody closed leaves no thread and no open file when it is forgotten, and no warning."""
    before = {*threading.enumerate()}
    store: SqliteStore | None = SqliteStore(path)
    assert store is not None
    await store.append(step("a"))
    store = None
    gc.collect()
    async with asyncio.timeout(30):
        while {*threading.enumerate()} - before:
            await asyncio.sleep(0.001)
    assert [*path.parent.iterdir()] == [path]


def test_any_event_loop(path: Path) -> None:
    """One store serves loops one after the other, and several at the same time."""
    store = SqliteStore(path)

    async def write(name: str) -> None:
        await asyncio.gather(*(store.append(step(f"{name}-{n}")) for n in range(50)))
        assert await store.get("run", f"{name}-49") is not None

    async def close() -> None:
        async with store:
            assert len(await store.list("run")) == 250

    asyncio.run(write("before"))
    threads = [threading.Thread(target=asyncio.run, args=(write(f"thread-{n}"),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store._writers) <= 5
    asyncio.run(close())


async def test_a_file_that_was_removed_or_replaced(path: Path) -> None:
    """What is appended goes to the file that stands at the path, and never to one that nobody finds any more."""
    async with SqliteStore(path) as store, SqliteStore(path.with_name("other.db")) as other:
        await store.append(step("old"))
        for file in path.parent.glob("runs.db*"):
            file.unlink()
        await store.append(step("new"))
        assert [record.step_id for record in await store.list("run")] == ["new"]
        await other.append(step("other"))
    async with SqliteStore(path) as store:
        await store.list("run")
        path.with_name("other.db").replace(path)
        assert [record.step_id for record in await store.list("run")] == ["other"]


@pytest.fixture
def locked(path: Path) -> Any:
    """Another program that holds the database locked."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        yield connection


async def test_a_locked_database(path: Path, locked: sqlite3.Connection) -> None:
    """Who writes waits until another program lets go, and gives up with a clear error; who reads waits for nobody."""
    async with SqliteStore(path, lock_timeout=0.2) as store:
        await store.append(step("a"))
        locked.execute("begin immediate")
        with pytest.raises(StoreError, match=r"runs\.db: another program has held it locked for 0\.2 s"):
            await store.append(step("b"))
        assert len(await store.list("run")) == 1
        assert await store.take_wakeups(["pay"], limit=9, visibility_timeout=HOUR) == ()
        locked.execute("commit")
        await store.append(step("b"))
    async with SqliteStore(path) as store:
        locked.execute("begin immediate")
        waiting = asyncio.create_task(store.append(step("c")))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        locked.execute("commit")
        await waiting


async def test_locked_while_it_is_opened(path: Path, locked: sqlite3.Connection) -> None:
    """So it is for a database that is not yet ours."""
    locked.execute("begin exclusive")
    async with SqliteStore(path, lock_timeout=0.2) as store:
        with pytest.raises(StoreError, match=r"another program has held it locked for 0\.2 s"):
            await store.list("run")
        locked.execute("commit")
        assert await store.list("run") == []


async def test_many_processes_make_the_tables_at_once(path: Path) -> None:
    """Stores that open a new file at the same time all find one set of tables."""
    stores = [SqliteStore(path) for _ in range(12)]
    await asyncio.gather(*(store.append(step(f"{n}")) for n, store in enumerate(stores)))
    assert len(await stores[0].list("run")) == 12
    for store in stores:
        await store.__aexit__(None, None, None)


async def test_a_full_database(path: Path) -> None:
    """SQLite's own word for a full disk is passed on, nothing is lost, and there may be room again."""
    async with SqliteStore(path) as store:
        await store.append(step("a"))

        def fill(connection: sqlite3.Connection) -> None:
            connection.execute(f"pragma max_page_count = {connection.execute('pragma page_count').fetchone()[0]}")

        await store.transact(fill)
        with pytest.raises(StoreError, match="the disk is full, and nothing was written"):
            await store.append(step("b", result=b'"' + b"x" * 100_000 + b'"'))
        await store.append(step("b"))
        assert [record.step_id for record in await store.list("run")] == ["a", "b"]


async def test_durable_when_the_commit_returns(path: Path) -> None:
    """The write-ahead log is synced at each commit."""
    async with SqliteStore(path) as store:

        def settings(connection: sqlite3.Connection) -> None:
            names = ("journal_mode", "synchronous", "fullfsync", "checkpoint_fullfsync")
            found.extend(connection.execute(f"pragma {name}").fetchone()[0] for name in names)

        found: list[object] = []
        await store.transact(settings)
    assert found == ["wal", 2, 1, 1]


async def test_one_commit_for_appends_that_wait_together(path: Path) -> None:
    """Among a thousand appends at once most share a commit."""
    async with SqliteStore(path) as store:
        await store.append(step("first"))
        before = path.with_name("runs.db-wal").stat().st_size
        await asyncio.gather(*(store.append(step(f"{n}")) for n in range(1_000)))
        pages = (path.with_name("runs.db-wal").stat().st_size - before) / 4_096
        assert pages < 1_000  # a commit of its own writes four


DAMAGE = {
    "status": "'unheard'",
    "revision": "'one'",
    "attempt": "1.5",
    "name": "x'00'",
    "result": "'{'",
    "error": "'[]'",
    "note": "'{'",
    "until": "'yesterday'",
    "started_at": "'2026-01-01T00:00:00'",
    "ended_at": "17",
    "id": "x'00'",
    "fingerprint": "x'00'",
    "step_id": "x'00'",
}


@pytest.mark.parametrize("column", DAMAGE)
async def test_damaged_rows(path: Path, column: str) -> None:
    """Whatever stands in a row without a checksum, as of an earlier version, its reader is told where; other runs are read."""
    async with SqliteStore(path) as store:
        await store.append(step("a", result=b"1"))
        await store.append(step("a", "other"))
        outside(path, f"update durable_steps set crc = null, {column} = {DAMAGE[column]} where run_id = 'run'")
        place = r"runs\.db: the row of run 'run', step .*, revision .* (is not a step record|was written by a newer version)"
        with pytest.raises(CorruptLog, match=place):
            await store.list("run")
        with pytest.raises(CorruptLog, match=place):
            [record async for record in store.scan("run")]
        if column not in ("step_id", "revision"):
            with pytest.raises(CorruptLog, match=place):
                await store.get("run", "a")
            with pytest.raises(CorruptLog, match=place):
                await store.append(step("a"))
            appends = asyncio.gather(*(store.append(step("a", run)) for run in ("x", "run", "y")), return_exceptions=True)
            assert [isinstance(result, CorruptLog) for result in await appends] == [False, True, False]
        assert len(await store.list("other")) == 1


CHANGES = {
    "status": "'failure'",
    "kind": "'flow'",
    "name": "'b'",
    "result": "'2'",
    "error": """'{"type":"OSError"}'""",
    "note": "'{}'",
    "until": "'2026-01-01T00:00:00.000000+00:00'",
    "attempt": "2",
    "started_at": "'2026-01-01T00:00:00.000000+00:00'",
    "ended_at": "'2026-01-01T00:00:00.000000+00:00'",
    "id": "'0'",
    "fingerprint": "'0'",
    "crc": "0",
}


@pytest.mark.parametrize("column", CHANGES)
async def test_changed_rows(path: Path, column: str) -> None:
    """A row that would be a record, but is not the one that was written, is refused by each reader; other runs are read."""
    async with SqliteStore(path) as store:
        await store.append(step("a", result=b"1"))
        await store.append(step("a", "other"))
        outside(path, f"update durable_steps set {column} = {CHANGES[column]} where run_id = 'run'")
        ways: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: store.list("run"),
            lambda: store.get("run", "a"),
            lambda: store.append(step("a")),
            lambda: anext(store.scan("run")),  # type: ignore[arg-type, return-value]
            lambda: store.newer([("run", "a", -1)]),
        ]
        for way in ways:
            with pytest.raises(
                CorruptLog, match=r"runs\.db: the row of run 'run', step 'a', revision 0: its checksum doesn't match"
            ):
                await way()
        assert len(await store.list("other")) == 1


async def test_a_row_without_a_checksum(path: Path) -> None:
    """An earlier version goes on with the same file, and this one reads what it wrote."""
    async with SqliteStore(path) as store:
        written = await store.append(step("a", result=b"1"))
        columns = ", ".join(StepRecord.__struct_fields__)
        values = columns.replace("run_id", "'old'")
        outside(path, f"insert into durable_steps ({columns}) select {values} from durable_steps")
        assert await store.list("old") == [msgspec.structs.replace(written, run_id="old")]


async def test_text_that_is_no_utf8(path: Path) -> None:
    """It is damage, too; where the row has no checksum, only the column is named."""
    async with SqliteStore(path) as store:
        await store.append(step("a"))
        outside(path, "update durable_steps set name = cast(x'ff' as text)")
        place = r"runs\.db: the row of run 'run', step 'a', revision 0: its checksum doesn't match"
        with pytest.raises(CorruptLog, match=place):
            await store.list("run")
        with pytest.raises(CorruptLog, match=place):
            await store.get("run", "a")
        outside(path, "update durable_steps set crc = null")
        with pytest.raises(CorruptLog, match=r"runs\.db is damaged: Could not decode to UTF-8 column 'name'"):
            await store.list("run")


async def test_damaged_pages(path: Path) -> None:
    """What SQLite finds damaged is `CorruptLog`."""
    async with SqliteStore(path) as store:
        for n in range(200):
            await store.append(step(f"{n}"))
    data = bytearray(path.read_bytes())
    data[8_192:] = b"\xa5" * (len(data) - 8_192)
    path.write_bytes(data)
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match=r"runs\.db is not a SQLite database, or it is damaged"):
            await store.list("run")


async def test_one_damaged_run_hides_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Looks at many runs pass over it, and say so where there is nothing else."""
    async with SqliteStore(path) as store:
        for run_id in ("one", "two", "three"):
            await store.append(flow(run_id))
        outside(path, "update durable_steps set note = '{' where run_id = 'three'")
        known = [(run_id, FLOW, -1) for run_id in ("one", "two", "three")]
        assert [record.run_id for record in await store.newer(known)] == ["one", "two"]
        with pytest.raises(CorruptLog, match="run 'three'"):
            await store.newer(known[2:])
        with caplog.at_level(logging.WARNING, "durable_sqlite"):
            assert [record.run_id for record in await store.flows(limit=2)] == ["two", "one"]
        assert "run 'three'" in caplog.text
        with pytest.raises(CorruptLog, match="run 'three'"):
            await store.flows("three")
        outside(path, "delete from durable_steps where run_id = 'three'")
        with pytest.raises(CorruptLog, match="the table durable_flows has run 'three' at revision 0, but durable_steps doesn't"):
            await store.flows("three")


async def test_a_damaged_wakeup_hides_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is passed over for as long as one that was taken, and told."""
    clock = FakeClock()
    async with SqliteStore(path, clock=clock) as store:
        for run_id in ("one", "two", "three"):
            await store.set_wakeup(run_id, "pay", clock.now())
        outside(path, "update durable_wakeups set at = 'soon' where run_id = 'two'")
        outside(path, "update durable_wakeups set run_id = x'00' where run_id = 'three'")
        with caplog.at_level(logging.WARNING, "durable_sqlite"):
            taken = await store.take_wakeups(["pay"], limit=9, visibility_timeout=HOUR)
        assert [wakeup.run_id for wakeup in taken] == ["one"]
        assert "of run 'two' is damaged" in caplog.text
        assert len(caplog.records) == 2
        assert await store.take_wakeups(["pay"], limit=9, visibility_timeout=HOUR) == ()


async def test_tables_that_are_not_ours(path: Path) -> None:
    """Tables that lack a column, or have one of another type, are not touched."""
    async with SqliteStore(path) as store:
        await store.append(step("a"))
    outside(path, "alter table durable_steps rename column note to remark")
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match=r"its tables should have the columns \[\('durable_steps', 'note', 'TEXT'\)\]"):
            await read_all(store)


async def test_what_no_row_can_hold(path: Path) -> None:
    """A number beyond 64 bits is refused, and takes no other append along."""
    async with SqliteStore(path) as store:
        records = [step("a"), step("b", revision=2**63), step("c", attempt=2**70), step("d")]
        results = await asyncio.gather(*map(store.append, records), return_exceptions=True)
        assert [isinstance(result, StoreError) for result in results] == [False, True, True, False]
        assert "larger than what SQLite holds" in str(results[1])


async def test_people_can_query_it(path: Path) -> None:
    """SQL finds steps by column, reads JSON and compares times."""
    async with SqliteStore(path) as store:
        await store.append(step("charge", result=b'{"amount": 90}', note={"by": "ann"}))
    sql = "select step_id, json_extract(result, '$.amount'), json_extract(note, '$.by') from durable_steps"
    assert outside(path, f"{sql} where started_at > datetime('now', '-1 hour')") == [("charge", 90, "ann")]
    assert outside(path, f"{sql} where julianday(started_at) > julianday('now', '+1 hour')") == []


async def test_wakeups_by_a_clock_of_ones_own(path: Path) -> None:
    """`clock=` tells when they are due and when they show again."""
    clock = FakeClock()
    async with SqliteStore(path, clock=clock) as store:
        wakeup = await store.set_wakeup("run", "pay", clock.now() + HOUR)
        assert await store.take_wakeups(["pay"], limit=9, visibility_timeout=HOUR) == ()
        clock.advance(3600)
        for _ in range(2):
            (taken,) = await store.take_wakeups(["pay"], limit=9, visibility_timeout=HOUR)
            assert (taken.token, taken.now) == (wakeup.token, clock.now())
            assert await store.take_wakeups(["pay"], limit=9, visibility_timeout=HOUR) == ()
            clock.advance(3600)


async def test_locks_of_two_databases_in_one_folder(path: Path) -> None:
    """A run of one is no run of the other; of one database all stores see one lock."""
    async with (
        SqliteStore(path) as store,
        SqliteStore(path) as same,
        SqliteStore(path.with_name("b.db")) as other,
        store.lock("run"),
        other.lock("run"),
    ):
        with pytest.raises(RunBusy):
            async with same.lock("run"):
                pass
