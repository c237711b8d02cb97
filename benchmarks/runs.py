"""What many runs of one process cost, on any store: steps under the lock, runs that wait, and a decision that lets one go on."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta
from statistics import median
from time import perf_counter, process_time
from uuid import uuid4

from durable_core import Runner, StepRecord, Store, control
from durable_core.stores.flows import FLOW

STEPS = 5
DECISIONS = 30
WINDOW = 31.0  # seconds: one more than the longest pause between two looks


async def effect() -> dict[str, int]:
    return {"amount": 1250}


async def step_seconds(store: Store, runs: int) -> float:
    """Return what a step costs where so many runs go on at once, each under its lock, which is taken and given back too."""
    name = uuid4().hex

    async def one(run: int) -> None:
        async with Runner(store, run_id=f"{name}-{run}") as runner:
            for step in range(STEPS):
                await runner.step(f"step-{step}", effect)

    gc.collect()
    began = perf_counter()
    await asyncio.gather(*map(one, range(runs)))
    return (perf_counter() - began) / (runs * STEPS)


async def waiting_share(store: Store, runs: int = 1_000) -> float:
    """Return the share of a core, in percent, that so many runs take while they wait for events."""
    name = uuid4().hex

    async def one(run: int) -> None:
        async with Runner(store, run_id=f"{name}-{run}") as runner:
            await runner.event("never")

    waiting = [asyncio.create_task(one(run)) for run in range(runs)]
    while await store.get(f"{name}-{runs - 1}", "never") is None:
        await asyncio.sleep(0.1)
    await asyncio.sleep(3)  # until all wait, and the first, shorter pauses are over
    began, start = process_time(), perf_counter()
    await asyncio.sleep(WINDOW)
    share = (process_time() - began) / (perf_counter() - start) * 100
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return share


async def decision_seconds(store: Store) -> float:
    """Return the median time from an approval to the waiting run of the same process going on."""
    taken: list[float] = []
    async with Runner(store, run_id=f"decisions-{uuid4().hex}") as runner:
        for number in range(DECISIONS):
            step_id = f"ask-{number}"
            waiting = asyncio.create_task(runner.approval(step_id, {"amount": 90}))
            while await store.get(runner.run_id, step_id) is None:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            began = perf_counter()
            await control.approve(store, runner.run_id, step_id, by="alice")
            await waiting
            taken.append(perf_counter() - began)
    return median(taken)


async def add_flows(store: Store, runs: int) -> None:
    """Record so many runs that began a second after each other; every second one has ended, the others wait for a person."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    ended, waiting = {"status": "success", "result": b"1"}, {"status": "waiting", "note": {"waiting_for": [["run", "approve"]]}}

    async def add(number: int) -> None:
        stands = waiting if number % 2 else ended
        at = began + timedelta(seconds=number)
        for revision, fields in enumerate(({"status": "started", "note": {"input": {"order": number}}}, stands)):
            fields = {"kind": "flow", "name": "pay", "started_at": at, "ended_at": at, **fields}
            await store.append(StepRecord(run_id=f"order-{number:06}", step_id=FLOW, revision=revision, **fields))

    for start in range(0, runs, 1_000):
        await asyncio.gather(*map(add, range(start, min(runs, start + 1_000))))


async def finding_seconds(store: Store, rounds: int = 9) -> float:
    """Return the median time in which the 50 newest runs that wait are found, and their logs read."""
    taken: list[float] = []
    for _ in range(rounds + 1):
        began = perf_counter()
        assert len([run async for run in control.runs(store, status="waiting", limit=50)]) == 50
        taken.append(perf_counter() - began)
    return median(taken[1:])  # the first one may make the index
