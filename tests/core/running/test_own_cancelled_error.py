"""A `CancelledError` that user code raises while nobody cancelled the task is a failure like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from durable_core import Lease, MemoryStore, Recovered, Runner, StepEvent, StepFailed, StepInterrupted, StoreError, flow
from tests.core.conftest import Effects


async def another_was_cancelled() -> None:
    """Await a task that somebody else cancelled, as a closed channel does."""
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


def raised_in_a_thread() -> None:
    raise asyncio.CancelledError


def awaited_from_a_thread() -> Any:
    return another_was_cancelled()


@pytest.mark.parametrize(
    "fn", [another_was_cancelled, raised_in_a_thread, awaited_from_a_thread, lambda: another_was_cancelled()]
)
async def test_a_step_fails_and_is_retried(fn: Callable[[], Any], effects: Effects) -> None:
    """It is recorded, and attempts are counted."""
    store = MemoryStore()
    events: list[str] = []

    def counted() -> Any:
        effects.happen()
        return fn()

    runner = Runner(store, "run", max_attempts=3, on_event=lambda event: events.append(event.type))
    with pytest.raises(StepFailed) as failed:
        await runner.step("send", counted)
    assert failed.value.error.matches(asyncio.CancelledError)
    assert effects["effect"] == 3
    assert events.count("step:retry") == 2
    (record,) = await store.list("run")
    assert (record.status, record.attempt) == ("failure", 3)


async def test_a_task_group_in_a_flow_hears_of_it() -> None:
    """A group passes over a child that was cancelled: the flow would be recorded as a success, and nothing sent."""
    store = MemoryStore()

    @flow(max_attempts=3)
    async def job(runner: Runner) -> str:
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.step("send", another_was_cancelled))
        return "sent"

    with pytest.raises(StepFailed, match="'send'"):
        await job.run(store, run_id="run")
    latest = {record.step_id: record.status for record in await store.list("run")}
    assert latest == {"$flow": "failure", "send": "failure"}


async def test_recover_fails_with_it() -> None:
    """The step stays as it was found, and the runner's own task is not taken for cancelled."""
    store = MemoryStore()

    async def hang() -> None:
        await asyncio.Event().wait()

    step = asyncio.ensure_future(Runner(store, "run").step("pay", hang, at_most_once=True))
    while not await store.list("run"):
        await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait({step})
    async with Runner(store, "run") as runner:
        with pytest.raises(StepInterrupted) as stopped:
            await runner.step("pay", hang, at_most_once=True, recover=another_was_cancelled)
        assert isinstance(stopped.value.__cause__, asyncio.CancelledError)
        assert await runner.step("pay", hang, at_most_once=True, recover=lambda: Recovered(None)) is None


async def test_a_handler_that_raises_it_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    """As with everything else that a handler raises."""

    async def handler(event: StepEvent) -> None:
        await another_was_cancelled()

    assert await Runner(MemoryStore(), "run", on_event=handler).step("s", lambda: 1) == 1
    assert "on_event raised" in caplog.text


async def test_a_flow_fails_with_it() -> None:
    """The flow's own code may await what somebody else cancelled, too."""
    store = MemoryStore()

    @flow
    async def job(runner: Runner) -> None:
        await another_was_cancelled()

    with pytest.raises((StepFailed, asyncio.CancelledError)):
        await job.run(store, run_id="run")
    newest = await store.get("run", "$flow")
    assert newest is not None
    assert newest.revision == 1
    assert newest.error is not None
    assert newest.error.matches(asyncio.CancelledError)


async def test_a_retry_on_that_names_types_is_asked_about_it(effects: Effects) -> None:
    """`Exception` stands for every failure; other types have to match."""

    async def fail() -> None:
        effects.happen()
        await another_was_cancelled()

    with pytest.raises(StepFailed):
        await Runner(MemoryStore(), "a").step("s", fail, max_attempts=3, retry_on=OSError)
    assert effects["effect"] == 1
    with pytest.raises(StepFailed):
        await Runner(MemoryStore(), "b").step("s", fail, max_attempts=3, retry_on=(OSError, asyncio.CancelledError))
    assert effects["effect"] == 4


@pytest.mark.parametrize("moment", ["list", "enter", "leave"])
async def test_a_store_that_raises_it_is_a_store_that_failed(moment: str) -> None:
    """A task group would take it for its own, and end well."""

    class Confused(MemoryStore):
        async def list(self, run_id: str) -> Any:
            if moment == "list":
                await another_was_cancelled()
            return await super().list(run_id)

        @asynccontextmanager
        async def lock(self, run_id: str) -> AsyncIterator[Lease]:
            if moment == "enter":
                await another_was_cancelled()
            async with super().lock(run_id) as lease:
                yield lease
            if moment == "leave":
                await another_was_cancelled()

    @flow
    async def job(runner: Runner) -> str:
        return "done"

    with pytest.raises(ExceptionGroup) as failed:
        async with asyncio.TaskGroup() as group:
            group.create_task(job.run(Confused(), run_id="run"))
    assert failed.value.subgroup(StoreError)
