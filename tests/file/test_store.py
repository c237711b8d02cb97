"""How a store is used: cancelled, shared by tasks, from several loops, with and without `async with`, and in little memory."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_core import StepRecord, open_store
from durable_core.stores.filelock import Locks, spot_of
from durable_file import FileStore, _disk
from tests.file.support import Child, finish, step, steps_in


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The next sync says that it has begun, and ends when it is told to."""
    begun, go_on = threading.Event(), threading.Event()
    real = _disk.sync

    def sync(fd: int) -> None:
        begun.set()
        assert go_on.wait(30)
        real(fd)

    monkeypatch.setattr(_disk, "sync", sync)
    return begun, go_on


async def test_a_record_that_cannot_be_written_fails_alone(log: Path) -> None:
    """What is no JSON is refused where it is awaited, and takes no other append along."""
    bad = StepRecord(run_id="run", step_id="bad", note=object())
    async with FileStore(log) as store:
        results = await asyncio.gather(*map(store.append, [step("a"), bad, step("b")]), return_exceptions=True)
        assert [type(result) for result in results] == [StepRecord, TypeError, StepRecord]
        assert [record.step_id for record in await store.list("run")] == ["a", "b"]


async def test_cancelled_appends(
    log: Path, stuck: tuple[threading.Event, threading.Event], caplog: pytest.LogCaptureFixture
) -> None:
    """Cancelling an append, first of all or one of a batch, takes no other append along, and leaves the store in order."""
    begun, go_on = stuck
    async with FileStore(log) as store:
        tasks = [asyncio.create_task(store.append(step(f"s{n}"))) for n in range(6)]
        await asyncio.to_thread(begun.wait)
        for cancelled in (tasks[0], tasks[3]):
            cancelled.cancel()
        done, _ = await asyncio.wait([tasks[0], tasks[3]])
        assert all(task.cancelled() for task in done)
        go_on.set()
        results = await asyncio.gather(*(task for task in tasks if task not in done))
        assert [record.step_id for record in results] == ["s1", "s2", "s4", "s5"]
        again = await store.append(step("s3"))
        assert await store.get("run", "s3") == again
    assert not caplog.records
    assert {*await steps_in(log)} == {f"s{n}" for n in range(6)}


async def test_closing_waits(log: Path, stuck: tuple[threading.Event, threading.Event]) -> None:
    """Leaving `async with` waits for what is under way."""
    begun, go_on = stuck
    store = FileStore(log)
    appending = asyncio.create_task(store.append(step("a")))
    await asyncio.to_thread(begun.wait)
    closing = asyncio.create_task(store.__aexit__(None, None, None))
    done, _ = await asyncio.wait([closing], timeout=0.05)
    assert not done
    go_on.set()
    await closing
    assert (await appending).step_id == "a"


async def test_append_while_closing(log: Path) -> None:
    """Appends that are made while another task closes the store are stored all the same."""
    store = FileStore(log)
    appends = [asyncio.create_task(store.append(step(f"s{n}"))) for n in range(20)]
    await asyncio.sleep(0)
    async with store:
        pass
    await asyncio.gather(*appends)
    assert {*await steps_in(log)} == {f"s{n}" for n in range(20)}
    await store.__aexit__(None, None, None)


async def test_opened_twice(path: Path) -> None:
    """A store may be entered again after it was closed."""
    store = FileStore(path)
    for name in "ab":
        async with store:
            await store.append(step(name))
    assert await steps_in(path) == ["a", "b"]


def test_from_one_loop_after_another(path: Path) -> None:
    """A store that was never closed may be used again from another event loop."""
    store = FileStore(path)
    for n in range(3):
        asyncio.run(store.append(step(f"s{n}")))
    assert len(asyncio.run(steps_in(path))) == 3


