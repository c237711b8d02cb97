"""A run's lock: who holds it, since when, and that it goes with the process."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

from durable_core import LockLost, RunBusy, StoreError
from durable_core.stores import filelock
from durable_core.stores.filelock import RUN_FILES, spot_of
from durable_file import FileStore, _disk
from tests.file.support import Child, finish, step

HOLD = """
async def main():
    async with FileStore(sys.argv[1]) as store, store.lock(sys.argv[2]):
        print(os.getpid(), flush=True)
        sys.stdin.readline()
asyncio.run(main())
"""


@pytest.fixture(params=["open file", "process"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux has the locks of other systems, too: everything holds with either kind."""
    if request.param == "process" and os.name != "nt":
        monkeypatch.setattr(filelock, "HAS_OPEN_FILE_LOCKS", False)


async def test_another_process(path: Path, child: Child) -> None:
    """`RunBusy` names the process, the machine and the program, and since when; the lock goes with a process that is killed."""
    before = datetime.now(UTC)
    holder = child(HOLD, path, "run")
    assert holder.stdout
    pid = int(holder.stdout.readline())
    async with FileStore(path) as store:
        with pytest.raises(RunBusy, match=rf"run 'run' is held by process {pid} on ") as raised:
            async with store.lock("run"):
                pass
        assert raised.value.holder == f"process {pid} on {platform.node()[:40]} (-c)"
        assert raised.value.since
        assert before - timedelta(seconds=1) < raised.value.since <= datetime.now(UTC)
        async with store.lock("run-2"):
            await store.append(step("a"))
        holder.kill()
        holder.wait()
        async with store.lock("run"):
            pass


async def test_this_process(path: Path) -> None:
    """Two stores, or one, in one process exclude one another as well."""
    async with FileStore(path) as one, FileStore(path) as other:
        for store in (one, other):
            async with one.lock("run"):
                with pytest.raises(RunBusy, match=rf"held by another runner in this process \({os.getpid()}\) since"):
                    async with store.lock("run"):
                        pass
            async with store.lock("run"):
                pass


async def test_closing_another_store_frees_nothing(path: Path, child: Child) -> None:
    """A store of the same process that is opened, used and closed meanwhile doesn't take the lock along."""
    async with FileStore(path) as store, store.lock("run") as lease:
        async with FileStore(path) as other, other.lock("run-2"):
            await other.append(step("a"))
        lease.check()
        script = """
        from durable_core import RunBusy
        async def main():
            try:
                async with FileStore(sys.argv[1]).lock("run"): print("taken")
            except RunBusy: print("busy")
        asyncio.run(main())
        """
        assert finish(child(script, path)) == "busy\n"


async def test_lease(path: Path) -> None:
    """A lease holds until its context ends, even when its store is closed before, and no longer."""
    store = FileStore(path)
    async with store.lock("run") as lease:
        async with store:
            lease.check()
        lease.check()
        with pytest.raises(RunBusy):
            async with store.lock("run"):
                pass
    with pytest.raises(LockLost, match=r"run 'run': this process \(\d+\) does not hold its lock"):
        lease.check()
    async with store, store.lock("run"):
        pass


@pytest.mark.parametrize(("one", "other"), [("All.jsonl", "all.jsonl"), ("caf\u00e9.jsonl", "cafe\u0301.jsonl")])
async def test_two_spellings_of_one_file(tmp_path: Path, one: str, other: str) -> None:
    """Names that are one file on a disk which tells neither case nor composition apart share their locks everywhere."""
    async with FileStore(tmp_path / one) as store, store.lock("run"), FileStore(tmp_path / other) as second:
        with pytest.raises(RunBusy):
            async with second.lock("run"):
                pass


async def test_error_inside(path: Path) -> None:
    """The lock is given back when its context ends with an error."""
    async with FileStore(path) as store:
        with pytest.raises(ZeroDivisionError):
            async with store.lock("run"):
                raise ZeroDivisionError
        async with store.lock("run"):
            pass


