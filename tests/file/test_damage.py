"""A damaged log: what never returned is passed over and cut off, and anything else is refused."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from pathlib import Path

import pytest

from durable_core import CorruptLog, StepRecord, StoreError, control
from durable_core.stores.lines import heads_of
from durable_file import FileStore
from durable_file._lines import seal
from durable_file._names import file_name
from tests.file.support import step, steps_in


@pytest.fixture
async def lines(log: Path) -> list[bytes]:
    """Three lines of one run, in the log."""
    async with FileStore(log) as store:
        for name in "abc":
            await store.append(step(name))
    return log.read_bytes().splitlines(keepends=True)


async def test_torn_at_every_byte(log: Path, lines: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    """Wherever the last append was torn, readers pass over it and the next writer cuts it off, saying so; no more is lost."""
    whole = lines[0] + lines[1]
    async with FileStore(log) as store:
        for end in range(len(lines[2])):
            log.write_bytes(whole + lines[2][:end])
            assert await steps_in(log) == ["a", "b"]
            assert len([record async for record in store.scan("run")]) == 2
            assert log.stat().st_size == len(whole) + end
            caplog.clear()
            with caplog.at_level(logging.WARNING, "durable_file"):
                appended = await store.append(step("c"))
            assert bool(caplog.records) == (end > 0)
            assert not end or f"all.jsonl: cut off {end} bytes of an append that never returned, after line 2" in caplog.text
            assert await steps_in(log) == ["a", "b", "c"]
            assert await store.get("run", "c") == appended


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096, b'{"crc":"00' + b"\0" * 100])
async def test_tail_of_nul(log: Path, lines: list[bytes], tail: bytes) -> None:
    """A file that was made longer but never written, as some file systems leave it after a power failure, is a torn tail."""
    log.write_bytes(b"".join(lines) + tail)
    assert await steps_in(log) == ["a", "b", "c"]
    async with FileStore(log) as store:
        await store.append(step("d"))
    assert await steps_in(log) == ["a", "b", "c", "d"]
    assert b"\0" not in log.read_bytes()


async def test_torn_append_of_megabytes(log: Path, lines: list[bytes]) -> None:
    """However much was written of an append that never returned, what stands before it is read and stays."""
    log.write_bytes(b"".join(lines) + b'{"crc":"' + b"x" * 2_500_000)
    assert await steps_in(log) == ["a", "b", "c"]
    async with FileStore(log) as store:
        assert [record.step_id async for record in store.scan("run")] == ["a", "b", "c"]
        await store.append(step("d"))
    assert await steps_in(log) == ["a", "b", "c", "d"]


async def test_clearing_a_torn_log(log: Path, lines: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    """Clearing is writing, too: the torn append is cut off first."""
    async with FileStore(log) as store:
        await store.append(step("a", "other"))
    log.write_bytes(log.read_bytes() + lines[2][:-10])
    async with FileStore(log) as store:
        await store.clear("run")
    assert "cut off" in caplog.text
    assert await steps_in(log) == []
    assert await steps_in(log, "other") == ["a"]


async def test_scan_of_a_torn_log_that_goes_on(log: Path) -> None:
    """What is written in the place of a torn append after a scan began is none of its entries."""
    big = b'"' + b"x" * 700_000 + b'"'
    async with FileStore(log) as store:
        for name in "abc":
            await store.append(step(name, result=big))
        log.write_bytes(log.read_bytes() + b'{"crc":"' + b"x" * 5_000)
        scan = store.scan("run")
        first = await anext(scan)
        await store.append(step("d"))
        assert [first.step_id, *[record.step_id async for record in scan]] == ["a", "b", "c"]


async def test_torn_first_append(log: Path, lines: list[bytes]) -> None:
    """A log whose only append was torn holds no run."""
    log.write_bytes(lines[0][:-1])
    async with FileStore(log) as store:
        assert [run_id async for run_id in store.runs()] == []
        await store.clear("run")
        await store.append(step("z"))
    assert await steps_in(log) == ["z"]


async def test_torn_first_append_in_a_folder(tmp_path: Path, log: Path, lines: list[bytes]) -> None:
    """So it is in a folder."""
    (tmp_path / "run.jsonl").write_bytes(lines[0][:-1])
    async with FileStore(tmp_path) as store:
        assert [run_id async for run_id in store.runs()] == []
        await store.append(step("z"))
        assert [run_id async for run_id in store.runs()] == ["run"]


async def test_every_flipped_bit(log: Path, lines: list[bytes]) -> None:
    """One changed bit anywhere in a whole line is `CorruptLog` with file and line, for readers and writers; nothing changes."""
    whole = b"".join(lines)
    start, end = len(lines[0]), len(lines[0]) + len(lines[1]) - 1
    for position in range(start, end):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        log.write_bytes(damaged)
        where = r"all\.jsonl, line 2: "
        async with FileStore(log) as store:
            with pytest.raises(CorruptLog, match=where) as refused:
                await store.list("run")
            assert "its runs then begin anew, and every step of theirs runs again" in str(refused.value)
            with pytest.raises(CorruptLog, match=where):
                [record async for record in store.scan("run")]
            with pytest.raises(CorruptLog, match=where):
                await store.append(step("d"))
        assert log.read_bytes() == damaged


@pytest.mark.parametrize("insert", [b"\n", b"garbage\n", b"\0\0\0\n", b"{}\n", b'{"v":1}\n', seal(b'{"v":1,"run_id":7}') + b"\n"])
async def test_foreign_line(log: Path, lines: list[bytes], insert: bytes) -> None:
    """A whole line that is no entry is `CorruptLog`: an empty one, another's, one whose checksum fits something else."""
    log.write_bytes(lines[0] + insert + lines[1])
    with pytest.raises(CorruptLog, match=r"all\.jsonl, line 2"):
        await steps_in(log)