def test_program_that_closes_nothing_ends(path: Path, child: Child) -> None:
    """A program that closes no store ends at once, and without a warning."""
    script = """
    store = FileStore(sys.argv[1])
    async def main():
        await store.append(StepRecord(run_id="run", step_id="a"))
        async for _ in store.scan("run"):
            break
        await store.lock("run").__aenter__()
    asyncio.run(main())
    """
    finish(child(script, path))
    assert asyncio.run(steps_in(path)) == ["a"]


async def test_cancelled_scan(path: Path) -> None:
    """A scan that is left early, or cancelled while it reads, closes what it opened."""
    async with open_store(f"file:{path.as_posix()}") as store:
        assert isinstance(store, FileStore)
        for n in range(10):
            await store.append(step(f"s{n}", result=b'"' + b"x" * 300_000 + b'"'))

        async def read() -> None:
            async for _ in store.scan("run"):
                await asyncio.sleep(0)

        for turns in range(12):
            task = asyncio.create_task(read())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len([record async for record in store.scan("run")]) == 10


async def test_scan_is_bounded(path: Path) -> None:
    """A scan needs the memory of a piece of the log, however long that is."""
    async with FileStore(path) as store:
        result = b'"' + b"x" * 50_000 + b'"'
        await asyncio.gather(*(store.append(step(f"s{n}", result=result)) for n in range(400)))
    async with FileStore(path) as store:
        tracemalloc.start()
        try:
            count = 0
            async for record in store.scan("run"):
                count += record.result == result
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 400
    assert peak < 8 * 1024 * 1024


async def test_folder_of_many_runs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder's logs, as many stay in memory as there is room for; all are still right when they are read again."""
    monkeypatch.setattr(_disk, "sync", lambda fd: None)
    result = b'"' + b"x" * 5_000 + b'"'
    async with FileStore(tmp_path, memory=1024 * 1024) as store:
        tracemalloc.start()
        try:
            for n in range(600):
                await store.append(step("a", f"run-{n}", result=result))
            gc.collect()
            current, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert current < 2 * 1024 * 1024
        for n in (0, 300, 599):
            held = await store.append(step("a", f"run-{n}"))
            assert held.result == result
        assert len([run_id async for run_id in store.runs()]) == 600


async def test_long_log_is_small(log: Path) -> None:
    """A log in memory, with what `list` returned of it, is little more than its bytes."""
    async with FileStore(log) as store:
        await asyncio.gather(*(store.append(step(f"step-{n:06}")) for n in range(20_000)))
    async with FileStore(log) as store:
        tracemalloc.start()
        try:
            records = await store.list("run")
            gc.collect()
            current, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(records) == 20_000
    assert current < 20_000 * 530  # 100,000 steps in 53 MB
    assert peak < current + 8 * 1024 * 1024


async def test_logs_of_a_folder_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is slow to take one log of a folder, appends to others go on."""
    begun, go_on = threading.Event(), threading.Event()
    real = _disk.write

    def write(fd: int, data: bytes) -> None:
        if b'"slow"' in data:
            begun.set()
            go_on.wait(30)
        real(fd, data)

    monkeypatch.setattr(_disk, "write", write)
    async with FileStore(tmp_path) as store:
        slow = asyncio.create_task(store.append(step("a", "slow")))
        await asyncio.to_thread(begun.wait)
        others = [asyncio.create_task(store.append(step("a", f"run-{n}"))) for n in range(50)]
        done, _ = await asyncio.wait(others, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        assert done
        await asyncio.gather(slow, *others)


async def test_a_log_is_always_written_by_the_same_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs of a folder are spread over several threads; each log stays with one, which alone knows what it holds."""
    writers: dict[int, set[int]] = {}
    real = _disk.write

    def write(fd: int, data: bytes) -> None:
        writers.setdefault(os.fstat(fd).st_ino, set()).add(threading.get_ident())
        real(fd, data)

    monkeypatch.setattr(_disk, "write", write)
    async with FileStore(tmp_path) as store:
        for n in range(5):
            await asyncio.gather(*(store.append(step(f"s{n}", f"run-{run}")) for run in range(50)))
    assert len(writers) == 50
    assert all(len(threads) == 1 for threads in writers.values())
    assert 1 < len(set[int]().union(*writers.values())) <= 8


