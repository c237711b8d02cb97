"""Databases that were damaged: what is read of the log is right, or a clear error says what is wrong with them; nothing hangs."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterable, Awaitable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_core import CorruptLog, OpenableStore, Runner, RunSuspended, StepRecord, StoreError, control, flow
from durable_sqlite import SqliteStore
from tests.fuzz.fuzzing import VALUES, fuzzed, json_bytes, places

T = TypeVar("T")

_WITHIN = 60.0  # seconds, which only bound a hang
PAGE = 512
RUNS = ["run-0", "run-1", "run-2", "7"]  # one is text that a column of numbers would take for a number


@flow(wait_limit=0)
async def order(runner: Runner, item: str) -> None:
    await runner.step("charge", lambda: {"item": item}, returns=dict)
    await runner.approval("ok", {"item": item})


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory, where the system has one: the same file is written and synced a thousand times."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as made:
        yield Path(made)


class Good(NamedTuple):
    """A database that is whole, and what it holds."""

    data: bytes
    logs: Mapping[str, Sequence[StepRecord]]


def small_pages(path: Path) -> Path:
    """Make an empty database of pages so small that a few entries fill trees of some levels."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"pragma page_size = {PAGE}")
        connection.execute("vacuum")
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    """Runs that wait, a result that takes pages of its own, and free pages."""
    path = small_pages(tmp_path_factory.mktemp("good") / "runs.db")

    async def fill() -> Mapping[str, Sequence[StepRecord]]:
        async with SqliteStore(path) as store:
            for run_id in RUNS:
                with suppress(RunSuspended):
                    await order.run(store, run_id, item=f"chair {run_id}")
            large = b'"' + b"x" * 700 + b'"'
            await store.append(StepRecord(run_id="7", step_id="12", result=large))
            await store.append(StepRecord(run_id="gone", step_id="12", result=large))
            await store.clear("gone")  # which leaves free pages
            await store.set_wakeup("run-1", "order", datetime(2026, 1, 1, tzinfo=UTC))
            return {run_id: await store.list(run_id) for run_id in RUNS}

    logs = asyncio.run(fill())
    return Good(path.read_bytes(), logs)


@pytest.fixture(scope="module")
def database(good: Good) -> bytes:
    return good.data


async def read(store: OpenableStore) -> list[Any]:
    """Return all that a store tells of its runs."""
    async with store:
        told: list[Any] = [status async for status in control.runs(store)]
        told += [await store.list(run_id) for run_id in RUNS]
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


def put(path: Path, data: bytes) -> Path:
    for old in path.parent.glob(path.name + "*"):
        old.unlink()
    path.write_bytes(data)
    return path


async def all_of(found: AsyncIterable[T]) -> list[T]:
    return [each async for each in found]


async def answer(question: Awaitable[T]) -> T | StoreError:
    """Return what a store says, or how it refuses."""
    try:
        return await asyncio.wait_for(question, _WITHIN)
    except StoreError as error:
        return error


async def check(path: Path, logs: Mapping[str, Sequence[StepRecord]], caplog: pytest.LogCaptureFixture) -> int:
    """Ask all that a damaged database is asked of its log, and append to it; return how many answers were refusals."""
    refusals = 0

    async def told(question: Awaitable[T], *right: T) -> T | StoreError:
        nonlocal refusals
        found = await answer(question)
        if isinstance(found, StoreError):
            refusals += 1
        else:
            assert found in right or not right
        return found

    async def listed(runs: AsyncIterable[Any]) -> None:
        """Those that can't be read are passed over, with a warning, unless they come last."""
        caplog.clear()
        found = await answer(all_of(runs))
        if not isinstance(found, StoreError) and not caplog.messages:
            assert [each.run_id for each in found] == RUNS[::-1]

    async with SqliteStore(path) as store:
        await told(all_of(store.runs()), [*RUNS[-1:], *RUNS[:-1]])
        for run_id, log in logs.items():
            for step_id, newest in {record.step_id: record for record in log}.items():
                await told(store.get(run_id, step_id), newest)
            for taken in log:
                await told(store.append(StepRecord(run_id=run_id, step_id=taken.step_id, revision=taken.revision)), taken)
        for run_id, log in logs.items():
            await told(store.list(run_id), log)
            await told(all_of(store.scan(run_id)), [*log])
        for flows in (store.flows(), store.flows(states=["waiting"]), store.flows(names=["order"])):
            for found in page if isinstance(page := await told(flows), Sequence) else ():
                assert found in logs[found.run_id]
        await listed(control.runs(store))
        await listed(control.runs(store, status="waiting"))
        await listed(control.runs(store, flow="order"))
        await listed(control.pending(store))
        await told(store.take_wakeups(["order"], limit=9, visibility_timeout=timedelta(9)))
        more = StepRecord(run_id="run-1", step_id="more", result=b'"' + b"z" * 600 + b'"')
        is_appended = await told(store.append(more), more) is more
    async with SqliteStore(path) as store:
        for run_id, log in logs.items():
            await told(store.list(run_id), [*log, *[more] * (is_appended and run_id == "run-1")])
    return refusals


