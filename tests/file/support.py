"""What the tests of durable-file do again and again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from durable_core import StepRecord
from durable_file import FileStore

Child = Callable[..., "subprocess.Popen[str]"]

READ_SLOWLY = """
from durable_file import _disk
real = _disk.read_lines
def read_lines(*args):
    print("reading", flush=True)
    sys.stdin.readline()
    return real(*args)
_disk.read_lines = read_lines
print("trying", flush=True)
print(*(record.step_id for record in asyncio.run(FileStore(sys.argv[1]).list("run"))))
"""


def finish(process: subprocess.Popen[str], answer: str | None = None) -> str:
    """Give the process an answer that it waits for, if any, and return what it printed; it must end well."""
    output, _ = process.communicate(answer, timeout=60)
    assert process.returncode == 0
    return output


def step(step_id: str, run_id: str = "run", *, revision: int = 0, result: bytes = b"1") -> StepRecord:
    return StepRecord(run_id=run_id, step_id=step_id, revision=revision, result=result)


async def steps_in(path: Path, run_id: str = "run") -> list[str]:
    """Return the run's step ids as a store that was just opened sees them."""
    async with FileStore(path) as store:
        return [record.step_id for record in await store.list(run_id)]
