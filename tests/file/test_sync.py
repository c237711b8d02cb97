"""What `append` returns is on the disk, and a disk that fails is believed."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from durable_core import StoreError
from durable_file import FileStore, _disk
from tests.file.support import READ_SLOWLY, Child, finish, step, steps_in


class Disk:
    """Stands between the store and the real disk: notes what was synced, and fails when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: dict[int, int] = {}
        """How much of each file, by inode, is known to be on the disk."""
        self.syncs = 0
        self.folders: list[Path] = []
        self.failures: dict[str, int] = {}
        for name in ("sync", "sync_folder", "write"):
            monkeypatch.setattr(_disk, name, getattr(self, name)(getattr(_disk, name)))

    def fail(self, name: str, *, times: int = 1) -> None:
        self.failures[name] = times

    def _perhaps_fail(self, name: str) -> None:
        if self.failures.get(name, 0):
            self.failures[name] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            self._perhaps_fail("sync")
            real(fd)
            status = os.fstat(fd)
            self.synced[status.st_ino] = status.st_size
            self.syncs += 1

        return sync

    def sync_folder(self, real: Callable[[Path], None]) -> Callable[[Path], None]:
        def sync_folder(path: Path) -> None:
            self._perhaps_fail("sync_folder")
            real(path)
            self.folders.append(path)

        return sync_folder

    def write(self, real: Callable[[int, bytes], None]) -> Callable[[int, bytes], None]:
        def write(fd: int, data: bytes) -> None:
            if self.failures.get("write"):
                real(fd, data[: len(data) // 2])
            self._perhaps_fail("write")
            real(fd, data)

        return write

    def covers(self, path: Path) -> bool:
        """Tell whether all of the file is on the disk."""
        status = path.stat()
        return self.synced.get(status.st_ino) == status.st_size


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


async def test_no_append_returns_before_its_sync(log: Path, disk: Disk) -> None:
    """Whenever an append returns, a sync has covered its line."""
    async with FileStore(log) as store:

        async def append(name: str) -> None:
            await store.append(step(name))
            line = log.read_bytes().index(f'"step_id":"{name}"'.encode())
            assert disk.synced[log.stat().st_ino] > line

        for n in range(5):
            await append(f"alone-{n}")

        await asyncio.gather(*(append(f"together-{n}") for n in range(100)))
        assert disk.covers(log)
        assert disk.syncs < 20


async def test_new_names_are_synced(log: Path, disk: Disk) -> None:
    """Before the first append returns, the folders that were made for it and the log's name are on the disk."""
    deep = log.parent / "deep" / log.name
    async with FileStore(deep) as store:
        await store.append(step("a"))
    assert disk.folders == [log.parent.parent, log.parent, deep.parent]


async def test_new_names_share_a_sync(tmp_path: Path, disk: Disk) -> None:
    """New logs that are written together take one sync of their folder, and one that fails keeps each append from returning."""
    async with FileStore(tmp_path) as store:
        await store.append(step("a", "first"))
        disk.folders.clear()
        await asyncio.gather(*(store.append(step("a", f"run-{n}")) for n in range(64)))
        assert 1 <= len(disk.folders) < 32
        disk.fail("sync_folder", times=1000)
        results = await asyncio.gather(*(store.append(step("a", f"new-{n}")) for n in range(8)), return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
        disk.fail("sync_folder", times=0)
        disk.folders.clear()
        assert [await store.list(f"new-{n}") for n in range(8)] == [[]] * 8
        assert disk.folders


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have calls of their own")
async def test_syncs_reach_the_system(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the system's own `fdatasync` that a log waits for, and its `fsync` that the names of new files and folders do."""
    synced: list[tuple[str, Path]] = []

    def noting(name: str, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            real(fd)
            synced.append((name, Path(f"/proc/self/fd/{fd}").readlink()))

        return call

    for name in ("fdatasync", "fsync"):
        monkeypatch.setattr(os, name, noting(name, getattr(os, name)))
    async with FileStore(log) as store:
        await store.append(step("a"))
        assert {*synced} == {("fsync", log.parent.parent), ("fsync", log.parent), ("fdatasync", log)}
        assert synced[-1] == ("fdatasync", log)


@pytest.mark.parametrize("removable", [True, False])
async def test_removal_is_synced(log: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, removable: bool) -> None:
    """When clearing a log's only run returns, the file's end is on the disk, or its emptiness where its name has to stay."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        disk.folders.clear()
        if not removable:
            monkeypatch.setattr(Path, "unlink", _refuse)
        await store.clear("run")
        assert disk.folders == [log.parent] if removable else disk.covers(log)
        assert log.exists() is not removable


async def test_name_put_there_by_another(log: Path, disk: Disk) -> None:
    """A log that another put in the place of the old one is not read before its name is on the disk, whatever it holds."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        copy = log.with_name("copy")
        copy.write_bytes(log.read_bytes())
        copy.replace(log)
        disk.folders.clear()
        assert len(await store.list("run")) == 1
        assert disk.folders == [log.parent]
        assert disk.covers(log)


@pytest.mark.parametrize("failing", ["write", "sync", "sync_folder"])
async def test_failure_is_cut_back_and_raised(log: Path, disk: Disk, failing: str) -> None:
    """After a failed write or sync the error is raised, nothing of the append stays, and the next append does it anew."""
    async with FileStore(log) as store:
        log.parent.mkdir()
        if failing != "sync_folder":
            await store.append(step("a"))
        before = log.read_bytes() if log.exists() else b""
        disk.fail(failing)
        with pytest.raises(StoreError, match=r"can't append to .*all\.jsonl: Input/output error \(EIO\)") as raised:
            await store.append(step("b"))
        assert isinstance(raised.value.__cause__, OSError)
        assert log.read_bytes() == before
        assert await store.get("run", "b") is None
        b = await store.append(step("b"))
        assert await store.get("run", "b") == b
        assert disk.covers(log)


async def test_folder_whose_name_is_not_synced(log: Path, disk: Disk) -> None:
    """A new folder is made again if its name could not be made sure of."""
    async with FileStore(log) as store:
        disk.fail("sync_folder")
        with pytest.raises(StoreError, match="EIO"):
            await store.append(step("a"))
        assert not log.parent.exists()
        await store.append(step("a"))
    assert disk.folders == [log.parent.parent, log.parent]


async def test_failure_reaches_all_of_a_batch(log: Path, disk: Disk) -> None:
    """All appends that shared the failed sync get the error, and none of them stays."""

    async with FileStore(log) as store:
        await store.append(step("a"))
        disk.fail("sync", times=1000)
        results = await asyncio.gather(*(store.append(step(f"b{n}")) for n in range(10)), return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
        disk.fail("sync", times=0)
        assert [record.step_id for record in await store.list("run")] == ["a"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the test says it better
@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
async def test_a_file_that_fails_when_it_is_closed(log: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Each append of the batch raises or is there, nobody waits for ever, and the store goes on."""
    failures = 0

    class OpenFile(_disk.OpenFile):
        def __exit__(self, *error: object) -> None:
            nonlocal failures
            super().__exit__(*error)
            if failures:
                failures -= 1
                raise OSError(number, os.strerror(number))

    number: int = getattr(errno, code)
    monkeypatch.setattr(_disk, "OpenFile", OpenFile)
    store = FileStore(log)  # closing it waits for its threads
    async with asyncio.timeout(20):
        first = await store.append(step("first"))
        failures = 1
        records = [step(f"{count}") for count in range(3)]
        outcomes = await asyncio.gather(*map(store.append, records), return_exceptions=True)
        assert all(isinstance(outcome, StoreError) or outcome in records for outcome in outcomes)
        assert await asyncio.gather(*map(store.append, records)) == records
        assert [*await store.list("run")] == [first, *records]
    await store.__aexit__(None, None, None)


@pytest.mark.parametrize("code", [code for code in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, code)])
async def test_a_batch_that_there_is_no_room_for(log: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """On a full disk, or over a quota, what fits is stored, and only what is too large fails."""
    real = _disk.write

    def write(fd: int, data: bytes) -> None:
        if len(data) > 20_000:
            raise OSError(getattr(errno, code), "no room")
        real(fd, data)

    monkeypatch.setattr(_disk, "write", write)
    records = [step("a"), step("b"), step("large", result=b'"' + b"x" * 20_000 + b'"'), step("c")]
    async with FileStore(log) as store:
        results = await asyncio.gather(*map(store.append, records), return_exceptions=True)
        assert [isinstance(result, StoreError) for result in results] == [False, False, True, False]
    assert await steps_in(log) == ["a", "b", "c"]


async def make_doubtful(store: FileStore, disk: Disk) -> None:
    """Let an append fail and not even the cut be made sure of, so that nobody knows what the disk holds."""
    disk.fail("sync", times=2)
    with pytest.raises(StoreError, match="EIO"):
        await store.append(step("b"))


async def test_cut_that_fails(log: Path, disk: Disk) -> None:
    """If not even the cut can be made sure of, the log is written anew before anything of it is returned."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        inode = log.stat().st_ino
        await make_doubtful(store, disk)
        assert [record.step_id for record in await store.list("run")] == ["a"]
        assert log.stat().st_ino != inode
        assert disk.covers(log)
        await store.append(step("b"))
    assert await steps_in(log) == ["a", "b"]


async def test_doubt_ends_once_the_log_is_written_anew(log: Path, disk: Disk) -> None:
    """Not before that has succeeded, and then for good."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        inode = log.stat().st_ino
        await make_doubtful(store, disk)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", _refuse)
            with pytest.raises(StoreError, match="Permission denied"):
                await store.list("run")
        assert log.stat().st_ino == inode
        assert len(await store.list("run")) == 1
        anew = log.stat().st_ino
        assert anew != inode
        await store.append(step("b"))
        assert log.stat().st_ino == anew
    assert await steps_in(log) == ["a", "b"]


async def test_doubt_ends_with_a_log_that_is_removed(log: Path, disk: Disk) -> None:
    """The one that takes its place is written by appends alone."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        await make_doubtful(store, disk)
        log.unlink()
        await store.append(step("c"))
        inode = log.stat().st_ino
        assert [record.step_id for record in await store.list("run")] == ["c"]
        assert log.stat().st_ino == inode


async def test_doubt_outlives_a_full_memory(tmp_path: Path, disk: Disk) -> None:
    """A log is not forgotten before it was written anew, however many others are used."""
    async with FileStore(tmp_path, memory=0) as store:
        await store.append(step("a"))
        inode = (tmp_path / "run.jsonl").stat().st_ino
        await make_doubtful(store, disk)
        for n in range(20):
            await store.append(step("a", f"run-{n}"))
        assert [record.step_id for record in await store.list("run")] == ["a"]
        assert (tmp_path / "run.jsonl").stat().st_ino != inode


@pytest.mark.skipif(sys.platform == "win32", reason="its locks have no shared kind")
async def test_nothing_is_written_anew_while_others_read(log: Path, disk: Disk, child: Child) -> None:
    """A reader that finds its log doubtful waits until it is alone: two that write it anew at once would mix their lines."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        await make_doubtful(store, disk)
        inode = log.stat().st_ino
        reader = child(READ_SLOWLY, log)
        assert reader.stdout
        assert [reader.stdout.readline(), reader.stdout.readline()] == ["trying\n", "reading\n"]
        reading = asyncio.create_task(store.list("run"))
        done, _ = await asyncio.wait([reading], timeout=0.2)
        assert not done
        assert log.stat().st_ino == inode
        assert finish(reader, "\n") == "a\n"
        assert len(await reading) == 1
        assert log.stat().st_ino != inode


def _refuse(*args: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


LEFT_UNSYNCED = """
from durable_file import _disk
def die(fd): os.kill(os.getpid(), 9) if os.name != "nt" else os._exit(9)
_disk.sync = die
asyncio.run(FileStore(sys.argv[1]).append(StepRecord(run_id="run", step_id="left")))
"""


@pytest.mark.parametrize("how", ["list", "get", "scan", "append"])
async def test_lines_of_a_killed_writer(log: Path, disk: Disk, child: Child, how: str) -> None:
    """A line that a writer left whole when it was killed before its sync is synced before anyone gets it."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        child(LEFT_UNSYNCED, log).wait()
        assert not disk.covers(log)
        if how == "list":
            assert [record.step_id for record in await store.list("run")] == ["a", "left"]
        elif how == "get":
            assert (left := await store.get("run", "left"))
            assert left.step_id == "left"
        elif how == "scan":
            assert [record.step_id async for record in store.scan("run")] == ["a", "left"]
        else:
            loser = step("left")
            assert (await store.append(loser)).id != loser.id
        assert disk.covers(log)
        await store.list("run")
        syncs = disk.syncs
        await store.list("run")
        assert disk.syncs == syncs


@pytest.mark.parametrize("how", ["list", "scan"])
async def test_sync_that_fails_while_reading(log: Path, disk: Disk, child: Child, how: str) -> None:
    """When another's lines can't be synced they are not returned; a second sync proves nothing, so they are written anew."""
    child(LEFT_UNSYNCED, log).wait()
    inode = log.stat().st_ino
    async with FileStore(log) as store:

        async def read() -> list[str]:
            if how == "list":
                return [record.step_id for record in await store.list("run")]
            return [record.step_id async for record in store.scan("run")]

        disk.fail("sync")
        with pytest.raises(StoreError, match=r"can't read .*: Input/output error \(EIO\)"):
            await read()
        assert await read() == ["left"]
        assert log.stat().st_ino != inode
        assert disk.covers(log)


async def test_append_that_fails_above_lines_of_a_killed_writer(log: Path, disk: Disk, child: Child) -> None:
    """The failed sync was theirs, too: the cut leaves them, and they are written anew before anyone gets them."""
    child(LEFT_UNSYNCED, log).wait()
    inode = log.stat().st_ino
    async with FileStore(log) as store:
        disk.fail("sync")
        with pytest.raises(StoreError, match="EIO"):
            await store.append(step("b"))
        assert [record.step_id for record in await store.list("run")] == ["left"]
        assert log.stat().st_ino != inode
        assert disk.covers(log)


async def test_one_sync_for_many(log: Path, disk: Disk) -> None:
    """Appends that wait at the same time share syncs, 500 at most to one."""

    async with FileStore(log) as store:
        await store.append(step("first"))
        disk.syncs = 0
        await asyncio.gather(*(store.append(step(f"s{n}")) for n in range(2000)))
        assert 4 <= disk.syncs <= 6


async def test_large_appends_share_less(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than 4 MiB go out at once, however many wait."""
    begun, go_on, sizes = threading.Event(), threading.Event(), []
    real = _disk.write

    def write(fd: int, data: bytes) -> None:
        begun.set()
        assert go_on.wait(30)
        sizes.append(len(data))
        real(fd, data)

    monkeypatch.setattr(_disk, "write", write)
    async with FileStore(log) as store:
        first = asyncio.create_task(store.append(step("first")))
        await asyncio.to_thread(begun.wait)
        big = b'"' + b"x" * 1_000_000 + b'"'
        others = [asyncio.create_task(store.append(step(f"s{n}", result=big))) for n in range(13)]
        await asyncio.sleep(0)  # all of them are given to the thread
        go_on.set()
        await asyncio.gather(first, *others)
    assert len(sizes) == 5  # of the first, and of four, four, four and one
    assert max(sizes) < 4 * 1024 * 1024


async def test_other_process_reads_what_was_returned(log: Path, child: Child) -> None:
    """What an append has returned is seen by a process that starts afterwards."""
    async with FileStore(log) as store:
        await store.append(step("a"))
        seen = child("print(len(asyncio.run(FileStore(sys.argv[1]).list('run'))))", log)
        assert finish(seen) == "1\n"
