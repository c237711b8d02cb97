"""Races and maps on a disk, in a process that is killed again and again."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

import pytest

from durable_core import open_store
from tests.core.many import programs

SECONDS = 240


async def start(command: str, url: str, ledger: Path, kill_after: int = 0) -> Process:
    """Start a program, which sends itself SIGKILL in its effect of this number."""
    arguments = (sys.executable, programs.__file__, command, url, str(ledger), str(kill_after))
    return await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, stderr=PIPE)


def lines_of(ledger: Path) -> Sequence[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


async def output_of(process: Process) -> str:
    async with asyncio.timeout(SECONDS):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode().strip()


async def recorded(url: str) -> set[str]:
    async with open_store(url) as store:
        return {record.step_id for record in await store.list("run") if record.status == "success"}


@pytest.mark.timeout(600)
async def test_a_map_of_5000_items_killed_five_times(tmp_path: Path) -> None:
    """Each effect happened once, but for those in flight at a kill; what was recorded never happens again; the sum is right."""
    url, ledger = f"file:{tmp_path}/runs", tmp_path / "ledger"
    seen, before = 0, set[str]()
    for kill in range(1, 6):
        process = await start("total", url, ledger, programs.ITEMS // 6 + kill)
        async with asyncio.timeout(SECONDS):
            await process.communicate()
        assert process.returncode == programs.KILLED
        lines = lines_of(ledger)
        done = {step_id.removeprefix("work/") for step_id in await recorded(url)}
        assert done <= {*lines}
        in_flight = {*lines} - done
        assert len(in_flight) <= programs.LIMIT
        assert not {*lines[seen:]} & before
        before, seen = done, len(lines)
    assert await output_of(await start("total", url, ledger)) == str(sum(range(programs.ITEMS)))
    lines = lines_of(ledger)
    assert not {*lines[seen:]} & before
    assert {*lines} == {str(number) for number in range(programs.ITEMS)}
    assert len(lines) <= programs.ITEMS + 5 * programs.LIMIT


@pytest.mark.timeout(600)
async def test_a_race_killed_at_random_moments(tmp_path: Path) -> None:
    """Whenever the process is killed, once a winner is recorded it stays that one, and nobody books anything more."""
    rng = random.Random(7)
    for number in range(4):
        url, ledger = f"file:{tmp_path}/runs-{number}", tmp_path / f"ledger-{number}"
        booked: Sequence[str] | None = None
        for _ in range(5):
            process = await start("trip", url, ledger)
            try:
                async with asyncio.timeout(rng.uniform(0.1, 1.5)):
                    await process.wait()
            except TimeoutError:
                process.kill()
            await process.communicate()
            assert booked is None or lines_of(ledger) == booked
            booked = lines_of(ledger) if "quickest" in await recorded(url) else None
        winner = await output_of(await start("trip", url, ledger))
        booked = lines_of(ledger)
        assert await output_of(await start("trip", url, ledger)) == winner
        assert lines_of(ledger) == booked
        assert winner in {"air", "rail"} & await recorded(url)
