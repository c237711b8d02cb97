"""What a decision carries: a changed value, a rejection by its deadline, and events that went wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from durable_core import (
    AlreadyDecided,
    DeadlinePassed,
    Decision,
    MemoryStore,
    Refused,
    Runner,
    RunSuspended,
    SentFailure,
    StepFailed,
    control,
)
from durable_core.testing import FakeClock


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def ask(store: MemoryStore, clock: FakeClock | None = None, **options: Any) -> None:
    with pytest.raises(RunSuspended):
        await Runner(store, "run", wait_limit=0, clock=clock).approval("refund", {"amount": 90}, **options)


async def decision(store: MemoryStore, clock: FakeClock | None = None) -> Decision:
    return await Runner(store, "run", clock=clock).approval("refund", {"amount": 90})


async def test_a_person_may_change_what_was_shown(store: MemoryStore) -> None:
    """The flow finds it in the decision; it stands in the votes, too."""
    await ask(store)
    record = await control.approve(store, "run", "refund", by="alice", value={"amount": 45})
    assert (await decision(store)).value == {"amount": 45}
    assert record.note["votes"][0]["value"] == {"amount": 45}


@pytest.mark.parametrize("act", [control.approve, control.reject])
async def test_a_decision_without_a_value_is_recorded_as_before(store: MemoryStore, act: Any) -> None:
    """The value is left out of the JSON where it is None."""
    await ask(store)
    record = await act(store, "run", "refund", by="alice", reason="checked")
    assert msgspec.json.decode(record.result).keys() == {"approved", "by", "reason", "at"}
    assert record.note["votes"][0].keys() == {"by", "approved", "reason", "at"}
    assert (await decision(store)).value is None


@pytest.mark.parametrize("first", [None, 50, True])
async def test_nobody_changes_alone_what_several_approve(store: MemoryStore, first: object) -> None:
    """A value counts once as many have approved it; without one, people approve what the last one before made of it."""
    await ask(store, quorum=2)
    await control.approve(store, "run", "refund", by="alice", value=first)
    await control.approve(store, "run", "refund", by="bob", value=1)
    record = await store.get("run", "refund")
    assert record is not None
    assert record.status == "waiting"
    await control.approve(store, "run", "refund", by="carol")
    made = await decision(store)
    assert (made.by, made.value) == ("carol", 1)


async def test_who_approved_another_value_may_answer_again(store: MemoryStore) -> None:
    """Then all have approved the same; a rejection's value is its own."""
    await ask(store, quorum=2)
    await control.approve(store, "run", "refund", by="alice")
    await control.approve(store, "run", "refund", by="bob", value=1)
    await control.approve(store, "run", "refund", by="alice", value=1)
    assert (await decision(store)).value == 1
    store = MemoryStore()
    await ask(store, quorum=3)
    await control.approve(store, "run", "refund", by="alice", value=45)
    await control.reject(store, "run", "refund", by="bob")
    assert (await decision(store)).value is None


async def test_another_value_is_another_decision(store: MemoryStore) -> None:
    """Before the last vote it takes the place of the first; after it, it is refused. The same again changes nothing."""
    await ask(store, quorum=2)
    await control.approve(store, "run", "refund", by="alice", value=45)
    await control.approve(store, "run", "refund", by="alice", value=60)
    record = await control.approve(store, "run", "refund", by="bob")
    assert await control.approve(store, "run", "refund", by="alice", value=60) == record
    with pytest.raises(AlreadyDecided):
        await control.approve(store, "run", "refund", by="alice", value=45)
    assert (await decision(store)).value == 60


async def test_a_value_is_recorded_as_json_or_refused(store: MemoryStore) -> None:
    """What can't come back is refused before anything is appended."""

    @dataclass
    class Amount:
        euros: int

    await ask(store)
    with pytest.raises(TypeError, match="the value of a decision"):
        await control.approve(store, "run", "refund", by="alice", value={"f": lambda: 1})
    assert len(await store.list("run")) == 1
    await control.approve(store, "run", "refund", by="alice", value=Amount(45))
    assert (await decision(store)).value == {"euros": 45}


