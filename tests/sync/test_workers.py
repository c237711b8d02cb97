"""Blocking flows in the hands of a worker: waits, cancellations, shutdown, and locks that are lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import durable_core
from durable_core import LockLost, MemoryStore, RunCancelled, RunSuspended, StepFailed, control, engine
from durable_core.store import Lease
from durable_core.sync import Runner, Store, current_runner, flow
from durable_core.sync import control as blocking_control
from durable_worker import Worker
from tests.sync.conftest import here

told: dict[str, list[str]] = {}


def note(runner: Runner, what: object) -> None:
    told.setdefault(runner.run_id, []).append(what if isinstance(what, str) else type(what).__name__)


@flow(wait_limit=0)
def refund(runner: Runner, amount: int) -> str:
    try:
        note(runner, runner.step("begin", here))
        if not runner.approval("boss", {"amount": amount}).approved:
            return "rejected"
        return runner.step("pay", lambda: f"{amount} paid back")
    except BaseException as error:
        note(runner, error)
        if isinstance(error, RunCancelled):
            runner.step("undo", lambda: "undone", when_cancelled=True)
        raise


@flow
def stubborn(runner: Runner, ids: list[str]) -> None:
    """Waits, and goes on with steps whatever the wait raised, and each of them."""
    for step_id in ids:
        try:
            runner.event(step_id) if step_id == "a" else runner.step(step_id, here)
        except BaseException as error:
            note(runner, error)
    raise SystemError("the flow's own end")


@flow
def long(runner: Runner) -> None:
    began, goes_on = GATES[runner.run_id]

    def work() -> str:
        began.set()
        assert goes_on.wait(30)
        return "done"

    try:
        runner.step("work", work)
        runner.step("after", here)
    except BaseException as error:
        note(runner, error)
        raise


GATES: dict[str, tuple[threading.Event, threading.Event]] = {}


@flow
def looks_from_inside(runner: Runner) -> list[str]:
    runner.step("one", lambda: 1)
    others = [run.run_id for run in blocking_control.runs(runner.store, flow="refund")]
    return [*others, *(record.step_id for record in runner.store.list(runner.run_id))]


@durable_core.flow
async def outer(runner: durable_core.Runner) -> str:
    return await runner.flow("refund", refund, amount=7)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(autouse=True)
def _nothing_told() -> None:
    told.clear()


async def status_is(store: Any, run_id: str, *wanted: str) -> None:
    async with asyncio.timeout(30):
        while (await control.status(store, run_id)).status not in wanted:
            await asyncio.sleep(0.005)


async def test_a_blocking_flow_waits_and_ends(store: MemoryStore) -> None:
    """Each run has a thread of its own; it is suspended, approved and goes on."""
    async with Worker(store, [refund, outer], poll=0.05):
        runs = ["one", "two", "outer"]
        for run_id in runs[:2]:
            await engine.asynchronous(refund).start(store, run_id, amount=90)
        await outer.start(store, "outer")
        for run_id in runs:
            await status_is(store, run_id, "waiting")
        for run_id in ("one", "two", "outer/refund"):
            while not await store.get(run_id, "boss"):
                await asyncio.sleep(0.005)
            await control.approve(store, run_id, "boss", by="ada")
        assert [await control.result(store, run_id, timeout=30) for run_id in runs] == [
            "90 paid back",
            "90 paid back",
            "7 paid back",
        ]
    assert {*told["one"]} == {"durable-function", RunSuspended.__name__}


async def test_a_cancelled_run_undoes_and_ends(store: MemoryStore) -> None:
    """`RunCancelled` reaches the thread that waits, which may undo what it did."""
    async with Worker(store, [refund], poll=0.05):
        await engine.asynchronous(refund).start(store, "run", amount=90)
        async with asyncio.timeout(30):
            while not await store.get("run", "boss"):
                await asyncio.sleep(0.005)
        await control.cancel(store, "run", reason="enough")
        with pytest.raises(StepFailed) as failed:
            await control.result(store, "run", timeout=30)
        assert failed.value.error.matches(RunCancelled)
    assert await store.get("run", "undo") is not None
    assert told["run"][-1] == RunCancelled.__name__


async def test_a_shutdown_reaches_the_call_and_every_later_one(store: MemoryStore) -> None:
    """A worker that stops suspends what waits in a thread, and every later call raises the same; others go on with the run."""
    async with Worker(store, [stubborn], shutdown_timeout=0):
        await engine.asynchronous(stubborn).start(store, "run", ids=["a", "b", "c"])
        async with asyncio.timeout(30):
            while not await store.get("run", "a"):
                await asyncio.sleep(0.005)
    assert set(told["run"]) <= {RunSuspended.__name__, asyncio.CancelledError.__name__}
    assert len(told["run"]) == 3
    newest = await store.get("run", "$flow")
    assert newest is not None
    assert newest.status in ("waiting", "started")
    assert "handed_back" in newest.notes


async def test_a_shutdown_waits_for_a_thread(store: MemoryStore) -> None:
    """A step's function that runs is waited for and recorded; then the flow is told, and the run handed back."""
    began, goes_on = GATES["run"] = threading.Event(), threading.Event()
    worker = Worker(store, [long], shutdown_timeout=0.05)
    async with worker:
        await engine.asynchronous(long).start(store, "run")
        assert await asyncio.to_thread(began.wait, 30)
        asyncio.get_running_loop().call_later(0.3, goes_on.set)
    assert goes_on.is_set()
    assert [record.step_id for record in await store.list("run") if record.status == "success"] == ["work"]
    assert told["run"] in ([asyncio.CancelledError.__name__], [RunSuspended.__name__])
    async with Worker(store, [long]):
        await control.result(store, "run", timeout=30)


