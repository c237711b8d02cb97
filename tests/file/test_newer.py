"""Looking at many steps at once, for the runs that wait in a process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_core import CorruptLog, Runner
from durable_core.store import polling_of
from durable_file import FileStore, _disk
from tests.file.support import Child, finish, step


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The logs that were opened for reading."""
    opened: list[Path] = []
    real: Callable[[Path, int], object] = _disk.OpenFile

    def noting(path: Path, flags: int) -> object:
        if flags == _disk.READ and path.suffix == ".jsonl":
            opened.append(path)
        return real(path, flags)

    monkeypatch.setattr(_disk, "OpenFile", noting)
    return opened


async def test_only_what_is_newer(path: Path) -> None:
    """Of each step whose newest revision is above the known one that entry is returned, whichever log it is in."""
    async with FileStore(path) as store, FileStore(path) as other:
        assert polling_of(store) is store
        assert store.poll_seconds == 2.0
        known = [("one", "a", -1), ("one", "b", 0), ("two", "a", -1), ("none", "a", -1)]
        assert [*await store.newer(known)] == []
        first = await other.append(step("a", "one"))
        assert [*await store.newer(known)] == [first]
        assert [*await store.newer(known)] == [first]
        await other.append(step("b", "one"))
        second = await other.append(step("b", "one", revision=1))
        third = await other.append(step("a", "two"))
        assert {record.id for record in await store.newer(known)} == {first.id, second.id, third.id}
        assert [*await store.newer([("one", "a", 0), ("one", "b", 1), ("two", "a", 0)])] == []
        assert [*await store.newer([])] == []


async def test_of_another_process(path: Path, child: Child) -> None:
    """What another process appends between two rounds is seen in the second one."""
    script = 'asyncio.run(FileStore(sys.argv[1]).append(StepRecord(run_id="run", step_id="a", revision=1)))'
    async with FileStore(path) as store:
        await store.append(step("a"))
        assert [*await store.newer([("run", "a", 0)])] == []
        finish(child(script, path))
        assert [record.revision for record in await store.newer([("run", "a", 0)])] == [1]


async def test_a_log_that_did_not_change_is_not_read(tmp_path: Path, reads: list[Path]) -> None:
    """A round reads only the logs that changed since they had nothing newer."""
    async with FileStore(tmp_path) as store:
        for n in range(20):
            await store.append(step("a", f"run-{n}"))
        known = [(f"run-{n}", "a", 0) for n in range(20)]
        assert [*await store.newer(known)] == []
        reads.clear()
        assert [*await store.newer(known)] == []
        assert reads == []
        await store.append(step("a", "run-7", revision=1))
        assert [record.run_id for record in await store.newer(known)] == ["run-7"]
        assert reads == [tmp_path / "run-7.jsonl"]


def damage(log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"step_id":"a"', b'"step_id":"b"'))


async def test_a_damaged_log_is_told(path: Path) -> None:
    """A round that meets a damaged log raises `CorruptLog`, as on any other store."""
    async with FileStore(path) as store:
        await store.append(step("a"))
        damage(next(path.parent.rglob("*.jsonl")))
        for _ in range(2):
            with pytest.raises(CorruptLog, match=r"\.jsonl, line 1"):
                await store.newer([("run", "a", 0)])


async def test_a_log_that_is_damaged_under_a_wait(tmp_path: Path, child: Child) -> None:
    """The run that waits in it raises `CorruptLog`; one that waits in another log of the folder goes on, and hears."""
    send = 'asyncio.run(control.send(FileStore(sys.argv[1]), "good", "a", 7))'
    async with FileStore(tmp_path) as store:
        store.poll_seconds = 0.05

        async def wait(run_id: str) -> int:
            async with Runner(store, run_id) as runner:
                return await runner.event("a", returns=int)

        good, bad = [asyncio.create_task(wait(run_id)) for run_id in ("good", "bad")]
        for run_id in ("good", "bad"):
            while await store.get(run_id, "a") is None:
                await asyncio.sleep(0.01)
        damage(tmp_path / "bad.jsonl")
        with pytest.raises(CorruptLog, match=r"bad\.jsonl, line 1"):
            await asyncio.wait_for(bad, 20)
        assert not good.done()
        finish(child("from durable_core import control\n" + send, tmp_path))
        assert await asyncio.wait_for(good, 20) == 7


async def test_a_log_that_cannot_be_read_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What waits in such a log sees nothing, a warning says why, and what is newer elsewhere is seen."""
    async with FileStore(tmp_path) as store:
        for name in ("bad", "good"):
            await store.append(step("a", name))
        (tmp_path / "bad.jsonl").unlink()
        (tmp_path / "bad.jsonl").mkdir()
        known = [("bad", "a", -1), ("good", "a", -1)]
        assert [record.run_id for record in await store.newer(known)] == ["good"]
        assert "bad.jsonl" in caplog.text
        caplog.clear()
        assert [record.run_id for record in await store.newer(known)] == ["good"]
        assert not caplog.records


@pytest.mark.skipif(os.name == "nt", reason="its clock of a thread is too coarse")
async def test_a_round_in_which_nothing_changed_costs_little(path: Path) -> None:
    """1,000 runs that wait cost less than 1 % of a core at a round every two seconds."""
    async with FileStore(path) as store:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_disk, "sync", lambda fd: None)
            for n in range(1_000):
                await store.append(step("a", f"run-{n}"))
        known = [(f"run-{n}", "a", 0) for n in range(1_000)]
        await store.newer(known)
        # The time of this process alone, so that others do not count.
        before = os.times()
        for _ in range(20):
            assert [*await store.newer(known)] == []
        after = os.times()
    spent = after.user + after.system - before.user - before.system
    assert spent / 20 < 0.02
