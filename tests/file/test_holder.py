"""Who holds a run's lock, told without taking it."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from durable_core.store import Holder, holder_of
from durable_core.stores import filelock
from durable_file import FileStore
from tests.file.support import Child, step

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
    """Another process is named for as long as it lives; what it left written is not believed afterwards."""
    process = child(HOLD, path, "run")
    assert process.stdout
    pid = int(process.stdout.readline())
    async with FileStore(path) as store:
        assert holder_of(store) is store
        holder = await store.holder("run")
        assert holder is not None
        assert holder.name == f"process {pid} on {platform.node()[:40]} (-c)"
        assert holder.since is not None
        assert await store.holders(["other", "run"]) == {"run": holder}
        process.kill()
        process.wait()
        assert await store.holder("run") is None
        assert await store.holders(["other", "run"]) == {}


async def test_this_process(path: Path) -> None:
    """A holder in this process is named, by another store too; being asked takes nothing from it."""
    async with FileStore(path) as store, FileStore(path) as other:
        assert await other.holder("run") is None
        async with store.lock("run") as lease:
            for asked in (store, other):
                holder = await asked.holder("run")
                assert holder is not None
                assert holder.name == f"another runner in this process ({os.getpid()})"
            lease.check()
        assert await other.holder("run") is None
        async with other.lock("run"):
            pass


async def test_a_note_that_is_damaged(tmp_path: Path, child: Child) -> None:
    """Where the holder's note can't be read, the run is held all the same."""
    process = child(HOLD, tmp_path, "run")
    assert process.stdout
    process.stdout.readline()
    (lock_file,) = (tmp_path / ".durable.locks").iterdir()
    size = lock_file.stat().st_size
    with lock_file.open("r+b") as file:
        file.write(b"x" * size)
    async with FileStore(tmp_path) as store:
        assert await store.holder("run") == Holder("another process", None)


async def test_asking_makes_nothing(path: Path) -> None:
    """Being asked creates no file, also where there is no folder, or where the lock files went away."""
    async with FileStore(path) as store:
        assert await store.holder("run") is None
        assert [*path.parent.iterdir()] == []
        await store.append(step("a"))
        async with store.lock("run"):
            shutil.rmtree((path if path.is_dir() else path.parent) / ".durable.locks")
            assert await store.holder("run") is None
        assert not [*path.parent.rglob(".durable.locks")]
