"""How a run stands, as its entries and its lock tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest

from durable_core import (
    CorruptLog,
    Holder,
    MemoryStore,
    RunCancelled,
    Runner,
    RunSuspended,
    StepError,
    StepFailed,
    StepInterrupted,
    StepRecord,
    control,
    flow,
)
from durable_core.testing import FakeClock
from tests.core.conftest import Killed


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def append(store: MemoryStore, step_id: str, status: Any, revision: int = 0, **fields: Any) -> StepRecord:
    kind = "flow" if step_id.startswith("$") else "step"
    fields = {"run_id": "run", "kind": kind, **fields}
    return await store.append(StepRecord(step_id=step_id, status=status, revision=revision, **fields))


@flow(wait_limit=0)
async def order(runner: Runner, *, what: str) -> dict[str, str]:
    await runner.step("begin", lambda: what, returns=str)
    if what == "fail":
        await runner.step("charge", lambda: 1 / 0)
    if what in ("wait", "cancel"):
        await runner.approval("ask", timeout=60)
    if what == "killed":
        raise Killed
    if what == "typo":
        raise NameError("totl")
    return {"done": what}


async def test_status_tells_runs_apart(store: MemoryStore) -> None:
    """Each run is what came of it; `runs` and `status` agree."""
    for what in ("end", "fail", "wait", "killed", "cancel", "typo"):
        with contextlib.suppress(StepFailed, RunSuspended, Killed, NameError):
            await order.run(store, run_id=what, what=what)
    await order.start(store, "asked", what="later")
    await order.start(store, "dropped", what="later")
    for run_id in ("cancel", "dropped"):
        await control.cancel(store, run_id, reason="the customer called", by="alice")
    found = {status.run_id: status async for status in control.runs(store)}
    assert {run_id: status.status for run_id, status in found.items()} == {
        "end": "succeeded",
        "fail": "failed",
        "wait": "waiting",
        "killed": "interrupted",
        "cancel": "cancelling",
        "typo": "crashed",
        "asked": "waiting",
        "dropped": "cancelled",
    }
    for run_id, status in found.items():
        assert await control.status(store, run_id) == status
    assert (found["end"].flow, found["end"].input, found["end"].steps) == ("order", {"what": "end"}, 1)
    assert found["end"].result == {"done": "end"}
    assert found["wait"].waiting_for == ("ask",)
    assert found["wait"].until is not None
    assert found["fail"].failed == ("charge",)
    for run_id, error in (("fail", ZeroDivisionError), ("typo", NameError), ("dropped", RunCancelled)):
        told = found[run_id].error
        assert told is not None
        assert told.matches(error)
    assert found["typo"].until is not None
    assert found["cancel"].why == found["dropped"].why == "the customer called"
    assert {run.result for run in found.values() if run.run_id != "end"} == {None}
    with pytest.raises(StepFailed):
        await order.run(store, run_id="cancel", what="cancel")
    assert (await control.status(store, "cancel")).status == "cancelled"


async def test_a_run_in_a_live_process_is_running_or_waits(store: MemoryStore) -> None:
    """Its lock is held, and whose it is is told; once a wait is recorded it waits, and then runs on."""
    began, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @flow
    async def work(runner: Runner) -> None:
        began.set()
        await go.wait()
        await runner.event("packed")
        began.set()
        await done.wait()

    task = asyncio.ensure_future(work.run(store, run_id="run"))
    await began.wait()
    began.clear()
    status = await control.status(store, "run")
    assert status.status == "running"
    assert status.holder == await store.holder("run") is not None
    go.set()
    while await store.get("run", "packed") is None:
        await asyncio.sleep(0)
    status = await control.status(store, "run")
    assert (status.status, status.waiting_for) == ("waiting", ("packed",))
    assert status.holder is not None
    await control.send(store, "run", "packed", 1)
    await began.wait()
    assert (await control.status(store, "run")).status == "running"
    done.set()
    await task
    status = await control.status(store, "run")
    assert (status.status, status.holder, status.waiting_for) == ("succeeded", None, ())


async def test_a_run_whose_process_died_in_a_wait_is_interrupted(store: MemoryStore) -> None:
    """Nobody holds it, so nobody goes on with it when the answer comes."""
    await append(store, "$flow", "started")
    await append(store, "packed", "waiting", kind="event")
    status = await control.status(store, "run")
    assert (status.status, status.waiting_for) == ("interrupted", ("packed",))


async def test_a_store_that_tells_no_holder() -> None:
    """Whether a run that was started is alive can't be told: it waits if it has waits, and passes for interrupted else."""

    class Plain:
        def __init__(self) -> None:
            store = MemoryStore()
            self.append, self.get, self.list, self.clear = store.append, store.get, store.list, store.clear

    store: Any = Plain()
    await append(store, "$flow", "started")
    assert (await control.status(store, "run")).status == "interrupted"
    await append(store, "packed", "waiting", kind="event")
    assert (await control.status(store, "run")).status == "waiting"