async def test_logs_are_written_together_before_they_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync takes along what was written to other logs by then: a thread syncs none before it has written all that wait."""
    asked: list[str] = []

    def noting(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            asked.append(name)
            real(*args)

        return call

    for name in ("write", "sync"):
        monkeypatch.setattr(_disk, name, noting(name, getattr(_disk, name)))
    monkeypatch.setattr("durable_file.store._THREADS", 1)
    async with FileStore(tmp_path) as store:
        await asyncio.gather(*(store.append(step("a", f"run-{n}")) for n in range(20)))
    assert asked == ["write"] * 16 + ["sync"] * 16 + ["write"] * 4 + ["sync"] * 4


async def test_who_waits_for_a_log_keeps_no_other_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two processes would wait for each other, each for a log that the other has written and not synced yet."""
    monkeypatch.setattr("durable_file.store._THREADS", 1)
    lock = Locks(tmp_path, make_folder=_disk.make_folder).take(spot_of("log", "held.jsonl"))
    assert lock is not None
    async with FileStore(tmp_path) as store, FileStore(tmp_path) as other:
        appends = [asyncio.create_task(store.append(step("a", run_id))) for run_id in ("free", "held")]
        while not (tmp_path / "free.jsonl").exists():
            await asyncio.sleep(0)
        await asyncio.wait_for(other.append(step("b", "free")), 10)
        assert not any(append.done() for append in appends)
        lock.release()
        await asyncio.gather(*appends)


async def test_four_loops_at_once(path: Path) -> None:
    """One store serves four threads, each with an event loop of its own: of four appends to a slot one wins, and all know it."""
    store = FileStore(path)
    runs, steps = [f"run-{n}" for n in range(5)], 40

    async def work(who: int) -> list[list[StepRecord]]:
        async def one(run_id: str) -> list[StepRecord]:
            records = []
            for n in range(steps):
                records.append(await store.append(step(f"s{n}", run_id)))
                await store.append(step(f"own-{who}-{n}", run_id))
                assert await store.get(run_id, f"s{n}") == records[-1]
            return records

        return await asyncio.wait_for(asyncio.gather(*map(one, runs)), 60)

    answers = await asyncio.gather(*(asyncio.to_thread(asyncio.run, work(who)) for who in range(4)))
    for number, run_id in enumerate(runs):
        assert all(answer[number] == answers[0][number] for answer in answers)
        found = [record.step_id for record in await store.list(run_id)]
        assert len(found) == steps * 5
        assert {*found} == {f"s{n}" for n in range(steps)} | {f"own-{who}-{n}" for who in range(4) for n in range(steps)}
    await store.__aexit__(None, None, None)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_lock_does_not_block_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    """While the disk is slow to make what a lock stands on, the loop goes on; a lock whose taker was cancelled is given back."""
    begun, go_on, moved = threading.Event(), threading.Event(), threading.Event()
    real = _disk.make_folder

    def make_folder(path: Path) -> None:
        begun.set()
        moved.wait(5)
        go_on.wait(5)
        real(path)

    monkeypatch.setattr(_disk, "make_folder", make_folder)
    async with FileStore(tmp_path / "runs") as store:
        lock = store.lock("run")
        taking = asyncio.create_task(lock.__aenter__())
        await asyncio.sleep(0)
        while not begun.is_set():
            await asyncio.sleep(0)
        assert not taking.done()
        moved.set()
        if cancelled:
            taking.cancel()
            await asyncio.sleep(0)
        go_on.set()
        if cancelled:
            with pytest.raises(asyncio.CancelledError):
                await taking
        else:
            (await taking).check()
            await lock.__aexit__(None, None, None)
        async with store.lock("run") as lease:
            lease.check()