async def test_damage_shows_in_an_open_store(log: Path, lines: list[bytes]) -> None:
    """A bad line that appears while the store is open has its right number; once it is repaired, the store goes on."""
    async with FileStore(log) as store:
        await store.append(step("d"))
        good = log.read_bytes()
        log.write_bytes(good + lines[0].replace(b"a", b"b"))
        with pytest.raises(CorruptLog, match="line 5"):
            await store.append(step("e"))
        log.write_bytes(good)
        await store.append(step("e"))
    assert await steps_in(log) == [*"abcde"]


async def test_slot_filled_twice(log: Path, lines: list[bytes]) -> None:
    """Two entries in one slot, as after joining two logs, are `CorruptLog`: one of them was returned to somebody."""
    log.write_bytes(b"".join(lines) + lines[1])
    with pytest.raises(CorruptLog, match=r"line 4: revision 0 of step 'b' of run 'run' is here for the second time"):
        await steps_in(log)


async def test_runs_of_a_damaged_folder(tmp_path: Path) -> None:
    """A run whose first line is bad is not left out of `runs`: it is `CorruptLog`."""
    async with FileStore(tmp_path) as store:
        await store.append(step("a"))
        log = tmp_path / "run.jsonl"
        log.write_bytes(log.read_bytes().replace(b'"a"', b'"b"'))
        with pytest.raises(CorruptLog, match=r"run\.jsonl, line 1"):
            [run_id async for run_id in store.runs()]


