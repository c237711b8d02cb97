"""`control.looks`: a run's entries, read again until its flow has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from durable_core import MemoryStore, NotFound, Runner, StepRecord, control, flow
from durable_core.testing import FakeClock


@flow
async def ask(runner: Runner) -> bool:
    return bool(await runner.approval("ask"))


async def test_looks_go_on_until_the_run_has_ended() -> None:
    """The first look comes at once, a later one when somebody acted, and the last one holds the end."""
    store = MemoryStore()
    running = asyncio.create_task(ask.run(store, run_id="run"))
    while await store.get("run", "ask") is None:
        await asyncio.sleep(0)
    seen: list[list[tuple[str, str]]] = []
    async with asyncio.timeout(10):  # a memory store is polled every thirty seconds
        async for entries in control.looks(store, "run"):
            seen.append([(record.step_id, record.status) for record in entries])
            if len(seen) == 1:
                await control.approve(store, "run", "ask", by="alice")
    await running
    assert seen[0] == [("$flow", "started"), ("ask", "waiting")]
    assert seen[-1] == [*seen[0], ("ask", "success"), ("$flow", "success")]


async def test_a_run_without_a_flow_has_no_end() -> None:
    """Looks come at the store's pace for as long as anybody asks; where reading takes long, nine times that later still."""

    class Slow(MemoryStore):
        poll_seconds = 2.0
        watch = None  # type: ignore[assignment]  # which begins after some time of the machine's own clock, and is told of

        async def list(self, run_id: str) -> Sequence[StepRecord]:
            clock.advance(took)
            return await super().list(run_id)

    clock, store, times = FakeClock(), Slow(), []
    await store.append(StepRecord(run_id="run", step_id="step"))
    looks = control.looks(store, "run", clock=clock)
    for took in (0, 0, 1, 0):  # noqa: B007  # `list` reads it
        await anext(looks)
        times.append(clock.monotonic())
    assert times == [0, 2, 5, 16]
    await looks.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_run_that_is_not_there() -> None:
    """Nothing is waited for."""
    with pytest.raises(NotFound, match="there is no run 'run'"):
        await anext(control.looks(MemoryStore(), "run"))
