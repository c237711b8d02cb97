"""Files that were damaged: what is read is right, or a clear error says what is wrong with them; nothing hangs."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_core import (
    CorruptLog,
    DurableError,
    OpenableStore,
    Runner,
    RunSuspended,
    StepRecord,
    StoreError,
    control,
    flow,
)
from durable_file import FileStore
from durable_file._lines import seal
from durable_sqlite import SqliteStore
from tests.fuzz.fuzzing import EXAMPLES, VALUES, damaged, fuzzed, json_bytes, kept
from tests.fuzz.test_records import GOOD, other_fields

_LONG = EXAMPLES >= 1_000
_WITHIN = 60.0  # seconds, which only bound a hang


@flow(wait_limit=0)
async def order(runner: Runner, item: str) -> None:
    await runner.step("charge", lambda: {"item": item}, returns=dict)
    await runner.approval("ok", {"item": item})


async def fill(store: OpenableStore) -> None:
    async with store:
        for number in range(4):
            with suppress(RunSuspended):
                await order.run(store, f"run-{number}", item=f"chair {number}")


async def read(store: OpenableStore) -> list[Any]:
    """Return all that a store tells of its runs."""
    async with store:
        told: list[Any] = [status async for status in control.runs(store)]
        told += [await store.list(f"run-{number}") for number in range(4)]
        told += [await store.get("run-1", "charge"), [each async for each in control.pending(store)]]
        if isinstance(store, SqliteStore):
            told.append([run_id async for run_id in store.runs()])
            told.append(
                sorted(each.run_id for each in await store.take_wakeups(["order"], limit=9, visibility_timeout=timedelta(9)))
            )
            told.append([each async for each in store.scan("run-2")])
        return told


async def append(store: OpenableStore) -> None:
    async with store:
        await store.append(StepRecord(run_id="run-1", step_id="more"))
        assert (await store.get("run-1", "more")) is not None


async def try_all(store: OpenableStore) -> list[Any] | None:
    """Return what a store tells, None where it says that it is damaged; then append to it, which it may refuse."""
    told = None
    with suppress(StoreError):
        told = await asyncio.wait_for(read(store), _WITHIN)
    with suppress(StoreError):
        await asyncio.wait_for(append(store), _WITHIN)
    return told


def places(size: int, step: int) -> range:
    """Return the places to damage: each in a long run, and some else."""
    return range(0, size, 1 if _LONG else step)


# The file store


async def test_a_log_with_a_changed_byte_anywhere(tmp_path: Path) -> None:
    """It is refused, its last line end included. Only a NUL there looks as if the last append had never returned."""
    path = tmp_path / "all.jsonl"
    async with FileStore(path) as store:
        for run_id in ("r", "other", "r"):
            await store.append(StepRecord(run_id=run_id, step_id=str(path.exists())))
    good = path.read_bytes()
    ends = {at for at, byte in enumerate(good) if byte == 10}
    for at in sorted({*places(len(good), 23), *ends}):
        for byte in {good[at] ^ 1 << at % 8, good[at] ^ 0xFF, ord("\n"), ord(" ")} - {good[at]}:
            bad = bytearray(good)
            bad[at] = byte
            path.write_bytes(bad)
            async with FileStore(path) as store:
                more = StepRecord(run_id="r", step_id="more")
                for ask in (partial(store.list, "r"), partial(store.append, more), partial(_scan, store, "r")):
                    with pytest.raises(CorruptLog, match=r"all\.jsonl, (line \d|last line): "):
                        await ask()
            assert path.read_bytes() == bad


async def _scan(store: FileStore, run_id: str) -> list[StepRecord]:
    return [record async for record in store.scan(run_id)]


async def test_a_log_cut_off_anywhere(tmp_path: Path) -> None:
    """What stands before the cut in whole lines is read, and no more; then the log goes on."""
    path = tmp_path / "all.jsonl"
    async with FileStore(path) as store:
        records = [await store.append(StepRecord(run_id="r", step_id=str(number))) for number in range(4)]
    good = path.read_bytes()
    for size in places(len(good), 23):
        path.write_bytes(good[:size])
        whole = records[: good[:size].count(b"\n")]
        async with FileStore(path) as store:
            assert [*await store.list("r")] == whole
            assert await _scan(store, "r") == whole
            more = await store.append(StepRecord(run_id="r", step_id="more"))
            assert [*await store.list("r")] == [*whole, more]


LINES = damaged(GOOD) | other_fields() | GOOD | VALUES.map(json_bytes)


def check_lines(bodies: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "all.jsonl"
        path.write_bytes(b"".join(seal(body.replace(b"\n", b"") or b"{}") + b"\n" for body in bodies))

        async def look() -> None:
            async with FileStore(path) as store:
                for run_id in ("run-1", "r"):
                    with suppress(StoreError):
                        records = [*await store.list(run_id)]
                        assert await _scan(store, run_id) == records
                        assert {record.run_id for record in records} <= {run_id}
                    with suppress(StoreError):
                        await store.get(run_id, "charge")
                with suppress(DurableError):
                    [each async for each in control.runs(store)]
                with suppress(StoreError):
                    await store.append(StepRecord(run_id="r", step_id="more"))

        asyncio.run(look())


@fuzzed
@given(st.lists(LINES, min_size=1, max_size=4))
def test_any_lines_with_the_right_checksum(bodies: list[bytes]) -> None:
    """Each is an entry, or an error that names it; the checksum is no proof that it was us."""
    check_lines(bodies)


@pytest.mark.parametrize("body", kept("lines"))
def test_kept_lines(body: bytes) -> None:
    check_lines([body])


# The database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "runs.db"
    asyncio.run(fill(SqliteStore(path)))
    return path.read_bytes()


def put(path: Path, data: bytes) -> Path:
    for old in path.parent.glob(path.name + "*"):
        old.unlink()
    path.write_bytes(data)
    return path


async def test_a_database_cut_off_anywhere(tmp_path: Path, database: bytes) -> None:
    """It is refused, for readers and writers. One without a byte is a new one."""
    for size in places(len(database), 797)[1:]:
        store = SqliteStore(put(tmp_path / "runs.db", database[:size]))
        for what in (read, append):
            with pytest.raises(StoreError):
                await asyncio.wait_for(what(store), _WITHIN)


async def test_a_database_with_a_changed_byte_anywhere(tmp_path: Path, database: bytes) -> None:
    """It is read, or refused by one of our errors, and nothing hangs.

    SQLite keeps no checksums: a letter of a text that became another one is read as it stands.
    """
    chosen = random.Random(EXAMPLES)
    right = 0
    expected = await read(SqliteStore(put(tmp_path / "runs.db", database)))
    for at in places(len(database), 797):
        bad = bytearray(database)
        bad[at] ^= chosen.choice([1, 2, 4, 8, 16, 32, 64, 128, 255])
        told = await try_all(SqliteStore(put(tmp_path / "runs.db", bytes(bad))))
        right += told == expected
    assert right


KEYS = {"durable_steps": "run_id", "durable_flows": "run_id", "durable_wakeups": "token", "durable_layout": "version"}
COLUMNS = {
    "durable_steps": "run_id step_id revision status kind name result error note until attempt started_at ended_at id",
    "durable_flows": "revision name state started_at",
    "durable_wakeups": "run_id flow at shows_at",
    "durable_layout": "version",
}
CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=8),
    st.text(max_size=8).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        ["success", "flow", "{}", "[]", "[1", "null", "2026-01-01", "2026-01-01T00:00:00+00:00", "9999-12-31T23:59-23:59"]
    ),
    VALUES.map(json_bytes).map(bytes.decode),
)
CHANGES = st.lists(
    st.sampled_from([(table, column) for table, columns in COLUMNS.items() for column in columns.split()]).flatmap(
        lambda place: st.tuples(st.just(place), st.integers(1, 12), CELLS)
    ),
    min_size=1,
    max_size=3,
)


def test_any_cells(tmp_path: Path, database: bytes) -> None:
    """Any value of any type in any column: the rows are read, or the error says which can't be."""

    @fuzzed
    @given(CHANGES)
    def check(changes: list[tuple[tuple[str, str], int, Any]]) -> None:
        path = put(tmp_path / "runs.db", database)
        with closing(sqlite3.connect(path)) as connection:
            for (table, column), row, value in changes:
                which = f"(select {KEYS[table]} from {table} limit 1 offset {row % 4})"
                with suppress(sqlite3.IntegrityError, UnicodeEncodeError):
                    connection.execute(f"update {table} set {column} = ? where {KEYS[table]} in {which}", (value,))
            connection.commit()
        asyncio.run(try_all(SqliteStore(path)))

    check()