@pytest.mark.parametrize("finds", ["run", "approve", "reject", "send_failure"])
async def test_a_deadline_may_reject(store: MemoryStore, clock: FakeClock, finds: str) -> None:
    """Whoever finds it passed records the rejection, by `$deadline`; a decision that comes later is told so."""
    await ask(store, clock, timeout=60, on_timeout="reject", quorum=2)
    await control.approve(store, "run", "refund", by="alice", clock=clock)
    clock.advance(60)
    acts: dict[str, Any] = {
        "approve": lambda: control.approve(store, "run", "refund", by="bob", clock=clock),
        "reject": lambda: control.reject(store, "run", "refund", by="bob", clock=clock),
        "send_failure": lambda: control.send_failure(store, "run", "refund", error="declined", clock=clock),
    }
    if finds != "run":
        with pytest.raises(DeadlinePassed, match="nobody decided 'refund' before"):
            await acts[finds]()
    made = await decision(store, clock)
    assert (made.approved, made.by, made.at, bool(made)) == (False, "$deadline", clock.now(), False)
    assert made.reason is not None
    assert "nobody decided" in made.reason
    assert [record.status for record in await store.list("run")] == ["waiting", "waiting", "success"]
    for act in acts.values():
        with pytest.raises(DeadlinePassed):
            await act()


async def test_the_terms_of_a_deadline_are_those_first_recorded(store: MemoryStore, clock: FakeClock) -> None:
    """Without a word about it a deadline is a failure, whatever is asked for later."""
    await ask(store, clock, timeout=60)
    clock.advance(60)
    with pytest.raises(StepFailed) as failed:
        await Runner(store, "run", clock=clock).approval("refund", {"amount": 90}, on_timeout="reject")
    assert failed.value.error.matches(TimeoutError)
    with pytest.raises(ValueError, match="on_timeout must be 'fail' or 'reject', not 'approve'"):
        await Runner(store, "other").approval("refund", on_timeout="approve")  # type: ignore[arg-type]  # that is refused


async def test_an_event_may_go_wrong(store: MemoryStore) -> None:
    """While somebody waits for it; the flow gets the failure, and branches on it."""
    waiting = asyncio.ensure_future(Runner(store, "run").event("paid"))
    while await store.get("run", "paid") is None:
        await asyncio.sleep(0)
    record = await control.send_failure(store, "run", "paid", error="declined")
    with pytest.raises(StepFailed, match="declined") as failed:
        await waiting
    assert failed.value.error.matches(SentFailure)
    assert await control.send_failure(store, "run", "paid", error="declined") == record
    for act in (
        lambda: control.send_failure(store, "run", "paid", error="stolen"),
        lambda: control.send(store, "run", "paid", 1),
    ):
        with pytest.raises(AlreadyDecided, match="declined"):
            await act()


async def test_a_failure_may_come_before_anybody_waits(store: MemoryStore) -> None:
    """Before the run, even; an exception is recorded as it is, and the event can be reopened."""

    class Declined(OSError):
        @property
        def __durable_data__(self) -> dict[str, int]:
            return {"code": 51}

    await control.send_failure(store, "run", "paid", error=Declined("no funds"))
    with pytest.raises(StepFailed) as failed:
        await Runner(store, "run").event("paid")
    assert failed.value.error.matches(Declined)
    assert failed.value.error.matches(OSError)
    assert failed.value.error.data == {"code": 51}
    await control.retry(store, "run", "paid")
    await control.send(store, "run", "paid", 7)
    assert await Runner(store, "run").event("paid") == 7


async def test_an_approval_may_be_taken_back(store: MemoryStore) -> None:
    """It fails, with what was shown and said; nobody is asked for it any more."""
    await ask(store, quorum=2)
    await control.approve(store, "run", "refund", by="alice")
    record = await control.send_failure(store, "run", "refund", error="the order was cancelled")
    assert record.note["show"] == {"amount": 90}
    assert [vote["by"] for vote in record.note["votes"]] == ["alice"]
    with pytest.raises(StepFailed, match="the order was cancelled"):
        await decision(store)
    with pytest.raises(AlreadyDecided, match="the order was cancelled"):
        await control.approve(store, "run", "refund", by="bob")
    assert [pending async for pending in control.pending(store)] == []


async def test_what_waits_for_nobody_cannot_go_wrong(store: MemoryStore, clock: FakeClock) -> None:
    """A step, a sleep, an approval that has to be asked for anew; and what is no error."""
    runner = Runner(store, "run", clock=clock, wait_limit=0)
    await runner.step("plain", lambda: 1)
    with pytest.raises(RunSuspended):
        await runner.sleep("nap", 60)
    await ask(store, clock, timeout=60)
    clock.advance(60)
    with pytest.raises(DeadlinePassed):
        await control.send_failure(store, "run", "refund", error="late", clock=clock)
    await control.retry(store, "run", "refund", clock=clock)
    for step_id in ("plain", "nap", "refund"):
        with pytest.raises(Refused, match="can't be answered"):
            await control.send_failure(store, "run", step_id, error="declined", clock=clock)
    with pytest.raises(TypeError, match="error must be"):
        await control.send_failure(store, "run", "new", error=None)  # type: ignore[arg-type]  # that is refused