@pytest.mark.parametrize("bits", [0x01, 0x10, 0xFF])
async def test_a_database_with_a_changed_byte_anywhere(
    folder: Path, good: Good, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What it tells of its runs is right, or a refusal. Only a page of `flows` may lack one: the last page refuses then."""
    refusals = []
    for at in places(len(good.data), 151):
        bad = bytearray(good.data)
        bad[at] ^= bits
        try:
            refusals.append(await check(put(folder / "runs.db", bytes(bad)), good.logs, caplog))
        except BaseException as error:
            error.add_note(f"at {at}")
            raise
    assert 0 in refusals  # free space
    assert any(refusals)


async def test_a_row_with_a_changed_byte_anywhere(folder: Path, good: Good) -> None:
    """Each byte of a row counts, and the refusal names the run and the entry."""
    log = good.logs["7"]
    (charged,) = [record for record in log if record.step_id == "charge"]
    start = good.data.index(b"7chargesuccessstepcharge") + len("7charge")
    end = good.data.index(charged.id.encode()) + len(charged.id)
    place = r"runs\.db: the row of run '7', step 'charge', revision 0: its checksum doesn't match"
    for at in range(start, end):
        for bits in (0x01, 0x80):
            bad = bytearray(good.data)
            bad[at] ^= bits
            async with SqliteStore(put(folder / "runs.db", bytes(bad))) as store:
                with pytest.raises(CorruptLog, match=place):
                    await store.list("7")
                with pytest.raises(CorruptLog, match=place):
                    await store.get("7", "charge")
                assert await store.list("run-1") == good.logs["run-1"]


async def test_a_database_cut_off_anywhere(folder: Path, good: Good, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused, unless what is missing is free space at its end. SQLite takes one of a byte, or of none, for a new one."""
    for size in [size for size in places(len(good.data), 397) if size > 1]:
        refusals = await check(put(folder / "runs.db", good.data[:size]), good.logs, caplog)
        assert refusals or size > len(good.data) - PAGE


async def test_an_entry_that_one_index_has_lost(folder: Path, good: Good) -> None:
    """Who relies on that index is refused, so that no step runs again; others read what is right."""
    differ = "the indexes of durable_steps don't agree on the entries of run 'run-1'"
    lost = re.sub(rb"run-1charge(?!success)", b"run-1chargf", good.data)
    async with SqliteStore(put(folder / "runs.db", lost)) as store:
        with pytest.raises(CorruptLog, match=differ):
            await store.get("run-1", "charge")
        with pytest.raises(CorruptLog, match=differ):
            await store.append(StepRecord(run_id="run-1", step_id="charge"))
        assert await store.list("run-1") == good.logs["run-1"]
    with closing(sqlite3.connect(put(folder / "runs.db", good.data))) as connection:
        ((root,),) = connection.execute("select rootpage from sqlite_master where name = 'durable_steps_in_order'")
    lost = re.sub(rb"run-1(?=[\x00-\x1f])", b"run-8", good.data[(root - 1) * PAGE :], count=1)
    async with SqliteStore(put(folder / "runs.db", good.data[: (root - 1) * PAGE] + lost)) as store:
        with pytest.raises(CorruptLog, match=differ):
            await store.list("run-1")
        with pytest.raises(CorruptLog, match=differ):
            await all_of(store.scan("run-1"))
        with pytest.raises(CorruptLog, match="don't agree on the run after 'run-"):
            await all_of(store.runs())


async def test_an_index_that_leads_to_a_row_of_another_run(folder: Path, good: Good) -> None:
    """It is refused: the row's own checksum is right."""
    with closing(sqlite3.connect(put(folder / "runs.db", good.data))) as connection:
        ((root,),) = connection.execute("select rootpage from sqlite_master where name = 'durable_steps_in_order'")
    page = bytearray(good.data[(root - 1) * PAGE : root * PAGE])
    count = int.from_bytes(page[3:5], "big")
    first, last = 8, 8 + 2 * (count - 1)  # where the places of the first entry, which is of run '7', and of the last stand
    assert page[0] == 10, "the index has one page"
    page[last : last + 2] = page[first : first + 2]
    bad = good.data[: (root - 1) * PAGE] + page + good.data[root * PAGE :]
    async with SqliteStore(put(folder / "runs.db", bad)) as store:
        with pytest.raises(CorruptLog, match="the indexes of durable_steps don't agree on the entries of run 'run-2'"):
            await store.list("run-2")
        assert await store.list("run-1") == good.logs["run-1"]


async def test_a_flow_that_an_index_has_lost(folder: Path, good: Good) -> None:
    """A list of the runs ends in an error that says so."""
    with closing(sqlite3.connect(put(folder / "runs.db", good.data))) as connection:
        ((root,),) = connection.execute("select rootpage from sqlite_master where name = 'durable_flows_by_state'")
    start = (root - 1) * PAGE
    lost = good.data[:start] + good.data[start:].replace(b"waiting", b"waitinh", 1)
    async with SqliteStore(put(folder / "runs.db", lost)) as store:
        with pytest.raises(CorruptLog, match=r"runs\.db: a list of runs may lack some \(row . missing from index"):
            await all_of(control.runs(store, status="waiting"))


async def test_a_column_with_another_type(folder: Path, good: Good) -> None:
    """It is refused: SQLite would look for the number 7 where the run is '7', and find nothing."""
    bad = good.data.replace(b"run_id text", b"run_id uext", 1)
    async with SqliteStore(put(folder / "runs.db", bad)) as store:
        with pytest.raises(CorruptLog, match="its tables should have the columns"):
            await store.list("7")


class Unfinished(NamedTuple):
    """A database whose last process was killed: much of it is in the write-ahead log."""

    data: bytes
    wal: bytes
    log: Sequence[StepRecord]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Unfinished:
    path = tmp_path_factory.mktemp("unfinished") / "runs.db"

    async def write() -> Unfinished:
        async with SqliteStore(small_pages(path)) as store:
            for number in range(5):
                await store.append(StepRecord(run_id="run", step_id=str(number)))
            return Unfinished(path.read_bytes(), path.with_name("runs.db-wal").read_bytes(), await store.list("run"))

    return asyncio.run(write())


async def check_prefix(path: Path, unfinished: Unfinished) -> None:
    """The appends before the damage are there, none after it, and the log goes on."""
    async with SqliteStore(path) as store:
        found = [*await store.list("run")]
        assert found == unfinished.log[: len(found)]
        more = await store.append(StepRecord(run_id="run", step_id="more"))
        assert [*await store.list("run")] == [*found, more]


async def test_a_write_ahead_log_with_a_changed_byte_anywhere(folder: Path, unfinished: Unfinished) -> None:
    """SQLite drops it from there on when it is opened: its frames have checksums. That loses the appends after the damage."""
    for at in places(len(unfinished.wal), 307):
        bad = bytearray(unfinished.wal)
        bad[at] ^= 0x10
        path = put(folder / "runs.db", unfinished.data)
        path.with_name("runs.db-wal").write_bytes(bad)
        await check_prefix(path, unfinished)


async def test_a_write_ahead_log_cut_off_anywhere(folder: Path, unfinished: Unfinished) -> None:
    """So it is with one that was cut off, which is what a power cut leaves of an append that never returned."""
    for size in places(len(unfinished.wal), 307):
        path = put(folder / "runs.db", unfinished.data)
        path.with_name("runs.db-wal").write_bytes(unfinished.wal[:size])
        await check_prefix(path, unfinished)


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


def test_any_cells(folder: Path, database: bytes) -> None:
    """Any value of any type in any column: the rows are read, or the error says which can't be."""

    @fuzzed
    @given(CHANGES)
    def check(changes: list[tuple[tuple[str, str], int, Any]]) -> None:
        path = put(folder / "runs.db", database)
        with closing(sqlite3.connect(path)) as connection:
            for (table, column), row, value in changes:
                which = f"(select {KEYS[table]} from {table} limit 1 offset {row % 4})"
                with suppress(sqlite3.IntegrityError, UnicodeEncodeError):
                    connection.execute(f"update {table} set {column} = ? where {KEYS[table]} in {which}", (value,))
            connection.commit()
        asyncio.run(try_all(SqliteStore(path)))

    check()


async def test_a_run_id_that_is_no_text(folder: Path, database: bytes) -> None:
    """A listing of the runs says that, and which."""
    path = put(folder / "runs.db", database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update durable_steps set run_id = x'ff' where run_id = 'run-2'")
        connection.commit()
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match=r"a row has the run id b'\\xff'"):
            [run_id async for run_id in store.runs()]


async def test_an_index_of_flows_that_differs_from_the_logs(folder: Path, database: bytes) -> None:
    """It has a run at another time than its log: that is told, where a listing would find the run again and again."""
    path = put(folder / "runs.db", database)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update durable_flows set started_at = '2020-01-01T00:00:00.000000+00:00' where run_id = 'run-2'")
        connection.commit()
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptLog, match="it gives run 'run-2' another start time than its log"):
            await asyncio.wait_for(_ids(store), _WITHIN)


async def _ids(store: OpenableStore) -> list[str]:
    return [run.run_id async for run in control.runs(store)]


def test_a_schema_that_is_no_utf_8(folder: Path, database: bytes) -> None:
    """SQLite quotes it in its message, which then can't be decoded."""
    bad = database.replace(b"started_at, run_id)", b"start\xffd_at, run_id)", 1)
    with pytest.raises(CorruptLog, match=r"runs\.db is damaged: 'utf-8' codec can't decode"):
        asyncio.run(append(SqliteStore(put(folder / "runs.db", bad))))


def test_a_layout_that_is_no_number(folder: Path, database: bytes) -> None:
    """A table that should hold one number, and doesn't, is damage, and no newer version."""
    for change in (
        "delete from durable_layout",
        "update durable_layout set version = 'x'",
        "insert into durable_layout values (1)",
    ):
        path = put(folder / "runs.db", database)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(change.format("durable_layout"))
            connection.commit()
        with pytest.raises(CorruptLog, match="should say its layout once"):
            asyncio.run(append(SqliteStore(path)))
