"""One log, several stores and processes, and people who move files about."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from durable_core import StepRecord
from durable_core.stores.filelock import Locks, gate_of, spot_of
from durable_file import FileStore
from tests.file.support import READ_SLOWLY, Child, finish, step, steps_in


async def test_two_stores_in_one_process(path: Path) -> None:
    """Two stores on one log in one process race for each slot: one wins, both get the same record."""
    async with FileStore(path) as one, FileStore(path) as other:
        for n in range(50):
            held = await asyncio.gather(one.append(step(f"s{n}")), other.append(step(f"s{n}")))
            assert held[0] == held[1]
        assert [*await one.list("run")] == [*await other.list("run")]
        assert len(await one.list("run")) == 50


RACE = """
async def main():
    async with FileStore(sys.argv[1]) as store:
        await store.list("run")
        print("ready", flush=True)
        sys.stdin.readline()
        held = await asyncio.gather(*(store.append(StepRecord(run_id="run", step_id=f"s{n}")) for n in range(150)))
        more = [await store.append(StepRecord(run_id="run", step_id=f"t{n}")) for n in range(30)]
        print("\\n".join(record.id for record in [*held, *more]))
asyncio.run(main())
"""


async def test_eight_processes_race(path: Path, child: Child) -> None:
    """Eight processes that append the same slots at the same time get the same records, each written once."""
    racers = [child(RACE, path) for _ in range(8)]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = {finish(racer) for racer in racers}
    assert len(answers) == 1
    async with FileStore(path) as store:
        by_step = {record.step_id: record.id for record in await store.list("run")}
    assert [by_step[name] for name in [*(f"s{n}" for n in range(150)), *(f"t{n}" for n in range(30))]] == answers.pop().split()


async def test_removed(path: Path, child: Child) -> None:
    """A log that another process removed is gone for an open store, too, which begins a new one."""
    async with FileStore(path) as store:
        await store.append(step("a"))
        finish(child("asyncio.run(FileStore(sys.argv[1]).clear('run'))", path))
        assert [*await store.list("run")] == []
        await store.append(step("b"))
    assert await steps_in(path) == ["b"]


async def test_cleared_and_written_again(log: Path, child: Child) -> None:
    """A run that another process cleared and began anew, longer than it was, is read again from its beginning."""
    script = """
    async def main():
        async with FileStore(sys.argv[1]) as store:
            await store.clear("run")
            for n in range(10):
                await store.append(StepRecord(run_id="run", step_id=f"new-{n}"))
    asyncio.run(main())
    """
    async with FileStore(log) as store:
        await store.append(step("a"))
        finish(child(script, log))
        assert [record.step_id for record in await store.list("run")] == [f"new-{n}" for n in range(10)]


async def test_renamed(log: Path) -> None:
    """A log that was renamed away is not written to any more: the next append begins a new one."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        moved = log.rename(log.with_name("old.jsonl"))
        before = moved.read_bytes()
        await store.append(step("b"))
        assert moved.read_bytes() == before
    assert await steps_in(log) == ["b"]


@pytest.mark.parametrize("in_place", [True, False], ids=["written over", "renamed over"])
async def test_replaced(log: Path, tmp_path: Path, in_place: bool) -> None:
    """A log that was replaced by another, shorter, as long or longer, is read again."""
    async with FileStore(log) as store:
        for name in "abc":
            await store.append(step(name))
        for length in (1, 3, 3, 5):
            async with FileStore(tmp_path / "other.jsonl") as other:
                written = [await other.append(step(name)) for name in "vwxyz"[:length]]
            if in_place:
                shutil.copyfile(tmp_path / "other.jsonl", log)
            else:
                (tmp_path / "other.jsonl").replace(log)
            assert [*await store.list("run")] == written
            assert await store.append(step("v")) == written[0]
            (tmp_path / "other.jsonl").unlink(missing_ok=True)


async def test_replaced_by_a_log_that_ends_alike(log: Path, tmp_path: Path) -> None:
    """Two logs that end with the same run's clearing are told apart, though their newest lines say the same."""

    async def write(store: FileStore, result: bytes) -> None:
        await store.append(step("a", result=result))
        await store.append(step("b", "other"))
        await store.clear("other")

    async with FileStore(log) as store, FileStore(tmp_path / "other.jsonl") as other:
        await write(store, b"1")
        await write(other, b"2")
        shutil.copyfile(tmp_path / "other.jsonl", log)
        found = await store.get("run", "a")
        assert found is not None
        assert found.result == b"2"


