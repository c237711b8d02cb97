"""A failure ends a run only while it stands, and only for who holds the run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_core import CorruptLog, Flow, LockLost, MemoryStore, Runner, StepFailed, StepRecord, control, flow
from tests.core.conftest import FlakyStore
from tests.core.running.test_last_check import LosesItsLock

REFUSES = [True]


def pay() -> str:
    if REFUSES:
        raise ConnectionError("the bank is closed")
    return "paid"


@flow
async def job(runner: Runner) -> str:
    return await runner.step("pay", pay)


@pytest.fixture(autouse=True)
def refuses() -> None:
    REFUSES[:] = [True]


@flow(name="job")
async def job_in_a_group(runner: Runner) -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(runner.step("pay", pay))
    return task.result()


@pytest.mark.parametrize("job", [job, job_in_a_group], ids=["alone", "in a group"])
async def test_a_failure_that_was_mended_meanwhile_does_not_end_the_run(job: Flow[[], str]) -> None:
    """`retry` came between the failure of the step and that of the flow: the run goes on at once."""
    store = FlakyStore()

    async def mend(record: StepRecord) -> None:
        if record.step_id == "pay" and record.status == "failure":
            store.after = None
            await control.retry(store, "run", "pay")
            REFUSES.clear()

    store.after = mend
    assert await job.run(store, run_id="run") == "paid"
    assert [record.status for record in await store.list("run") if record.step_id == "$flow"] == ["started", "success"]


async def test_who_lost_the_run_does_not_end_it() -> None:
    """Another runner may have gone past the failure."""
    store = LosesItsLock()

    async def lose(record: StepRecord) -> None:
        store.lost = record.step_id == "pay"

    store.after = lose
    with pytest.raises(LockLost):
        await job.run(store, run_id="run")
    newest = await store.get("run", "$flow")
    assert newest is not None
    assert newest.status == "started"


async def test_an_error_of_the_flow_is_not_hidden_by_a_failure_that_was_mended() -> None:
    """The caller may still be handling the old failure when it runs the flow again."""
    store = MemoryStore()

    @flow
    async def typo(runner: Runner) -> None:
        await runner.step("pay", pay)
        raise ValueError("a typo")

    with pytest.raises(ValueError, match="a typo"):
        try:
            await typo.run(store, run_id="run")
        except StepFailed:
            REFUSES.clear()
            await control.retry(store, "run", "pay")
            await typo.run(store, run_id="run")


@pytest.mark.parametrize("note", [{"input": 5}, {"input": None}, {"input": {}, "defaults": 3}], ids=repr)
async def test_a_damaged_note_is_told_with_its_place(note: Any) -> None:
    """Not as a type error of the library."""
    store = MemoryStore()
    await store.append(StepRecord(run_id="run", step_id="$flow", status="started", kind="flow", name="job", note=note))
    with pytest.raises(CorruptLog, match="'run'"):
        await job.run(store, run_id="run")