async def test_a_thousand_locks_few_files(tmp_path: Path) -> None:
    """All runs of a folder share a few lock files of bounded size, and hardly any holder is forgotten."""
    async with FileStore(tmp_path) as store, AsyncExitStack() as stack:
        for n in range(1000):
            await stack.enter_async_context(store.lock(f"run-{n}"))
        assert [file.name for file in tmp_path.iterdir()] == [".durable.locks"]
        assert len(files := [*(tmp_path / ".durable.locks").iterdir()]) == RUN_FILES
        assert sum(file.stat().st_size for file in files) <= 4 * 1024 * 1024
        holders = await store.holders([f"run-{n}" for n in range(1000)])
        assert len(holders) == 1000


async def test_holder_that_can_not_be_read(tmp_path: Path, child: Child) -> None:
    """Where the note of the holder is damaged, the run is busy all the same."""
    holder = child(HOLD, tmp_path, "run")
    assert holder.stdout
    holder.stdout.readline()
    (lock_file,) = (tmp_path / ".durable.locks").iterdir()
    size = lock_file.stat().st_size
    with lock_file.open("r+b") as file:
        file.seek(size - 256)
        file.write(b"x" * 256)
    async with FileStore(tmp_path) as store:
        with pytest.raises(RunBusy, match="is held by another process; ") as raised:
            async with store.lock("run"):
                pass
        assert raised.value.since is None


@pytest.mark.parametrize("program", ["x", "long-" * 60])
async def test_holder_after_one_of_another_name(tmp_path: Path, child: Child, program: str) -> None:
    """What an earlier holder wrote down, however long, doesn't spoil the note of the one who holds the run now."""
    script = f"sys.argv[0] = {{!r}}{HOLD}"
    for name in ("longer-than-the-next", program):
        holder = child(script.format(name), tmp_path, "run")
        assert holder.stdout
        pid = int(holder.stdout.readline())
        async with FileStore(tmp_path) as store:
            with pytest.raises(RunBusy) as raised:
                async with store.lock("run"):
                    pass
        assert raised.value.holder == f"process {pid} on {platform.node()[:40]} ({name[:40]})"
        holder.communicate("\n")


async def test_two_holders_with_one_note(tmp_path: Path, child: Child) -> None:
    """Where chance lets two runs note their holders in one place, the first is busy all the same, and nobody is named for it."""
    found: dict[tuple[str, int], str] = {}
    for n in range(10_000):
        run_id = f"run-{n}"
        file, position = spot_of("run", f"{run_id}.jsonl", run_id, files=RUN_FILES)
        slot = file, position % 256
        if slot in found:
            break
        found[slot] = run_id
    for held in (found[slot], run_id):
        holder = child(HOLD, tmp_path, held)
        assert holder.stdout
        pid = int(holder.stdout.readline())
    async with FileStore(tmp_path) as store:
        with pytest.raises(RunBusy, match="is held by another process; "):
            async with store.lock(found[slot]):
                pass
        with pytest.raises(RunBusy, match=f"is held by process {pid} on "):
            async with store.lock(run_id):
                pass


async def test_writer_that_is_stopped(log: Path, child: Child) -> None:
    """A process that keeps the log locked, because it was stopped, makes others fail, not wait for ever."""
    script = """
    from durable_file import _disk
    def sync(fd):
        print("locked", flush=True)
        sys.stdin.readline()
    _disk.sync = sync
    asyncio.run(FileStore(sys.argv[1]).append(StepRecord(run_id="run", step_id="a")))
    """
    writer = child(script, log)
    assert writer.stdout
    writer.stdout.readline()
    async with FileStore(log, lock_timeout=0.05) as store:
        with pytest.raises(StoreError, match=r"another process has kept the log locked .* is it stopped\?"):
            await store.append(step("b"))
        with pytest.raises(StoreError, match="another process has kept the log locked"):
            await store.list("run")
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
        finish(writer)
        await store.append(step("b"))


