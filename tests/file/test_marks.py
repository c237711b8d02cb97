"""What changed since the last look, for a worker that sweeps the store."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from durable_core.store import marks_of
from durable_file import FileStore, _scan
from durable_file._lines import record_line
from durable_file._names import file_name
from tests.file.support import Child, finish, step


def write_logs(folder: Path, runs: int, *, form: str = "run-{}") -> None:
    """Write logs of one entry, without syncing any."""
    folder.mkdir(exist_ok=True)
    for number in range(runs):
        run_id = form.format(number)
        (folder / file_name(run_id)).write_bytes(record_line(step("a", run_id)) + b"\n")


async def test_an_append_changes_the_mark_of_its_run_alone(path: Path) -> None:
    """In a folder and in one log: who sweeps reads the runs that changed, and no others."""
    async with FileStore(path) as store, FileStore(path) as other:
        assert marks_of(store) is store
        for name in ("one", "two", "three"):
            await store.append(step("a", name))
        before = await store.marks()
        await other.append(step("b", "two"))
        after = await store.marks()
        assert {run_id for run_id, mark in after.items() if mark != before[run_id]} == {"two"}
        await other.clear("three")
        assert {**await store.marks()} == {run_id: after[run_id] for run_id in ("one", "two")}


async def test_a_run_that_begins_anew_is_seen_in_a_shared_log(tmp_path: Path) -> None:
    """Also where it has as many entries as before."""
    async with FileStore(tmp_path / "all.jsonl") as store:
        for name in ("one", "two"):
            await store.append(step("a", name))
        before = await store.marks()
        await store.clear("one")
        await store.append(step("a", "one"))
        after = await store.marks()
        assert after["one"] != before["one"]
        assert after["two"] == before["two"]


async def test_what_another_process_appends_is_marked(path: Path, child: Child) -> None:
    script = 'asyncio.run(FileStore(sys.argv[1]).append(StepRecord(run_id="run", step_id="a", revision=1)))'
    async with FileStore(path) as store:
        await store.append(step("a"))
        before = await store.marks()
        finish(child(script, path))
        assert (await store.marks())["run"] != before["run"]


async def test_a_log_is_opened_only_for_its_run_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most names tell the run; the others are read once, however often the log changes."""
    opened: list[str] = []
    real = _scan._first_run

    def noting(path: Path) -> str | None:
        opened.append(path.name)
        return real(path)

    monkeypatch.setattr(_scan, "_first_run", noting)
    async with FileStore(tmp_path) as store:
        for run_id in ("plain", "With Capitals"):
            await store.append(step("a", run_id))
        for revision in range(1, 4):
            assert {*await store.marks()} == {"plain", "With Capitals"}
            await store.append(step("a", "With Capitals", revision=revision))
    assert opened == [file_name("With Capitals")]


async def test_a_log_that_tells_no_run_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, until it changes; a log whose first append is under way is marked as soon as that is there."""
    torn, damaged = (tmp_path / file_name(run_id) for run_id in ("Torn", "Damaged"))
    line = record_line(step("a", "Torn")) + b"\n"
    async with FileStore(tmp_path) as store:
        await store.append(step("a", "good"))
        torn.write_bytes(line[:40])
        damaged.write_bytes(b"{}\n")
        for _ in range(2):
            assert {*await store.marks()} == {"good"}
        assert [record.getMessage().count(damaged.name) for record in caplog.records] == [1]
        torn.write_bytes(line)
        assert {*await store.marks()} == {"good", "Torn"}


async def test_a_copy_of_a_log_is_no_run(tmp_path: Path) -> None:
    """A log under a name that is not its run's is passed over, where its name says that it is another one's."""
    async with FileStore(tmp_path) as store:
        await store.append(step("a", "Run"))
        (tmp_path / "Copy~0.jsonl").write_bytes((tmp_path / file_name("Run")).read_bytes())
        assert {*await store.marks()} == {"Run"}


async def test_the_loop_goes_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk keeps nobody waiting but who asked."""
    goes_on = threading.Event()
    real = _scan.statuses_of

    def slow(folder: Path, names: Iterable[str]) -> dict[str, _scan.Status]:
        assert goes_on.wait(5), "the loop stood still"
        return real(folder, names)

    monkeypatch.setattr(_scan, "statuses_of", slow)
    async with FileStore(tmp_path) as store:
        await store.append(step("a"))
        marks = asyncio.create_task(store.marks())
        for _ in range(10):
            await asyncio.sleep(0)
        goes_on.set()
        assert {*await marks} == {"run"}


@pytest.mark.parametrize("form", ["run-{}", "Run {}"])
@pytest.mark.skipif(os.name == "nt", reason="its clock of a thread is too coarse")
async def test_many_logs_cost_little(tmp_path: Path, form: str) -> None:
    """10,000 logs take much less than the two seconds between two sweeps."""
    write_logs(tmp_path, 10_000, form=form)
    async with FileStore(tmp_path) as store:
        assert len(await store.marks()) == 10_000
        before = os.times()
        for _ in range(5):
            marks = await store.marks()
        after = os.times()
        assert len(marks) == 10_000
        # The time of this process alone, so that others do not count.
        assert (after.user + after.system - before.user - before.system) / 5 < 0.5
