"""Acting on runs from outside: what runs is not touched, what isn't there is told, one bad run hides no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

import durable_core
from durable_core import (
    CorruptLog,
    Decision,
    MemoryStore,
    Refused,
    RunBusy,
    RunCancelled,
    Runner,
    StepFailed,
    StepInterrupted,
    StepRecord,
    StoreError,
    control,
    flow,
)
from durable_core.control import RunStatus


async def running_step(store: MemoryStore, go: asyncio.Event) -> asyncio.Task[Any]:
    """Begin a step that may happen only once, under the run's lock, and return once its function runs."""
    began = asyncio.Event()

    async def pay() -> str:
        began.set()
        await go.wait()
        return "paid"

    async def run() -> str:
        async with Runner(store, "run") as runner:
            return await runner.step("pay", pay, at_most_once=True)

    task = asyncio.ensure_future(run())
    await began.wait()
    return task


@pytest.mark.parametrize("act", ["resolve", "retry"])
async def test_a_step_that_runs_is_not_decided_by_hand(act: str) -> None:
    """Its real outcome would stand nowhere."""
    store, go = MemoryStore(), asyncio.Event()
    task = await running_step(store, go)
    with pytest.raises(RunBusy):
        if act == "resolve":
            await control.resolve(store, "run", "pay", "not paid", reason="guessed")
        else:
            await control.retry(store, "run", "pay")
    go.set()
    assert await task == "paid"
    assert [record.status for record in await store.list("run")] == ["started", "success"]


async def test_a_flow_that_runs_is_not_decided_by_hand() -> None:
    """Its real outcome would stand nowhere."""
    store, go, began = MemoryStore(), asyncio.Event(), asyncio.Event()

    @flow
    async def job(runner: Runner) -> str:
        began.set()
        await go.wait()
        return "done"

    task = asyncio.ensure_future(job.run(store, run_id="run"))
    await began.wait()
    with pytest.raises(RunBusy):
        await control.resolve(store, "run", "$flow", "guessed", reason="guessed")
    go.set()
    assert await task == "done"


async def test_what_came_of_a_step_while_its_lock_was_waited_for_stands() -> None:
    """The newest entry is looked at again under the lock."""
    store, go = MemoryStore(), asyncio.Event()
    task = await running_step(store, go)
    lock = store.lock

    def slow_lock(run_id: str) -> Any:
        go.set()

        class Waits:
            async def __aenter__(self) -> Any:
                await task
                self.context = lock(run_id)
                return await self.context.__aenter__()

            async def __aexit__(self, *error: Any) -> None:
                await self.context.__aexit__(*error)

        return Waits()

    store.lock = slow_lock  # type: ignore[method-assign]
    with pytest.raises(Refused, match="success"):
        await control.resolve(store, "run", "pay", "not paid", reason="guessed")
    assert [record.status for record in await store.list("run")] == ["started", "success"]


STEP_FUNCTIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    "approve": lambda store, run, step: control.approve(store, run, step, by="alice"),
    "reject": lambda store, run, step: control.reject(store, run, step, by="alice"),
    "resolve": lambda store, run, step: control.resolve(store, run, step, 1, reason="seen"),
    "retry": lambda store, run, step: control.retry(store, run, step),
    "send": lambda store, run, step: control.send(store, run, step, 1),
    "fork": lambda store, run, step: control.fork(store, run, "another", before=step),
}
RUN_FUNCTIONS: dict[str, Callable[..., Awaitable[Any]]] = {
    "cancel": control.cancel,
    "status": control.status,
    "copy": lambda store, run: control.copy(store, run, MemoryStore()),
}


@pytest.mark.parametrize("name", STEP_FUNCTIONS)
async def test_a_step_that_is_not_there_is_told(name: str) -> None:
    """`NotFound` is a `Refused` that says what is there; only an event may be sent before anybody waits for it."""
    store = MemoryStore()
    await Runner(store, "run").step("there", lambda: 1)
    if name == "send":
        await control.send(store, "new-run", "event", 1)
        return
    with pytest.raises(durable_core.NotFound, match="'there'"):
        await STEP_FUNCTIONS[name](store, "run", "missing")
    with pytest.raises(durable_core.NotFound, match="'run'"):
        await STEP_FUNCTIONS[name](store, "missing", "there")


@pytest.mark.parametrize("name", RUN_FUNCTIONS)
async def test_a_run_that_is_not_there_is_told(name: str) -> None:
    """The message names runs that are there."""
    store = MemoryStore()
    await Runner(store, "run").step("there", lambda: 1)
    with pytest.raises(durable_core.NotFound, match="'run'"):
        await RUN_FUNCTIONS[name](store, "missing")
    assert issubclass(durable_core.NotFound, Refused)


BAD = ["", "x" * 513, "a\nb", "\ud800"]