async def test_busy_writers_let_readers_in(log: Path, child: Child) -> None:
    """A reader gets its turn while other processes append without a pause."""
    script = """
    async def main():
        async with FileStore(sys.argv[1]) as store:
            n = 0
            while True:
                await store.append(StepRecord(run_id=str(os.getpid()), step_id=f"s{n}"))
                n += 1
                if n == 1: print("started", flush=True)
    asyncio.run(main())
    """
    writers = [child(script, log) for _ in range(3)]
    for writer in writers:
        assert writer.stdout
        writer.stdout.readline()
    async with FileStore(log) as store, asyncio.timeout(20):
        for _ in range(20):
            await store.list("run")


def remove_locks(folder: Path) -> None:
    """Remove the folder's lock files, as somebody who tidies up may do."""
    for found in folder.glob(".durable*"):
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files where they are")
@pytest.mark.parametrize("how", ["lock files removed", "folder removed", "folder replaced"])
async def test_lock_file_that_is_not_the_same_any_more(tmp_path: Path, how: str) -> None:
    """A run's lock is lost once its lock file was removed or replaced: another can take the run from then on."""
    folder = tmp_path / "runs"
    async with FileStore(folder) as store, FileStore(folder) as other:
        async with store.lock("run") as lease:
            lease.check()
            if how == "lock files removed":
                remove_locks(folder)
            elif how == "folder removed":
                shutil.rmtree(folder)
            else:
                shutil.copytree(folder, tmp_path / "copy")
                shutil.rmtree(folder)
                (tmp_path / "copy").rename(folder)
            with pytest.raises(LockLost, match="run 'run': its lock file .* was removed or replaced"):
                async with asyncio.timeout(5):
                    while True:  # it is looked for every 50 ms at most
                        lease.check()
                        await asyncio.sleep(0)
            async with other.lock("run") as second:
                second.check()
                with pytest.raises(LockLost):
                    lease.check()
        async with store.lock("run") as lease:
            lease.check()


def test_cost_of_one_more_lock(tmp_path: Path) -> None:
    """Taking and giving back a lock costs about the same whether the process holds none or thousands."""
    locks = filelock.Locks(tmp_path, make_folder=_disk.make_folder)

    def take(name: str) -> filelock.Lock:
        lock = locks.take(spot_of("run", name, files=RUN_FILES), note=True)
        assert lock is not None
        return lock

    def cost(name: str) -> float:
        times = []
        for n in range(200):
            start = perf_counter()
            take(f"{name}-{n}").release()
            times.append(perf_counter() - start)
        return median(times)

    cost("first")
    before = cost("before")
    held = [take(f"held-{n}") for n in range(6_000)]
    assert cost("after") < 4 * before
    for lock in held:
        lock.release()
    locks.close()


async def test_holder_with_the_same_process_id_on_a_machine_of_the_same_name(tmp_path: Path, child: Child) -> None:
    """Another container's process is not taken for this one, though both are process 1 on a machine of one name."""
    holder = child(f"os.getpid = lambda: {os.getpid()}\n{HOLD}", tmp_path, "run")
    assert holder.stdout
    assert int(holder.stdout.readline()) == os.getpid()
    async with FileStore(tmp_path) as store:
        with pytest.raises(RunBusy) as raised:
            async with store.lock("run"):
                pass
        assert raised.value.holder == f"process {os.getpid()} on {platform.node()[:40]} (-c)"


async def test_note_with_control_characters(tmp_path: Path, child: Child) -> None:
    """A note that somebody spoiled with terminal escapes is shown without them."""
    script = f"""
    from durable_core.stores import filelock
    filelock._program = lambda: "on a\\x1b[2Jb (c\\x9bd\\x07)"
    exec({HOLD!r})
    """
    holder = child(script, tmp_path, "run")
    assert holder.stdout
    pid = int(holder.stdout.readline())
    async with FileStore(tmp_path) as store:
        with pytest.raises(RunBusy) as raised:
            async with store.lock("run"):
                pass
        assert raised.value.holder == f"process {pid} on a[2Jb (cd)"
