"""The entries of each kind of step are exactly the documented ones, on every store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from durable_core import Decision, Recovered, Runner, RunSuspended, StepFailed, Store, control, flow
from durable_core.testing import FakeClock
from tests.core.conftest import Killed


async def chain(store: Store, step_id: str = "step", run_id: str = "run") -> list[tuple[int, str]]:
    return [(record.revision, record.status) for record in await store.list(run_id) if record.step_id == step_id]


def fail() -> None:
    raise OSError("no")


async def crash() -> str:
    raise Killed


def runner(store: Store, clock: FakeClock, **options: Any) -> Runner:
    return Runner(store, "run", clock=clock, **options)


async def test_plain_step(store: Store, clock: FakeClock) -> None:
    """0 `success`, or 0 `failure`."""
    await runner(store, clock).step("step", lambda: 1)
    with pytest.raises(StepFailed):
        await runner(store, clock).step("other", fail)
    assert await chain(store) == [(0, "success")]
    assert await chain(store, "other") == [(0, "failure")]


async def test_at_most_once(store: Store, clock: FakeClock) -> None:
    """0 `started`, 1 `success`."""
    await runner(store, clock).step("step", lambda: 1, at_most_once=True)
    assert await chain(store) == [(0, "started"), (1, "success")]


@pytest.mark.parametrize(
    ("found", "expected"),
    [(Recovered("found"), [(0, "started"), (1, "success")]), (None, [(0, "started"), (1, "started"), (2, "success")])],
    ids=["recovered", "again"],
)
async def test_at_most_once_interrupted_and_recovered(store: Store, clock: FakeClock, found: Any, expected: Any) -> None:
    """0 `started`, 1 `success`; or, when it starts again, 1 `started`, 2 `success`."""
    with pytest.raises(Killed):
        await runner(store, clock).step("step", crash, at_most_once=True)
    async with runner(store, clock) as second:
        await second.step("step", lambda: "again", at_most_once=True, recover=lambda: found, returns=str)
    assert await chain(store) == expected


async def test_failed_step_tried_again(store: Store, clock: FakeClock) -> None:
    """0 `failure`, 1 `reopened`, 2 `success`."""
    with pytest.raises(StepFailed):
        await runner(store, clock).step("step", fail)
    await control.retry(store, "run", "step")
    assert await runner(store, clock).step("step", lambda: 1) == 1
    assert await chain(store) == [(0, "failure"), (1, "reopened"), (2, "success")]


async def test_sleep(store: Store, clock: FakeClock) -> None:
    """0 `waiting` (until), 1 `success`."""
    began = clock.now()
    await runner(store, clock).sleep("step", timedelta(hours=1))
    assert await chain(store) == [(0, "waiting"), (1, "success")]
    first = (await store.list("run"))[0]
    assert (first.kind, first.until) == ("sleep", began + timedelta(hours=1))


async def test_approval(store: Store, clock: FakeClock) -> None:
    """0 `waiting` (what is shown, who may decide, until), 1 `success` (the decision)."""
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).approval("step", {"amount": 90}, timeout=60, approvers=["alice", "bob"])
    (waiting,) = await store.list("run")
    assert waiting.note == {"show": {"amount": 90}, "approvers": ["alice", "bob"]}
    assert waiting.until == clock.now() + timedelta(seconds=60)
    await control.approve(store, "run", "step", by="alice", reason="checked", clock=clock)
    decision = await runner(store, clock).approval("step", {"amount": 90}, timeout=60, approvers=["alice", "bob"])
    assert decision == Decision(True, "alice", "checked", clock.now())
    assert await chain(store) == [(0, "waiting"), (1, "success")]


async def test_approval_by_two_people(store: Store, clock: FakeClock) -> None:
    """0 `waiting`, 1 `waiting` (one vote), 2 `success`; the same person twice doesn't count."""
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).approval("step", "refund", quorum=2)
    for name in ("alice", "alice", "bob"):
        await control.approve(store, "run", "step", by=name, clock=clock)
    assert await chain(store) == [(0, "waiting"), (1, "waiting"), (2, "success")]
    last = (await store.list("run"))[-1]
    assert [vote["by"] for vote in last.note["votes"]] == ["alice", "bob"]
    assert (await runner(store, clock).approval("step", "refund", quorum=2)).approved


async def test_wait_whose_deadline_passed(store: Store, clock: FakeClock) -> None:
    """0 `waiting`, 1 `failure`."""
    with pytest.raises(StepFailed) as failed:
        await runner(store, clock).approval("step", "refund", timeout=60)
    assert failed.value.error.matches(TimeoutError)
    assert await chain(store) == [(0, "waiting"), (1, "failure")]


async def test_event_sent_before_anyone_waits(store: Store, clock: FakeClock) -> None:
    """0 `success`."""
    await control.send(store, "run", "step", {"parcel": 7})
    assert await runner(store, clock).event("step") == {"parcel": 7}
    assert await chain(store) == [(0, "success")]


async def test_event_sent_while_the_run_waits(store: Store, clock: FakeClock) -> None:
    """0 `waiting`, 1 `success`."""
    with pytest.raises(RunSuspended):
        await runner(store, clock, wait_limit=0).event("step")
    await control.send(store, "run", "step", 7)
    assert await runner(store, clock).event("step", returns=int) == 7
    assert await chain(store) == [(0, "waiting"), (1, "success")]


async def test_flow(store: Store, clock: FakeClock) -> None:
    """0 `started` (name and input), 1 `success`."""

    @flow(clock=clock)
    async def add(runner: Runner, *, a: int, b: int) -> int:
        return await runner.step("add", lambda: a + b, returns=int)

    assert await add.run(store, run_id="run", a=1, b=2) == 3
    assert await add.run(store, run_id="run", a=1, b=2) == 3
    assert await chain(store, "$flow") == [(0, "started"), (1, "success")]
    first = (await store.list("run"))[0]
    assert (first.kind, first.name, first.note) == ("flow", "add", {"input": {"a": 1, "b": 2}})


async def test_interrupted_step_resolved_by_hand(store: Store, clock: FakeClock) -> None:
    """0 `started`, 1 `success` with the reason."""
    with pytest.raises(Killed):
        await runner(store, clock).step("step", crash, at_most_once=True)
    await control.resolve(store, "run", "step", "paid", reason="seen in the bank's log")
    assert await runner(store, clock).step("step", crash, at_most_once=True) == "paid"
    assert await chain(store) == [(0, "started"), (1, "success")]
    assert (await store.list("run"))[-1].note == {"reason": "seen in the bank's log"}
