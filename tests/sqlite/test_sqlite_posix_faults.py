"""Faults that only POSIX can make: killed writers, forked processes, a full disk, missing permissions."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from durable_core import LockLost, RunBusy, StepRecord
from durable_sqlite import SqliteStore
from tests.sqlite.conftest import Child

WRITE_FOR_EVER = """
async def write(store, task):
    n = 0
    while True:
        record = StepRecord(run_id="run", step_id=f"{os.getpid()}-{task}-{n}", result=b'"' + b"x" * (n % 7 * 700) + b'"')
        assert await store.append(record) is record
        os.write(1, (record.id + "\\n").encode())
        n += 1
async def main():
    async with SqliteStore(sys.argv[1]) as store:
        await asyncio.gather(*(write(store, task) for task in range(5)))
asyncio.run(main())
"""


def step(step_id: str, *, result: bytes = b"1") -> StepRecord:
    return StepRecord(run_id="run", step_id=step_id, result=result)


async def steps_in(path: Path) -> list[str]:
    """Return the run's step ids as a store that was just opened sees them."""
    async with SqliteStore(path) as store:
        return [record.step_id for record in await store.list("run")]


def is_sound(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return [*connection.execute("pragma integrity_check")] == [("ok",)]
    finally:
        connection.close()


@pytest.mark.parametrize("round_", range(3))
async def test_killed_writers(path: Path, child: Child, round_: int) -> None:
    """Writers that are killed at random moments lose nothing that an append returned, and leave a log that others go on with."""
    returned: set[str] = set()
    async with SqliteStore(path) as store:
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
    async with SqliteStore(path) as store:
        found = [record.id for record in await store.list("run")]
    assert len(found) == len({*found})
    assert returned <= {*found}
    assert is_sound(path)


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


async def append_all(store: SqliteStore, who: str) -> None:
    assert (await store.list("run"))[0].step_id == "before"
    for n in range(50):
        await store.append(step(f"{who}-{n}"))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_fork(path: Path) -> None:
    """A store goes on in a forked child, beside the same store in the parent; neither loses what the other wrote."""
    async with SqliteStore(path) as store:
        await store.append(step("before"))
        pid = forked(lambda: asyncio.run(asyncio.wait_for(append_all(store, "child"), 30)))
        await append_all(store, "parent")
        assert ended_well(pid)
    steps = await steps_in(path)
    assert steps[0] == "before"
    assert {*steps[1:]} == {f"{who}-{n}" for who in ("child", "parent") for n in range(50)}
    assert is_sound(path)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_child_outlives_its_parents_store(path: Path) -> None:
    """The parent closes the database while the child has it open: what the child commits then is not lost."""
    told, tell = os.pipe()

    def work() -> None:
        async def main() -> None:
            await store.append(step("child-0"))
            os.write(tell, b"x")
            while not (path.parent / "closed").exists():
                await asyncio.sleep(0.001)
            await store.append(step("child-1"))

        asyncio.run(asyncio.wait_for(main(), 30))

    store = SqliteStore(path)
    async with store:
        await store.append(step("before"))
        pid = forked(work)
        assert os.read(told, 1) == b"x"
        await store.append(step("parent"))
    (path.parent / "closed").touch()
    assert ended_well(pid)
    assert await steps_in(path) == ["before", "child-0", "parent", "child-1"]
    os.close(told)
    os.close(tell)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_fork_waits_for_the_transaction(path: Path) -> None:
    """What another thread has begun is committed before the fork, once, and the child is not stuck."""
    entered = threading.Event()

    def work(connection: sqlite3.Connection) -> StepRecord:
        entered.set()
        threading.Event().wait(0.1)  # a fork that waits for nobody gets in here
        return step("slow")

    async with SqliteStore(path) as store:
        await store.append(step("before"))
        slow = asyncio.ensure_future(store.transact(work))
        await asyncio.to_thread(entered.wait, 30)
        assert ended_well(forked(lambda: asyncio.run(asyncio.wait_for(append_all(store, "child"), 30))))
        assert (await slow) is not None
    assert (await steps_in(path))[:3] == ["before", "slow", "child-0"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_closing_in_a_forked_child(path: Path) -> None:
    """A child that leaves `async with` closes nothing of its parent's, and doesn't wait for a thread that it hasn't got."""
    async with SqliteStore(path) as store:
        await store.append(step("a"))
        assert ended_well(forked(lambda: asyncio.run(asyncio.wait_for(store.__aexit__(None, None, None), 10))))
        await store.append(step("b"))
    assert await steps_in(path) == ["a", "b"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_lease_after_fork(path: Path) -> None:
    """A child has no lock of its parent's; the parent keeps it when the child ends."""
    async with SqliteStore(path) as store, store.lock("run") as lease:

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
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    async def main():
        async with SqliteStore(sys.argv[1]) as store:
            await store.append(StepRecord(run_id="run", step_id="first"))
            limit(300_000)
            n = 0
            while True:
                try:
                    await store.append(StepRecord(run_id="run", step_id=f"s{n}"))
                except StoreError as error:
                    print(error)
                    break
                n += 1
            large = StepRecord(run_id="run", step_id="large", result=b"[" + b"1," * 200_000 + b"1]")
            attempts = store.append(large), store.set_wakeup("r", "f", large.ended_at)
            results = await asyncio.gather(*attempts, return_exceptions=True)
            print(*(type(result).__name__ for result in results))
            assert len(await store.list("run")) == n + 1
            limit(resource.RLIM_INFINITY)
            await store.append(large)
            print(n)
    asyncio.run(main())
    """
    output, _ = child(script, path).communicate(timeout=120)
    first, second, count = output.splitlines()
    assert str(path) in first
    assert "the disk refused the write, or has no room for it, and nothing was written" in first
    assert second.split()[0] == "StoreError"
    assert await steps_in(path) == ["first", *(f"s{n}" for n in range(int(count))), "large"]
    assert is_sound(path)


async def test_private_to_the_owner(path: Path) -> None:
    """What the store creates can be read by its owner only, whatever the umask; what was there keeps its mode."""
    umask = os.umask(0)
    try:
        async with SqliteStore(path) as store, store.lock("run"):
            await store.append(step("a"))
            modes = {file: stat.S_IMODE(file.stat().st_mode) for file in path.parent.rglob("*")}
    finally:
        os.umask(umask)
    assert {file.name for file in modes} >= {"runs.db", "runs.db-wal", "runs.db-shm", ".durable.locks"}
    assert {mode for file, mode in modes.items() if file.is_file()} == {0o600}
    assert {mode for file, mode in modes.items() if file.is_dir()} == {0o700}
    path.chmod(0o640)
    async with SqliteStore(path) as store:
        await store.append(step("b"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


WITHOUT_RIGHTS = """
if not os.geteuid():
    os.seteuid(65534)
async def main():
    store = SqliteStore(sys.argv[1])
    for attempt in (store.append(StepRecord(run_id="run", step_id="a")), store.lock("run").__aenter__()):
        try:
            await attempt
        except StoreError as error:
            print(error)
asyncio.run(main())
"""


@pytest.mark.parametrize("is_there", [False, True])
async def test_a_folder_that_may_not_be_written(child: Child, is_there: bool) -> None:
    """Without permission to write there is one clear error, for the first append and for the lock."""
    with TemporaryDirectory() as made:  # pytest's own is for its user alone
        path = Path(made) / "runs.db"
        if is_there:
            async with SqliteStore(path) as store:
                await store.append(step("a"))
        Path(made).chmod(0o555)
        output, _ = child(WITHOUT_RIGHTS, path).communicate(timeout=60)
        Path(made).chmod(0o755)
    lines = output.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert str(path) in line
        assert "for this user" in line


async def test_a_database_that_may_only_be_read(child: Child) -> None:
    """It can be read, and what can't be written is one clear error."""
    script = """
    if not os.geteuid():
        os.seteuid(65534)
    async def main():
        async with SqliteStore(sys.argv[1]) as store:
            print(*(record.step_id for record in await store.list("run")))
            try:
                await store.append(StepRecord(run_id="run", step_id="b"))
            except StoreError as error:
                print(error)
    asyncio.run(main())
    """
    with TemporaryDirectory() as made:
        path = Path(made) / "runs.db"
        async with SqliteStore(path) as store:
            await store.append(step("a"))
        path.chmod(0o444)
        Path(made).chmod(0o777)
        output, _ = child(script, path).communicate(timeout=60)
    assert output.splitlines()[0] == "a"
    assert "it can't be written; the file and its folder must be writable for this user" in output.splitlines()[1]