async def test_folder_removed(path: Path) -> None:
    """A store outlives the removal of its whole folder, the lock file included, and still excludes others."""
    place = path if path.suffix == "" else path.parent / "logs" / "all.jsonl"
    folder = place if path.suffix == "" else place.parent
    async with FileStore(place) as store, FileStore(place) as other:
        await store.append(step("a"))
        await other.list("run")
        shutil.rmtree(folder)
        assert [*await other.list("run")] == []
        held = await asyncio.gather(store.append(step("b")), other.append(step("b")))
        assert held[0] == held[1]
    assert await steps_in(place) == ["b"]


async def test_reader_waits_for_the_writer(log: Path, child: Child) -> None:
    """A reader waits while a writer of another process is between its write and its sync."""
    script = """
    from durable_file import _disk
    real = _disk.sync
    def sync(fd):
        print("written", flush=True)
        sys.stdin.readline()
        real(fd)
    _disk.sync = sync
    asyncio.run(FileStore(sys.argv[1]).append(StepRecord(run_id="run", step_id="b")))
    print("returned")
    """
    async with FileStore(log) as store:
        await store.append(step("a"))
        writer = child(script, log)
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        assert b'"b"' in log.read_bytes()
        reading = asyncio.create_task(store.list("run"))
        done, _ = await asyncio.wait([reading], timeout=0.2)
        assert not done
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert [record.step_id for record in await reading] == ["a", "b"]
        assert finish(writer) == "returned\n"


async def test_readers_let_a_waiting_writer_pass(log: Path, child: Child) -> None:
    """Readers share the log, but none overtakes a writer that waits: readers that overlap would keep it out for ever."""
    writer = 'asyncio.run(FileStore(sys.argv[1]).append(StepRecord(run_id="run", step_id="b")))'
    async with FileStore(log) as store:
        await store.append(step("a"))
    first = child(READ_SLOWLY, log)
    assert first.stdout
    assert [first.stdout.readline(), first.stdout.readline()] == ["trying\n", "reading\n"]
    waiting = child(writer, log)
    locks = Locks(log.parent, make_folder=Path.mkdir)
    gate = gate_of(spot_of("log", log.name))
    while (lock := locks.take(gate)) is not None:  # until the writer holds it
        lock.release()
        await asyncio.sleep(0)
    second = child(READ_SLOWLY, log)
    assert second.stdout
    assert second.stdout.readline() == "trying\n"
    reading = asyncio.create_task(asyncio.to_thread(second.stdout.readline))
    done, _ = await asyncio.wait([reading], timeout=0.2)
    assert not done
    for process in (first, second):
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert finish(first) == "a\n"
    assert finish(waiting) == ""
    assert await reading == "reading\n"
    assert second.stdout.readline() == "a b\n"
    locks.close()


@pytest.mark.skipif(sys.platform == "win32", reason="its locks have no shared kind")
async def test_readers_do_not_wait_for_each_other(log: Path, child: Child) -> None:
    """A reader reads while another process is in the middle of reading; a writer waits for both."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        reader = child(READ_SLOWLY, log)
        assert reader.stdout
        assert [reader.stdout.readline(), reader.stdout.readline()] == ["trying\n", "reading\n"]
        assert len(await asyncio.wait_for(store.list("run"), 10)) == 1
        writing = asyncio.create_task(store.append(step("b")))
        done, _ = await asyncio.wait([writing], timeout=0.2)
        assert not done
        assert finish(reader, "\n") == "a\n"
        await writing


async def test_readable_by_line(log: Path) -> None:
    """A log is JSON, one entry a line, in the order of append."""
    records = [step("a", result=b'{"amount": 90}'), step("b", "other"), step("a", revision=1)]
    async with FileStore(log) as store:
        for record in records:
            await store.append(record)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["run_id"], line["step_id"], line["revision"]) for line in lines] == [
        ("run", "a", 0),
        ("other", "b", 0),
        ("run", "a", 1),
    ]
    assert lines[0]["result"] == {"amount": 90}
    assert [StepRecord.from_json(line) for line in log.read_bytes().splitlines()] == records


async def test_list_is_a_snapshot(path: Path) -> None:
    """What `list` returned stays as it was, whatever happens to the log, and can be read by index, slice and from the end."""
    async with FileStore(path) as store:
        records = [await store.append(step(name)) for name in "abcd"]
        listed = await store.list("run")
        await store.append(step("e"))
        await store.clear("run")
        assert [*listed] == records
        assert (listed[1], listed[-1], len(listed)) == (records[1], records[-1], 4)
        assert [*listed[1:3]] == records[1:3]
        assert records[2] in listed
        assert repr(listed) == "<4 step records>"