async def test_a_child_that_waits_in_a_live_process_lets_its_parent_run(store: MemoryStore) -> None:
    """What a child waits for stands in the child's own log."""
    await append(store, "$flow", "started")
    await append(store, "bill", "waiting", kind="flow", note={"run": "run/bill", "flow": "bill", "input": {}})
    async with store.lock("run"):
        status = await control.status(store, "run")
    assert (status.status, status.children, status.waiting_for) == ("running", ("run/bill",), ("bill",))


async def test_a_run_that_ends_between_the_two_looks() -> None:
    """It is not told to be interrupted: its lock was given back because it had ended."""

    class Ends(MemoryStore):
        async def holders(self, run_ids: Collection[str]) -> Mapping[str, Holder]:
            await append(self, "$flow", "success", 1, result=b"7")
            return await super().holders(run_ids)

    store = Ends()
    await append(store, "$flow", "started")
    assert (await control.status(store, "run")).status == "succeeded"


async def test_a_parked_run_tells_what_would_help(store: MemoryStore) -> None:
    """The step, why, and the call that mends it; once that is done it waits for its turn."""

    @flow
    async def pay(runner: Runner) -> None:
        await runner.step("charge", lambda: None, at_most_once=True)

    await append(store, "charge", "started")
    with pytest.raises(StepInterrupted):
        await pay.run(store, run_id="run")
    status = await control.status(store, "run")
    assert (status.status, status.failed, status.until) == ("parked", ("charge",), None)
    assert status.why is not None
    assert "'charge'" in status.why
    assert status.mend is not None
    assert "retry" in status.mend
    await control.resolve(store, "run", "charge", reason="seen")
    status = await control.status(store, "run")
    assert (status.status, status.failed, status.why, status.mend) == ("waiting", (), None, None)


async def test_times_of_a_flow_that_is_not_over(store: MemoryStore) -> None:
    """A failure that the flow caught is no end; the earliest time of its waits is told, and when something last changed."""
    clock = FakeClock()
    began = clock.now()

    @flow(wait_limit=0, clock=clock)
    async def waits(runner: Runner) -> None:
        with contextlib.suppress(StepFailed):
            await runner.step("look-up", lambda: 1 / 0)
        await asyncio.gather(runner.sleep("nap", 3600), runner.approval("ask", timeout=60), return_exceptions=True)

    await control.send(store, "run", "early", 1, clock=clock)
    clock.advance(1)
    with pytest.raises(RunSuspended):
        await waits.run(store, run_id="run")
    status = await control.status(store, "run")
    assert (status.status, status.error, status.failed) == ("waiting", None, ())
    assert {*status.waiting_for} == {"nap", "ask"}
    assert status.until == began + timedelta(seconds=61)
    assert status.started_at == began + timedelta(seconds=1)  # when its flow did
    clock.advance(5)
    await control.approve(store, "run", "ask", by="alice", clock=clock)
    status = await control.status(store, "run")
    assert (status.status, status.waiting_for) == ("waiting", ("nap",))
    assert status.until == began + timedelta(seconds=3601)
    assert status.changed_at == began + timedelta(seconds=6)


async def test_a_run_that_got_all_it_waited_for_waits_for_its_turn(store: MemoryStore) -> None:
    """The deadline of what was decided is no time of its own any more."""
    with pytest.raises(RunSuspended):
        await order.run(store, run_id="run", what="wait")
    await control.approve(store, "run", "ask", by="alice")
    status = await control.status(store, "run")
    assert (status.status, status.waiting_for, status.until) == ("waiting", (), None)