async def test_a_run_id_that_is_no_text(tmp_path: Path, database: bytes) -> None:
    """A listing of the runs says that, and which."""
    path = put(tmp_path / "runs.db", database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update durable_steps set run_id = x'ff' where run_id = 'run-2'")
        connection.commit()
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match=r"a row has the run id b'\\xff'"):
            [run_id async for run_id in store.runs()]


async def test_an_index_of_flows_that_differs_from_the_logs(tmp_path: Path, database: bytes) -> None:
    """It has a run at another time than its log: that is told, where a listing would find the run again and again."""
    path = put(tmp_path / "runs.db", database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update durable_flows set started_at = '2020-01-01T00:00:00.000000+00:00' where run_id = 'run-2'")
        connection.commit()
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match="it has run 'run-2' at another time than its log"):
            await asyncio.wait_for(_ids(store), _WITHIN)


async def _ids(store: OpenableStore) -> list[str]:
    return [run.run_id async for run in control.runs(store)]


def test_a_schema_that_is_no_utf_8(tmp_path: Path, database: bytes) -> None:
    """SQLite quotes it in its message, which then can't be decoded."""
    bad = database.replace(b"started_at, run_id)", b"start\xffd_at, run_id)", 1)
    with pytest.raises(CorruptLog, match=r"runs\.db is damaged: 'utf-8' codec can't decode"):
        asyncio.run(append(SqliteStore(put(tmp_path / "runs.db", bad))))


def test_a_layout_that_is_no_number(tmp_path: Path, database: bytes) -> None:
    """A table that should hold one number, and doesn't, is damage, and no newer version."""
    for change in (
        "delete from durable_layout",
        "update durable_layout set version = 'x'",
        "insert into durable_layout values (1)",
    ):
        path = put(tmp_path / "runs.db", database)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(change.format("durable_layout"))
            connection.commit()
        with pytest.raises(CorruptLog, match="should say its layout once"):
            asyncio.run(append(SqliteStore(path)))
