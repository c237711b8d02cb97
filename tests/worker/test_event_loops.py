"""A worker that was made once works in one event loop after the other, as in functions of a cloud, and in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import timedelta
from pathlib import Path

from durable_core import Runner, flow
from durable_core.control import result
from durable_core.store import WakeUp
from durable_sqlite import SqliteStore
from durable_worker import Worker


async def _draw() -> str:
    await asyncio.sleep(0.02)
    return "drawn"


@flow(concurrency=("pdf", 1))
async def draw(runner: Runner) -> str:
    return await runner.step("draw", _draw)


class CountingStore(SqliteStore):
    """Counts the looks for wake-ups."""

    looks = 0

    async def take_wakeups(self, flows: Collection[str], *, limit: int, visibility_timeout: timedelta) -> Sequence[WakeUp]:
        self.looks += 1
        return await super().take_wakeups(flows, limit=limit, visibility_timeout=visibility_timeout)


def test_rounds_in_several_event_loops(tmp_path: Path) -> None:
    """Runs wait for a place of their limit in each of them."""
    store = SqliteStore(tmp_path / "runs.db")
    worker = Worker(store, [draw])

    async def one_round(number: int) -> int:
        for name in "abc":
            await draw.start(store, f"{name}{number}")
        return (await worker.sweep()).succeeded

    assert [asyncio.run(one_round(number)) for number in range(3)] == [3, 3, 3]


def test_a_worker_in_the_background_of_several_event_loops(tmp_path: Path) -> None:
    """Those who wait for a place, and for the next poll, do so in the loop that runs."""
    store = CountingStore(tmp_path / "runs.db")
    worker = Worker(store, [draw], poll=60)

    async def work(number: int) -> list[str]:
        names = [f"{name}{number}" for name in "abc"]
        for name in names:
            await draw.start(store, name)
        async with worker, asyncio.timeout(20):
            values = [await result(store, name) for name in names]
            await asyncio.sleep(0.2)  # idle, which is no hot loop
            return values

    assert [asyncio.run(work(number)) for number in range(3)] == [["drawn"] * 3] * 3
    assert store.looks < 60
