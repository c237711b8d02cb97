"""Clearing a run, and what is left of a log of which most was cleared."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from durable_core import StoreError
from durable_file import FileStore, _disk
from tests.file.support import step, steps_in

BIG = b'"' + b"x" * 20_000 + b'"'


async def test_only_the_run_asked_for(path: Path) -> None:
    """Clearing one run leaves every other as it is, and the run can begin again."""
    async with FileStore(path) as store:
        for run_id in ("one", "two", "one.two"):
            await store.append(step("a", run_id))
            await store.append(step("b", run_id, revision=3))
        await store.clear("one")
        assert [*await store.list("one")] == []
        assert await store.get("one", "b") is None
        assert {run_id async for run_id in store.runs()} == {"two", "one.two"}
        again = await store.append(step("a", "one"))
        assert await store.get("one", "a") == again
    assert await steps_in(path, "one") == ["a"]
    assert await steps_in(path, "two") == ["a", "b"]
    async with FileStore(path) as store:
        assert [record.step_id async for record in store.scan("one")] == ["a"]


async def test_clearing_is_a_line(log: Path) -> None:
    """In a shared log clearing is a line of its own, and what stood there before stays as it was."""
    async with FileStore(log) as store:
        await store.append(step("a", "one"))
        await store.append(step("a", "two"))
        before = log.read_bytes()
        await store.clear("one")
    added = log.read_bytes().removeprefix(before)
    assert added.endswith(b"\n")
    assert json.loads(added)["clear"] == "one"


async def test_cleared_again_and_again(log: Path) -> None:
    """What stood before the last clearing is gone, in a scan too, and what came after it is there."""
    async with FileStore(log) as store:
        await store.append(step("a", "other"))
        for name in "abc":
            await store.clear("run")
            await store.append(step(name))
        assert [record.step_id async for record in store.scan("run")] == ["c"]
    assert await steps_in(log) == ["c"]


async def test_last_run_takes_the_file_along(path: Path) -> None:
    """When the only run of a log is cleared, its file goes."""
    async with FileStore(path) as store:
        await store.append(step("a"))
        await store.clear("run")
        assert not [*path.parent.rglob("*.jsonl")]
        await store.append(step("b"))
    assert await steps_in(path) == ["b"]


async def test_unknown_run(path: Path) -> None:
    """Clearing a run that isn't there changes nothing."""
    async with FileStore(path) as store:
        await store.append(step("a"))
        before = {file: file.read_bytes() for file in path.parent.rglob("*.jsonl")}
        await store.clear("other")
        assert {file: file.read_bytes() for file in path.parent.rglob("*.jsonl")} == before


async def test_mostly_cleared_is_rewritten(log: Path) -> None:
    """A log of which most was cleared is written anew, smaller, with the rest in its order, and other stores notice."""
    async with FileStore(log) as store, FileStore(log) as other:
        for n in range(20):
            await store.append(step("a", f"run-{n}", result=BIG))
            await store.append(step("b", f"run-{n}", revision=n))
        kept = await other.list("run-19")
        log.chmod(0o640)
        size = log.stat().st_size
        for n in range(15):
            await store.clear(f"run-{n}")
        assert log.stat().st_size < size / 2
        assert os.name == "nt" or stat.S_IMODE(log.stat().st_mode) == 0o640
        assert [*log.parent.glob("*.new")] == []
        for reader in (store, other):
            assert [*await reader.list("run-19")] == [*kept]
            assert {run_id async for run_id in reader.runs()} == {f"run-{n}" for n in range(15, 20)}
        held = await store.append(step("b", "run-19", revision=19))
        assert held == kept[1]
        await other.append(step("c", "run-19"))
    assert await steps_in(log, "run-19") == ["a", "b", "c"]


async def test_rewriting_keeps_every_entry(log: Path) -> None:
    """However many a run has."""
    async with FileStore(log) as store:
        kept = await asyncio.gather(*(store.append(step(f"s{n}", "kept")) for n in range(2_500)))
        for n in range(100):
            await store.append(step(f"s{n}", "gone", result=BIG))
        size = log.stat().st_size
        await store.clear("gone")
        assert log.stat().st_size < size / 2
    async with FileStore(log) as store:
        assert [*await store.list("kept")] == kept


@pytest.mark.parametrize("failing", ["sync", "sync_folder"])
async def test_rewriting_that_fails(log: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """If the log can't be rewritten the run is cleared all the same, and nothing is lost."""
    async with FileStore(log) as store:
        await store.append(step("a", "kept"))
        await store.append(step("a", "gone", result=BIG * 1))
        for n in range(5):
            await store.append(step(f"b{n}", "gone", result=BIG))
        real, calls = getattr(_disk, failing), 0

        def fail(*args: object) -> None:
            nonlocal calls
            calls += 1
            if calls == (2 if failing == "sync" else 1):  # the first sync is that of the line which clears
                raise OSError(errno.EIO, "Input/output error")
            real(*args)

        monkeypatch.setattr(_disk, failing, fail)
        await store.clear("gone")
        assert calls >= 1
        assert [*await store.list("gone")] == []
        await store.append(step("b", "kept"))
    assert await steps_in(log, "kept") == ["a", "b"]
    assert await steps_in(log, "gone") == []
    assert [*log.parent.glob("*.new")] == []


async def test_clear_that_fails(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the line that clears can't be synced the error is raised, and the run is still there."""
    async with FileStore(log) as store:
        for run_id in ("one", "two"):
            await store.append(step("a", run_id))
        real, failures = _disk.sync, iter([True])

        def fail(fd: int) -> None:
            if next(failures, False):
                raise OSError(errno.EIO, "Input/output error")
            real(fd)

        monkeypatch.setattr(_disk, "sync", fail)
        with pytest.raises(StoreError, match="can't clear a run of"):
            await store.clear("one")
        assert len(await store.list("one")) == 1
    assert await steps_in(log, "one") == ["a"]


async def test_name_that_can_not_be_removed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the log's name can't be removed, as on Windows while another has it open, the log is emptied."""

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    async with FileStore(log) as store, FileStore(log) as other:
        await store.append(step("a"))
        await other.list("run")
        monkeypatch.setattr(Path, "unlink", refuse)
        await store.clear("run")
        monkeypatch.undo()
        assert log.read_bytes() == b""
        for n in range(3):
            await store.append(step(f"b{n}"))
        assert [record.step_id for record in await other.list("run")] == ["b0", "b1", "b2"]


async def test_leftovers_of_a_crash(log: Path) -> None:
    """What a process left that was killed while it rewrote the log is no log, and is written over."""
    async with FileStore(log) as store:
        for n in range(4):
            await store.append(step("a", f"run-{n}", result=BIG * 1))
        beside = log.with_name(log.name + ".new")
        beside.write_bytes(b"half a li")
        for n in range(3):
            await store.clear(f"run-{n}")
    assert await steps_in(log, "run-3") == ["a"]
