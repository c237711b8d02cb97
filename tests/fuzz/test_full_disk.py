"""A disk that fills up in the middle of a line or a page: an append that returned is there, and any other is a clear error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# In namespaces of its own, where a user may mount a small disk; it is gone when the program ends.
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
SCRIPT = """
import asyncio, subprocess, sys
from pathlib import Path

from durable_core import StepRecord, StoreError, open_store

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(disk)], check=True)
url = sys.argv[2].format(disk)
ballast = disk / "ballast"
ballast.write_bytes(bytes(900_000))


def in_the_middle():
    # The disk gives room by pages. The log was cut back to its last line, which ends within one; the write-ahead log keeps a
    # part of a frame.
    if url.startswith("file:"):
        return (disk / "runs.jsonl").stat().st_size % 4_096
    return ((disk / "runs.db-wal").stat().st_size - 32) % (4_096 + 24)


async def fill(store, returned, errors):
    # Results of all lengths, so that the room ends at any place of a line.
    for number in range(100_000):
        result = b'"' + b"x" * (number * 37 % 3_001) + b'"'
        try:
            returned.append(await store.append(StepRecord(run_id="run", step_id=f"s{len(returned)}-{number}", result=result)))
        except StoreError as error:
            errors.append(str(error))
            return


async def main():
    returned, errors = [], []
    async with open_store(url) as store:
        await fill(store, returned, errors)
        assert in_the_middle(), "nothing of the append that failed had found room"
        assert [*await store.list("run")] == returned
        await fill(store, returned, errors)  # a smaller one may still find room
        ballast.unlink()
        await fill(store, returned, errors)
        assert [*await store.list("run")] == returned
    async with open_store(url) as store:
        assert [*await store.list("run")] == returned
    assert len(errors) == 3 and len(returned) > 100, (len(returned), errors)
    print(errors[0])


asyncio.run(main())
"""


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="this system lets nobody mount a disk of his own")
@pytest.mark.parametrize("url", ["file:{}/runs.jsonl", "sqlite:{}/runs.db"], ids=["file", "sqlite"])
def test_a_full_disk(tmp_path: Path, url: str) -> None:
    """The disk is full in the middle of a line. What returned is read, by the same store and a new one, and it goes on."""
    command = [*UNSHARE, sys.executable, "-c", SCRIPT, str(tmp_path), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stdout or "full" in done.stdout