async def test_newer_format(log: Path, lines: list[bytes]) -> None:
    """A line of a newer format says to upgrade."""
    log.write_bytes(lines[0] + seal(b'{"v":2,"run_id":"run"}') + b"\n")
    with pytest.raises(CorruptLog, match=r"line 2: an entry of format 2; .* upgrade"):
        await steps_in(log)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("crlf", "bom", "line"), [(True, False, 1), (False, True, 1), (True, True, 1), (True, False, 3)], ids=str
)
async def test_only_line_ends_or_a_bom_were_changed(log: Path, lines: list[bytes], crlf: bool, bom: bool, line: int) -> None:
    """What an editor or git did to line ends, or put in front, is told apart from damage, with the way to undo it."""
    changed = [text.replace(b"\n", b"\r\n") if crlf and number >= line else text for number, text in enumerate(lines, 1)]
    log.write_bytes(BOM * bom + b"".join(changed))
    async with FileStore(log) as store:
        for read in (partial(store.list, "run"), partial(store.append, step("d"))):
            with pytest.raises(CorruptLog, match=rf"all\.jsonl, line {line}: only ") as raised:
                await read()
            told = str(raised.value)
            assert ("line ends" in told, "byte order mark" in told) == (crlf, bom)
            assert "checksum" not in told
            assert "dos2unix" in told
    assert log.read_bytes() == BOM * bom + b"".join(changed)


def body(**members: object) -> bytes:
    """Return the JSON of a record, with some of its members changed."""
    return json.dumps({**json.loads(step("x").to_json()), **members}).encode()


DEEP = body(result=0).replace(b'"result": 0', b'"result": ' + b"[" * 1_000_000 + b"]" * 1_000_000)


@pytest.mark.parametrize(
    "content",
    [
        body(status="lost"),
        body(kind="dream"),
        body(revision=-1),
        body(attempt=0),
        body(started_at="yesterday"),
        body(name=7),
        body(started_at="9999-12-31T23:59:59-12:00"),
        body(run_id="run\x1b"),
        DEEP,
    ],
    ids=["status", "kind", "revision", "attempt", "time", "name", "year", "id", "deep"],
)
async def test_line_that_is_no_record(log: Path, lines: list[bytes], content: bytes) -> None:
    """A line whose checksum is right but that holds no record is an error with file and line, however it is read."""
    run_id = json.loads(content.replace(b"[" * 1_000_000, b"").replace(b"]" * 1_000_000, b"0"))["run_id"]
    log.write_bytes(lines[0] + seal(content) + b"\n" + lines[1])
    line, entry = r"all\.jsonl, line 2: ", r"all\.jsonl, (line 2|run 'run.*', entry [12]): "
    async with FileStore(log) as store:
        with pytest.raises(StoreError, match=entry):
            [*await store.list(run_id)]
        with pytest.raises(StoreError, match=entry):
            [*heads_of(await store.list(run_id))]
            [*await store.list(run_id)]
        with pytest.raises(StoreError, match=line):
            [record async for record in store.scan(run_id)]
        if run_id == "run" and content is not DEEP and b'"revision": -1' not in content:
            with pytest.raises(StoreError, match=line):
                await store.get(run_id, "x")
            other, clash = await asyncio.gather(store.append(step("y")), store.append(step("x")), return_exceptions=True)
            assert isinstance(other, StepRecord)
            assert isinstance(clash, StoreError)
            assert "all.jsonl, line 2: " in str(clash)


async def test_a_log_with_a_damaged_first_line_hides_no_other(tmp_path: Path) -> None:
    """The other runs are listed; what is wrong is told after them."""
    async with FileStore(tmp_path) as store:
        for run_id in ("good", "damaged", "Hidden"):
            await store.append(step("a", run_id))
        for run_id in ("damaged", "Hidden"):
            (tmp_path / file_name(run_id)).write_bytes(b"{}\n")
        listed: list[str] = []
        with pytest.raises(CorruptLog, match=r"\.jsonl, line 1"):
            async for run_id in store.runs():
                listed.append(run_id)  # noqa: PERF401  # what came before the error
        assert listed == ["good"]
        stood: list[str] = []
        with pytest.raises(CorruptLog, match=r"\.jsonl, line 1"):
            async for run in control.runs(store):
                stood.append(run.run_id)  # noqa: PERF401  # likewise
        assert stood == ["good"]
