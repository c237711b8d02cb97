"""Faults that only POSIX can make: killed writers, forked processes, a full disk, missing permissions."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from durable_core import LockLost, RunBusy, StoreError
from durable_core.stores import filelock
from durable_file import FileStore, _disk
from tests.file.support import Child, finish, step, steps_in

WRITE_FOR_EVER = """
async def write(store, task):
    n = 0
    while True:
        record = StepRecord(run_id="run", step_id=f"{os.getpid()}-{task}-{n}", result=b'"' + b"x" * (n % 7 * 700) + b'"')
        assert await store.append(record) is record
        os.write(1, (record.id + "\\n").encode())
        n += 1
async def main():
    async with FileStore(sys.argv[1]) as store:
        await asyncio.gather(*(write(store, task) for task in range(5)))
asyncio.run(main())
"""


@pytest.mark.parametrize("round_", range(2))
async def test_killed_writers(path: Path, child: Child, round_: int) -> None:
    """Writers that are killed at random moments lose nothing that an append returned, and leave a log that others go on with."""
    returned: set[str] = set()
    async with FileStore(path) as store:
        for _ in range(3):
            writers = [child(WRITE_FOR_EVER, path) for _ in range(2)]
            for writer in writers:
                assert writer.stdout
                for _ in range(random.randrange(1, 200)):
                    returned.add(writer.stdout.readline().strip())
            await asyncio.sleep(random.random() / 100)  # no synchronisation: any moment is a good one to be killed at
            for writer in writers:
                writer.kill()
            for writer in writers:
                output, _ = writer.communicate()
                returned.update(line for line in output.splitlines() if len(line) == 24)
            await store.append(step(f"after-{len(returned)}"))
    async with FileStore(path) as store:
        found = [record.id for record in await store.list("run")]
    assert len(found) == len({*found})
    assert returned <= {*found}


def forked(work: Callable[[], object]) -> int:
    """Do something in a forked child, which then ends, and return its process id."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_fork(path: Path) -> None:
    """A store goes on in a forked child, beside the same store in the parent; neither loses what the other wrote."""
    async with FileStore(path) as store:
        await store.append(step("before"))
        pid = forked(lambda: asyncio.run(asyncio.wait_for(append_all(store, "child"), 30)))
        await append_all(store, "parent")
        assert ended_well(pid)
    steps = await steps_in(path)
    assert steps[0] == "before"
    assert {*steps[1:]} == {f"{who}-{n}" for who in ("child", "parent") for n in range(50)}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_closing_in_a_forked_child(path: Path) -> None:
    """A child that leaves `async with` closes nothing of its parent's, and doesn't wait for a thread that it hasn't got."""
    async with FileStore(path) as store:
        await store.append(step("a"))
        assert ended_well(forked(lambda: asyncio.run(asyncio.wait_for(store.__aexit__(None, None, None), 10))))
        await store.append(step("b"))
    assert await steps_in(path) == ["a", "b"]


async def append_all(store: FileStore, who: str) -> None:
    assert (await store.list("run"))[0].step_id == "before"
    await asyncio.gather(*(store.append(step(f"{who}-{n}")) for n in range(50)))


@pytest.mark.parametrize(
    ("fork", "told"), [("os.fork", ["lost\n", "busy\n"]), ("ctypes.PyDLL(None).fork", ["lost\n"])], ids=["told", "untold"]
)
async def test_fork_takes_no_lock(path: Path, child: Child, fork: str, told: list[str]) -> None:
    """A forked child has no lock of its parent's: it can't use it, can't free it, and doesn't keep it when the parent dies.

    Nor does one that was forked without telling Python, as a server written in C may do. There no thread can be started for
    certain, so it only looks at the lock that it seems to hold.
    """
    script = """
    import ctypes
    import threading
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of a fork beside threads
    async def main():
        async with FileStore(sys.argv[1]) as store, store.lock("run") as lease:
            if FORK():
                os.write(1, b"locked\\n")
                await asyncio.sleep(60)
            from durable_core import LockLost, RunBusy
            try:
                lease.check()
                os.write(1, b"kept\\n")
            except LockLost:
                os.write(1, b"lost\\n")
            async def take():
                try:
                    async with store.lock("run"): os.write(1, b"taken\\n")
                except RunBusy as busy:
                    os.write(1, b"busy\\n" if str(os.getppid()) in busy.holder else b"by another\\n")
            if TOLD:
                thread = threading.Thread(target=lambda: asyncio.run(take()))  # for the loop is the parent's
                thread.start()
                thread.join()
            sys.stdin.readline()
            os._exit(0)
    asyncio.run(main())
    """
    parent = child(script.replace("FORK", fork).replace("TOLD", str(len(told) > 1)), path)
    assert parent.stdout
    assert {parent.stdout.readline() for _ in range(1 + len(told))} == {"locked\n", *told}
    async with FileStore(path) as store:
        with pytest.raises(RunBusy):
            async with store.lock("run"):
                pass
        parent.kill()
        parent.wait()
        async with store.lock("run"):
            pass


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_fork_while_another_thread_opens_the_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child gets no descriptor of it, which would keep the parent's locks when the parent dies."""
    opened = threading.Event()

    class LockFile(filelock._LockFile):
        def __init__(self, path: str, flags: int) -> None:
            super().__init__(path, flags)
            opened.set()
            threading.Event().wait(0.2)  # a fork that waits for nobody gets in here

    def look() -> None:
        lock_file = (tmp_path / filelock.LOCK_FOLDER / "log-00").stat()
        assert not any(_is_open_as(int(fd.name), lock_file) for fd in [*Path("/dev/fd").iterdir()])

    monkeypatch.setattr(filelock, "_LockFile", LockFile)
    async with FileStore(tmp_path) as store:
        appending = asyncio.create_task(store.append(step("a")))
        await asyncio.to_thread(opened.wait)
        assert ended_well(forked(look))
        await appending


