"""Waiting from outside for a run's end, and for its value."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from durable_core import (
    MemoryStore,
    Refused,
    RunCancelled,
    Runner,
    RunSuspended,
    StepDrift,
    StepFailed,
    StepRecord,
    control,
    flow,
)
from durable_core.testing import FakeClock


@dataclass
class Parcel:
    weight: int
    sent: datetime


SENT = datetime(2026, 3, 29, tzinfo=UTC)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@flow
async def packs(runner: Runner) -> Parcel:
    weight = await runner.event("weighed", returns=int)
    if weight < 0:
        await runner.step("weigh", lambda: 1 / 0)
    return Parcel(weight, SENT)


async def test_the_value_of_a_run_that_has_ended(store: MemoryStore) -> None:
    """As the type that is asked for, or as it was recorded."""
    await control.send(store, "run", "weighed", 3)
    await packs.run(store, run_id="run")
    assert await control.result(store, "run", returns=Parcel) == Parcel(3, SENT)
    assert await control.result(store, "run") == {"weight": 3, "sent": "2026-03-29T00:00:00Z"}
    assert await control.result(store, "run", returns=None) is None
    with pytest.raises(StepDrift, match="can't be read as <class 'int'>"):
        await control.result(store, "run", returns=int)


async def test_the_end_is_heard_at_once(store: MemoryStore) -> None:
    """From a runner in this process, across suspensions, by any number of those who wait."""
    with pytest.raises(RunSuspended):
        await packs.options(wait_limit=0).run(store, run_id="run")
    waiting = [asyncio.ensure_future(control.result(store, "run", returns=Parcel)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(RunSuspended):
        await packs.options(wait_limit=0).run(store, run_id="run")
    await control.send(store, "run", "weighed", 3)
    await packs.run(store, run_id="run")
    async with asyncio.timeout(5):  # a look of a store in memory comes after thirty seconds
        assert await asyncio.gather(*waiting) == [Parcel(3, SENT)] * 3


async def test_the_end_in_another_process_is_looked_for(store: MemoryStore) -> None:
    """Within two seconds, where the store says nothing else."""

    class Looks(MemoryStore):
        poll_seconds = 2.0

    store, clock = Looks(), FakeClock()
    await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", status="started"))
    waiting = asyncio.ensure_future(control.result(store, "run", clock=clock))
    await asyncio.sleep(0)
    await store.append(StepRecord(run_id="run", step_id="$flow", kind="flow", revision=1, result=b"7"))
    while not waiting.done():
        clock.advance(2)
        await asyncio.sleep(0)
    assert await waiting == 7


async def test_a_failure_is_raised_as_run_does(store: MemoryStore) -> None:
    """With the step that failed, and how to retry it; a cancelled run matches `RunCancelled`."""
    await control.send(store, "run", "weighed", -1)
    with pytest.raises(StepFailed) as ran:
        await packs.run(store, run_id="run")
    with pytest.raises(StepFailed) as told:
        await control.result(store, "run")
    assert told.value == ran.value
    assert told.value.step_id == "weigh"
    assert "retry(store, 'run', 'weigh')" in told.value.__notes__[0]
    await packs.start(store, "dropped")
    await control.cancel(store, "dropped", reason="sold out")
    with pytest.raises(StepFailed, match="sold out") as cancelled:
        await control.result(store, "dropped")
    assert cancelled.value.error.matches(RunCancelled)


async def test_a_run_that_takes_too_long(store: MemoryStore) -> None:
    """`TimeoutError` says how it stands; with no time to wait, what is there is looked at once."""
    await packs.start(store, "run")
    with pytest.raises(TimeoutError, match="'run' has not ended within 0 s.*waiting"):
        await control.result(store, "run", timeout=0)
    clock = FakeClock()
    waiting = asyncio.ensure_future(control.result(store, "run", timeout=90, clock=clock))
    for _ in range(100):
        clock.advance(1)
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError, match="90 s"):
        await waiting
    await control.send(store, "run", "weighed", 3)
    await packs.run(store, run_id="run")
    assert await control.result(store, "run", returns=Parcel, timeout=0) == Parcel(3, SENT)


async def test_runs_that_have_no_end(store: MemoryStore) -> None:
    """One that isn't there, one without a flow, and one that is cleared while it is waited for."""
    with pytest.raises(Refused, match="no run 'nowhere'"):
        await control.result(store, "nowhere")
    await Runner(store, "alone").step("a", lambda: 1)
    with pytest.raises(Refused, match="'alone' has no flow"):
        await control.result(store, "alone")
    await packs.start(store, "run")
    waiting = asyncio.ensure_future(control.result(store, "run"))
    await asyncio.sleep(0)
    await Runner(store, "run").reset()
    async with Runner(store, "run"):  # whose end wakes who waits
        pass
    with pytest.raises(Refused, match="no run 'run'"):
        await waiting
    with pytest.raises(ValueError, match="timeout"):
        await control.result(store, "alone", timeout=-1)
