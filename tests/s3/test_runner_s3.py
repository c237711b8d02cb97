"""Whole runs on S3, in processes that are killed at an append."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from durable_core import Runner, open_store
from durable_core.testing import CrashingStore
from tests.servers.s3 import SERVERS

pytestmark = pytest.mark.asyncio

SPAWN = multiprocessing.get_context("spawn")
STEPS = 4


def crash(url: str, witness: str, at: int, when: str) -> None:
    """Run the flow, and be killed at its append number `at`."""

    async def main() -> None:
        async with open_store(url) as store:
            await flow(CrashingStore(store, at, when=when, how="kill"), Path(witness))  # type: ignore[arg-type]  # checked there

    asyncio.run(main())


async def flow(store: CrashingStore, witness: Path) -> list[int]:
    """Run steps that leave a mark when they have run; the last one at most once."""
    async with Runner(store, "run", lock_wait=60) as runner:
        values = [await runner.step(f"step-{number}", mark, str(witness), number) for number in range(STEPS)]
        return [*values, *[await runner.step("last", mark, str(witness), STEPS)]]


def mark(witness: str, number: int) -> int:
    descriptor = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    return number


def start(work: object, *arguments: object) -> SpawnProcess:
    process = SPAWN.Process(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # any function of this module
    process.start()
    return process


@pytest.mark.parametrize("s3_url", SERVERS[-1:], indirect=True)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_killed_at_any_append_is_resumed(s3_url: str, tmp_path: Path, when: str) -> None:
    """Nothing acknowledged is lost; only a step whose outcome was not stored runs again, and it alone."""

    async def killed_at(at: int) -> None:
        witness, url = tmp_path / f"{when}-{at}", f"{s3_url.replace('/logs', f'/logs-{when}-{at}', 1)}&lease=10"
        process = start(crash, url, str(witness), at, when)
        await asyncio.to_thread(process.join)
        assert process.exitcode == -9
        process.close()
        async with open_store(url) as store:
            resumed = CrashingStore(store, 1000)
            assert await flow(resumed, witness) == [*range(STEPS + 1)]
            assert [record.step_id for record in await store.list("run")] == [
                *(f"step-{number}" for number in range(STEPS)),
                "last",
            ]
            stored = at - (when == "before")
            assert resumed.appends == STEPS + 1 - stored
        ran = [int(line) for line in witness.read_text().split()]
        assert ran == [*range(at), *range(stored, STEPS + 1)]

    # At once, so that the leases of those that were killed run out at the same time.
    async with asyncio.TaskGroup() as tasks:
        for at in (1, 3, STEPS + 1):
            tasks.create_task(killed_at(at))