class Lossy(MemoryStore):
    """Its locks are lost when the test says so."""

    is_lost = False

    @asynccontextmanager
    async def lock(self, run_id: str) -> AsyncIterator[Lease]:
        async with super().lock(run_id):
            yield Losing(self)


class Losing(Lease):
    def __init__(self, store: Lossy) -> None:
        self._store = store

    def check(self) -> None:
        if self._store.is_lost:
            raise LockLost("it is another's by now")


async def test_a_lost_lock_reaches_the_call_and_every_later_one() -> None:
    """`LockLost` is raised where the asynchronous runner raises it, and nothing is recorded of the run."""
    store = Lossy()

    @flow
    def loses(runner: Runner) -> None:
        runner.step("one", lambda: 1)
        store.is_lost = True
        for _ in range(2):
            try:
                runner.step("two", lambda: 2)
            except BaseException as error:
                note(runner, error)
        runner.step("two", lambda: 2)

    with pytest.raises(LockLost):
        await engine.asynchronous(loses).run(store, "run")
    assert told["run"] == ["LockLost", "LockLost"]
    assert [record.status for record in await store.list("run")] == ["started", "success"]


async def test_a_cancelled_task_reaches_the_thread(store: MemoryStore) -> None:
    """Where the task is cancelled that drives the run, each call in the thread raises `CancelledError`."""
    driving = asyncio.create_task(engine.asynchronous(stubborn).run(store, "run", ids=["a", "b"]))
    async with asyncio.timeout(30):
        while not await store.get("run", "a"):
            await asyncio.sleep(0.005)
    driving.cancel()
    with pytest.raises(SystemError):
        await driving
    assert told["run"] == ["CancelledError", "CancelledError"]
    assert await store.get("run", "b") is None


async def test_a_cancelled_task_reaches_a_call_elsewhere(store: MemoryStore) -> None:
    """A thread that waits for another store, on the library's own loop, is told as well."""
    other = MemoryStore()

    @flow
    def looks_elsewhere(runner: Runner) -> None:
        runner.step("one", here)
        for _ in blocking_control.follow(other, "another", "progress"):
            pass

    driving = asyncio.create_task(engine.asynchronous(looks_elsewhere).run(store, "run"))
    async with asyncio.timeout(30):
        while not await store.get("run", "one"):
            await asyncio.sleep(0.005)
    await asyncio.sleep(0)
    driving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driving


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_a_flow_uses_its_store_on_the_workers_loop(kind: str, tmp_path: Any) -> None:
    """`runner.store` and `control` work in the thread of a run, on the worker's own event loop."""
    url = f"sqlite:{tmp_path / 'runs.db'}" if kind == "sqlite" else "memory:"
    async with durable_core.open_store(url) as store, Worker(store, [looks_from_inside]):
        await engine.asynchronous(refund).start(store, "other", amount=1)
        await engine.asynchronous(looks_from_inside).start(store, "run")
        assert await control.result(store, "run", timeout=30) == ["other", "$flow", "$flow", "one"]


async def test_each_call_of_a_run_goes_to_its_workers_loop(store: MemoryStore) -> None:
    """Steps, waits and the store of a run are worked on where its lock and its connections are."""

    async def loop() -> int:
        return id(asyncio.get_running_loop())

    @flow
    def look(runner: Runner) -> list[int]:
        with Runner(runner.store, "another") as another:
            return [runner.step("loop", loop), another.step("loop", loop)]

    assert await engine.asynchronous(look).run(store, "run") == [await loop()] * 2


async def test_a_thread_of_an_asynchronous_flow_uses_its_runner(store: MemoryStore) -> None:
    """What `current_runner` of the blocking face gives there goes to the loop on which the run is driven."""

    async def loop() -> int:
        return id(asyncio.get_running_loop())

    @durable_core.flow
    async def look(runner: durable_core.Runner) -> int:
        return await asyncio.to_thread(lambda: current_runner().step("loop", loop))

    assert await look.run(store, "run") == await loop()


def test_a_worker_takes_what_it_can_run(store: MemoryStore) -> None:
    """A blocking flow stands among flows, aliases and schedules; a blocking store is refused with what to give."""
    Worker(store, [refund], aliases={"old": refund}).cron("0 9 * * *", refund, input={"amount": 1})
    with pytest.raises(TypeError, match="engine.asynchronous"):
        Worker(Store(store), [refund])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"such as \[refund\]"):
        Worker(store, refund)  # type: ignore[arg-type]