@pytest.mark.parametrize("bad", BAD, ids=["empty", "long", "control", "surrogate"])
@pytest.mark.parametrize("name", [*STEP_FUNCTIONS, *RUN_FUNCTIONS])
async def test_every_id_is_checked(name: str, bad: str) -> None:
    """Before anything is asked of the store; the error shows the value."""

    class Untouchable(MemoryStore):
        async def get(self, run_id: str, step_id: str) -> StepRecord | None:
            raise AssertionError("the store was asked")

        async def list(self, run_id: str) -> Sequence[StepRecord]:
            raise AssertionError("the store was asked")

    store = Untouchable()
    with pytest.raises(ValueError, match="run_id"):
        if name in RUN_FUNCTIONS:
            await RUN_FUNCTIONS[name](store, bad)
        else:
            await STEP_FUNCTIONS[name](store, bad, "step")
    if name in STEP_FUNCTIONS:
        with pytest.raises(ValueError, match="step_id|before"):
            await STEP_FUNCTIONS[name](store, "run", bad)


class OneIsDamaged(MemoryStore):
    async def list(self, run_id: str) -> Sequence[StepRecord]:
        if run_id == "run-3":
            raise CorruptLog("run-3.jsonl, line 1: the checksum doesn't match")
        return await super().list(run_id)


async def collect(found: AsyncIterator[Any], into: list[Any]) -> None:
    async for each in found:
        into.append(each)  # noqa: PERF401  # what came before an error counts


@flow(wait_limit=0)
async def ask(runner: Runner) -> Decision:
    return await runner.approval("go")


async def test_one_damaged_run_hides_no_other() -> None:
    """`pending` and `runs` yield the rest, and then raise."""
    store = OneIsDamaged()
    for n in range(6):
        if n == 3:  # runs are listed in the order in which they began
            store._runs["run-3"] = store._runs["run-2"]
            continue
        with pytest.raises(durable_core.RunSuspended):
            await ask.run(store, run_id=f"run-{n}")
    seen: list[StepRecord] = []
    with pytest.raises(CorruptLog, match="run-3"):
        await collect(control.pending(store), seen)
    assert sorted(record.run_id for record in seen) == ["run-0", "run-1", "run-2", "run-4", "run-5"]
    stood: list[RunStatus] = []
    with pytest.raises(CorruptLog, match="run-3"):
        await collect(control.runs(store), stood)
    assert len(stood) == 5


async def test_a_log_that_cannot_be_read_hides_no_other() -> None:
    """What is wrong with it is told after the rest."""

    class Closed(MemoryStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            if run_id == "b":
                raise StoreError("the file can't be opened: permission denied")
            return await super().list(run_id)

    store = Closed()
    for name in ("a", "b", "c"):
        await store.append(StepRecord(run_id=name, step_id="s"))
    found: list[RunStatus] = []
    with pytest.raises(StoreError, match="permission denied"):
        await collect(control.runs(store), found)
    assert {status.run_id for status in found} == {"a", "c"}


@pytest.mark.parametrize("note", [["a"], "text", 7, True], ids=repr)
async def test_a_note_of_another_shape_raises_no_attribute_error(note: Any) -> None:
    """Whatever stands in a log is read, or told as damage."""
    store = MemoryStore()
    await store.append(StepRecord(run_id="run", step_id="$flow", status="started", kind="flow", name="ask", note=note))
    await store.append(StepRecord(run_id="run", step_id="go", status="waiting", kind="approval", note=note))
    await store.append(StepRecord(run_id="run", step_id="failed", status="failure", error=durable_core.StepError("E"), note=note))
    assert (await control.status(store, "run")).input is None
    with pytest.raises(durable_core.DurableError):
        await control.approve(store, "run", "go", by="alice")
    await control.resolve(store, "run", "failed", 1, reason="seen")
    await store.append(StepRecord(run_id="cancelled", step_id="$cancel", kind="flow", note=note))
    async with Runner(store, "cancelled") as runner:
        with pytest.raises(RunCancelled):
            await runner.step("s", lambda: 1)


async def test_a_failure_in_a_task_group_names_its_step() -> None:
    """Run, step and error come first, now and on every later run, and `retry` of that step lets the run go on."""
    store, refuses = MemoryStore(), True

    def pay_back() -> str:
        if refuses:
            raise ConnectionError("the bank is closed")
        return "paid"

    @flow
    async def refund(runner: Runner) -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(runner.step("pay-back", pay_back))
        return task.result()

    told = r"^run 'refund-1003' failed at step 'pay-back': ConnectionError: the bank is closed"
    for again in (False, True):
        with pytest.raises(StepFailed, match=told) as failed:
            await refund.run(store, run_id="refund-1003")
        assert failed.value.step_id == "pay-back"
        assert failed.value.error.matches(ConnectionError)
        notes = "".join(getattr(failed.value, "__notes__", ()))
        assert ("retry(store, 'refund-1003', 'pay-back')" in notes) is again
    refuses = False
    await control.retry(store, "refund-1003", "pay-back")
    assert await refund.run(store, run_id="refund-1003") == "paid"


async def test_an_interrupted_step_in_a_task_group_is_not_hidden() -> None:
    """What stops a run is not recorded as its failure: it is parked."""
    store = MemoryStore()
    await store.append(StepRecord(run_id="run", step_id="pay", status="started"))

    @flow
    async def job(runner: Runner) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.step("pay", lambda: None, at_most_once=True))

    with pytest.raises(ExceptionGroup) as stopped:
        await job.run(store, run_id="run")
    assert stopped.value.subgroup(StepInterrupted)
    newest = await store.get("run", "$flow")
    assert newest is not None
    assert newest.status == "waiting"
    status = await control.status(store, "run")
    assert (status.status, status.failed) == ("parked", ("pay",))