async def test_a_run_without_a_flow(store: MemoryStore) -> None:
    """It is open; it failed where a step's failure is its newest entry; it is cancelled from the request on."""
    runner = Runner(store, "run")
    await runner.step("a", lambda: 1)
    status = await control.status(store, "run")
    assert (status.status, status.flow, status.input, status.result) == ("open", None, None, None)
    with pytest.raises(StepFailed):
        await runner.step("b", lambda: 1 / 0)
    status = await control.status(store, "run")
    assert (status.status, status.failed) == ("failed", ("b",))
    assert status.error is not None
    assert status.error.matches(ZeroDivisionError)
    await runner.step("c", lambda: 1)
    status = await control.status(store, "run")
    assert (status.status, status.error, status.failed) == ("open", None, ())
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0).event("d")
    assert (await control.status(store, "run")).waiting_for == ("d",)
    async with Runner(store, "run"):
        assert (await control.status(store, "run")).holder is not None
    await control.cancel(store, "run", reason="enough")
    status = await control.status(store, "run")
    assert (status.status, status.why, status.waiting_for) == ("cancelled", "enough", ())


@pytest.mark.parametrize("status", ["started", "waiting", "reopened"])
async def test_a_cancellation_of_an_older_log_counts(store: MemoryStore, status: str) -> None:
    """`$cancel` beside `$flow` says that the run is to stop, until it has ended."""
    await append(store, "$flow", status)
    await append(store, "$cancel", "success", note={"reason": "enough"})
    run = await control.status(store, "run")
    assert (run.status, run.why) == ("cancelling", "enough")
    await append(store, "$flow", "success", 1)
    assert (await control.status(store, "run")).status == "succeeded"


async def test_families_and_forks_are_named(store: MemoryStore) -> None:
    """Whose child a run is, whose parent, and whence it was forked; a note of another shape names nothing."""
    note = {"parent": {"run": "top", "step": "bill"}, "origin": {"run": "old", "before": "pay"}}
    await append(store, "$flow", "started", note=note)
    for step_id, child in (("a", "run/a"), ("b", "run/b"), ("again", "run/a"), ("odd", 7)):
        await append(store, step_id, "waiting", kind="flow", note={"run": child})
    await append(store, "a", "success", 1, kind="flow", note={"run": "run/a"})
    status = await control.status(store, "run")
    assert (status.parent, status.origin) == (("top", "bill"), ("old", "pay"))
    assert status.children == ("run/a", "run/b")
    await append(store, "$flow", "started", 1, note={"parent": {"run": 7}, "origin": "old"})
    status = await control.status(store, "run")
    assert (status.parent, status.origin) == (None, None)


async def test_waits_that_lost_are_not_waited_for(store: MemoryStore) -> None:
    """Between the winner's entry and their withdrawal, too; nobody is asked to decide them."""
    await append(store, "rail", "waiting", kind="approval")
    await append(store, "road", "waiting", kind="approval")
    await append(store, "quickest", "success", kind="first", result=b'"ship"', note={"lost": ["rail"]})
    assert (await control.status(store, "run")).waiting_for == ("road",)
    assert [record.step_id async for record in control.pending(store)] == ["road"]
    await append(store, "road", "failure", 1, kind="approval", error=StepError("durable_core.errors.Withdrawn"))
    assert [record async for record in control.pending(store)] == []


async def test_a_long_log_is_read_once(store: MemoryStore) -> None:
    """How a run stands takes one look at its log; where it seems to be interrupted, one more at its flow."""
    looks: list[str] = []

    class Counts(MemoryStore):
        async def list(self, run_id: str) -> Sequence[StepRecord]:
            looks.append(run_id)
            return await super().list(run_id)

    store = Counts()
    await append(store, "$flow", "waiting")
    await control.status(store, "run")
    await append(store, "$flow", "started", 1)
    assert (await control.status(store, "run")).status == "interrupted"
    assert looks == ["run", "run"]


async def test_a_result_that_cant_be_read_is_told_with_its_place() -> None:
    """It hides no other run."""
    store = MemoryStore()
    for run_id, result in (("bad", b"1e400"), ("good", b"1")):
        await store.append(StepRecord(run_id=run_id, step_id="$flow", kind="flow", name="pays", result=result))
    with pytest.raises(CorruptLog, match="run 'bad'"):
        await control.status(store, "bad")
    found = []
    with pytest.raises(CorruptLog, match="run 'bad'"):
        async for run in control.runs(store):
            found.append(run.run_id)  # noqa: PERF401  # what comes before the error is looked at
    assert found == ["good"]


async def test_entries_that_are_there_are_not_read_again() -> None:
    """Who has read the log gives it to `status`, which reads nothing then."""
    store = MemoryStore()
    await append(store, "$flow", "started", name="pay")
    await append(store, "$flow", "success", 1, name="pay", result=b"1")
    entries = await store.list("run")
    await store.clear("run")
    assert (await control.status(store, "run", entries=entries)).result == 1