def _is_open_as(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:  # that of the folder which was just listed
        return False


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_lease_after_fork(path: Path) -> None:
    """The parent keeps its lock when a child that was forked ends."""
    async with FileStore(path) as store, store.lock("run") as lease:

        def lost() -> None:
            with pytest.raises(LockLost):
                lease.check()

        assert ended_well(forked(lost))
        lease.check()
        with pytest.raises(RunBusy):
            async with store.lock("run"):
                pass


async def test_no_room(path: Path, child: Child) -> None:
    """When the disk is full the append fails with a clear error, nothing is lost, and once there is room all goes on."""
    script = """
    import resource, signal
    from durable_core import StoreError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async def main():
        async with FileStore(sys.argv[1]) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            n = 0
            while True:
                try:
                    await store.append(StepRecord(run_id="run", step_id=f"s{n}"))
                except StoreError as error:
                    print(error)
                    break
                n += 1
            large = StepRecord(run_id="run", step_id="large", result=b"[" + b"1," * 50_000 + b"1]")
            try:
                await store.append(large)
            except StoreError as error:
                print("large", type(error.__cause__).__name__)
            assert len(await store.list("run")) == n
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await store.append(large)
            print(n)
    asyncio.run(main())
    """
    first, second, count = finish(child(script, path)).splitlines()
    assert first.startswith("can't append to ")
    assert first.endswith("File too large (EFBIG)")
    assert second == "large OSError"
    assert await steps_in(path) == [*(f"s{n}" for n in range(int(count))), "large"]


async def test_large_one_takes_no_other_along(log: Path, child: Child) -> None:
    """Of appends that share a write, the one that there is no room for fails, and the others are stored."""
    script = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async def main():
        async with FileStore(sys.argv[1]) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
            large = StepRecord(run_id="run", step_id="large", result=b"[" + b"1," * 50_000 + b"1]")
            small = [StepRecord(run_id="run", step_id=f"s{n}") for n in range(10)]
            results = await asyncio.gather(*map(store.append, [*small, large]), return_exceptions=True)
            print([type(result).__name__ for result in results])
    asyncio.run(main())
    """
    assert finish(child(script, log)) == f"{['StepRecord'] * 10 + ['NoRoom']}\n"
    assert len(await steps_in(log)) == 10


async def test_lock_without_room(path: Path, child: Child) -> None:
    """A lock whose holder can't be written down on a full disk is not taken; once there is room, it can be."""
    script = """
    import resource, signal
    from durable_core import StoreError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async def main():
        async with FileStore(sys.argv[1]) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            try:
                await store.lock("run").__aenter__()
            except StoreError as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            async with store.lock("run") as lease:
                lease.check()
    asyncio.run(main())
    """
    output = finish(child(script, path))
    assert output.startswith("can't lock a run of ")
    assert output.endswith("File too large (EFBIG)\n")


async def test_lock_without_room_keeps_nobody_out(path: Path, child: Child) -> None:
    """A process that could not write down that it holds a run, and goes on, does not keep the run from others."""
    script = """
    import resource, signal
    from durable_core import StoreError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    async def main():
        async with FileStore(sys.argv[1]) as store:
            try:
                await store.lock("run").__aenter__()
            except StoreError as error:
                os.write(1, b"refused\\n")
                sys.stdin.readline()
    asyncio.run(main())
    """
    full = child(script, path)
    assert full.stdout
    assert full.stdout.readline() == "refused\n"
    async with FileStore(path) as store, store.lock("run") as lease:
        lease.check()


async def test_private_to_the_owner(path: Path) -> None:
    """What the store creates can be read by its owner only, whatever the umask; what was there keeps its mode."""
    place = path.parent / "new" / path.name
    umask = os.umask(0)
    try:
        async with FileStore(place) as store, store.lock("run"):
            await store.append(step("a"))
    finally:
        os.umask(umask)
    modes = {file.relative_to(path.parent): stat.S_IMODE(file.stat().st_mode) for file in path.parent.rglob("*")}
    assert {mode for file, mode in modes.items() if (path.parent / file).is_file()} == {0o600}
    assert {mode for file, mode in modes.items() if (path.parent / file).is_dir()} == {0o700}


async def test_no_permission(path: Path, child: Child) -> None:
    """Without permission to write there is one clear error, for the first append and the lock."""
    script = """
    from durable_core import StoreError
    if not os.geteuid():
        os.seteuid(65534)
    async def main():
        store = FileStore(sys.argv[1])
        for attempt in (store.append(StepRecord(run_id="run", step_id="a")), store.lock("run").__aenter__()):
            try:
                await attempt
            except StoreError as error:
                print(error)
    asyncio.run(main())
    """
    path.parent.chmod(0o555)
    for above in path.parents[1:4]:
        if above.stat().st_uid == os.geteuid() and above.name.startswith("pytest-"):
            above.chmod(0o755)
    output = finish(child(script, path)).splitlines()
    path.parent.chmod(0o755)
    assert len(output) == 2
    for line, doing in zip(output, ("append to", "lock a run of"), strict=True):
        assert line.startswith(f"can't {doing} ")
        assert "Permission denied; the folder and its files must be readable and writable" in line


async def test_scan_that_fails_closes_its_file(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses a sync, again and again, does not use up the process's files."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with FileStore(log) as store:
        await store.append(step("a"))
        before = len([*Path("/dev/fd").iterdir()])
        monkeypatch.setattr(_disk, "sync", fail)
        with pytest.raises(StoreError, match="EIO"):
            [record async for record in store.scan("run")]
        assert len([*Path("/dev/fd").iterdir()]) == before


async def test_thread_and_files_end(path: Path) -> None:
    """A closed store leaves no thread and no open file; so does one that was used and forgotten."""

    def now() -> tuple[int, int]:
        return threading.active_count(), len([*Path("/dev/fd").iterdir()])

    before = now()
    async with FileStore(path) as store:
        await store.append(step("a"))
        [record async for record in store.scan("run")]
    assert now() == before
    forgotten = FileStore(path)
    await forgotten.append(step("b"))
    async for _ in forgotten.scan("run"):
        break
    threads = [thread for thread in threading.enumerate() if thread.name == "durable-file"]
    del forgotten
    gc.collect()
    await asyncio.sleep(0)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert len([*Path("/dev/fd").iterdir()]) == before[1]


READ_ALL = """
async def main():
    store = FileStore(sys.argv[1])
    print([record.step_id for record in await store.list("run")])
    print((await store.get("run", "b")).step_id)
    print([run_id async for run_id in store.runs()])
    print([record.step_id async for record in store.scan("run")])
if not os.geteuid():
    os.seteuid(65534)
asyncio.run(main())
"""


@pytest.mark.parametrize("locks", ["readable", "private", "none"])
@pytest.mark.parametrize("name", ["runs", "runs.jsonl"])
async def test_read_only_folder(child: Child, locks: str, name: str) -> None:
    """A folder that may not be written can be read, and nothing is made in it, whatever is the case with its lock files."""
    with TemporaryDirectory() as made:  # pytest's own is for its user alone
        place = Path(made) / "logs" / name
        async with FileStore(place) as store:
            await store.append(step("a"))
            await store.append(step("b"))
        top = place if place.is_dir() else place.parent
        found = top / ".durable.locks"
        if locks == "none":
            shutil.rmtree(found)
        else:
            for file in [*found.iterdir(), found]:
                file.chmod((0o555 if file.is_dir() else 0o444) if locks == "readable" else 0o000)
        for file in top.glob("*.jsonl"):
            file.chmod(0o444)
        for folder in (Path(made), place.parent, top):
            folder.chmod(0o555)
        before = {*top.rglob("*")}
        assert finish(child(READ_ALL, place)).splitlines() == ["['a', 'b']", "b", "['run']", "['a', 'b']"]
        assert {*top.rglob("*")} == before
        for folder in (Path(made), place.parent, top, *([found] if found.exists() else [])):
            folder.chmod(0o755)
